"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from undrift.report.answers import RIGHT, answers
from undrift.report.plates import Plate
from undrift.report.story import Story

WIDE = 500  # CSS pixels; a drawing that is wider scrolls in its box on a phone
_CONTENTS = {
    "run": "What was run",
    "matrix": "Accuracy",
    "metrics": "Numbers",
    "drift": "Drift",
    "transfer": "Who taught whom",
    "cost": "Cost",
    "answers": "Answers",
    "definitions": "Definitions",
}


def page(story: Story, at: Path | None = None) -> str:
    """Write a report as a page.

    Args:
        story: What there is to say.
        at: Where the page will lie. Pictures that it has no room for are taken from the run's
            folder if that is below this file's.

    Returns:
        A whole HTML document.
    """
    environment = Environment(
        loader=PackageLoader("undrift.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["told"] = told
    script, css = (_template(environment, name) for name in ("page.js", "page.css"))
    found = answers(story.runs, at)
    count = sum(len(task["examples"]) for task in found["tasks"])
    there = {"transfer": story.taught or story.transfers, "cost": story.costs, "answers": count}
    return environment.get_template("page.html.j2").render(
        story=story,
        svg=_svg,
        contents=[(id_, name) for id_, name in _CONTENTS.items() if there.get(id_, True)],
        css=Markup(css),
        script=Markup(script),
        script_hash=_hash(script),
        pictures_from="data:" if _all_embedded(found) else "data: 'self' file:",
        browser=_as_script(found) if count else None,
        worse=_worse(found),
        view=_view,
        examples=count,
        tasks=[task["name"] for task in found["tasks"] if task["examples"]],
        runs=found["runs"],
        errors=found["errors"],
    )


def told(text: str) -> Markup:
    """Escape a sentence for HTML, set what stands in backquotes as code, keep "9 %" on one line."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", coded))


def _template(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _svg(plate: Plate) -> Markup:
    from undrift.report.figures import draw

    drawn = draw(plate.figure)
    if drawn.width <= WIDE:
        return Markup(drawn.svg)
    box = '<div class="scroll wide" tabindex="0" role="region" aria-label="{}">{}</div>'
    return Markup(box).format(plate.title, Markup(drawn.svg))


def _worse(found: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """Count what was right when just learned and is not at the end, by task and run."""
    return Counter(
        (task["name"], run)
        for task in found["tasks"]
        for example in task["examples"]
        for run, said in zip(found["runs"], example["said"], strict=True)
        if said and said[0] and said[0][1] == RIGHT != said[1][1]
    )


def _view(**filters: str) -> str:
    """Write the address of a view of the answer browser."""
    return f"#answers?{urlencode(filters, quote_via=quote)}"


def _hash(script: str) -> str:
    """Name a script by its content, so that the page runs this one and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _all_embedded(found: Mapping[str, Any]) -> bool:
    addresses = [
        address
        for task in found["tasks"]
        for example in task["examples"]
        for address in example["pictures"]
    ]
    return all(address is None or address.startswith("data:") for address in addresses)


def _as_script(value: object) -> Markup:
    """Write JSON that may stand in a <script>: no < can end it or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
