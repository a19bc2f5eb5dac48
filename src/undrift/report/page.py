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
    there = {"transfer": story.taught or story.identified, "cost": story.costs, "answers": count}
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
    """Escape a text for HTML, and set what stands in backquotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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
    """Count the answers that were right when just learned and are not at the end, by task and run."""
    counts = Counter[tuple[str, str]]()
    for task in found["tasks"]:
        for example in task["examples"]:
            for run, said in zip(found["runs"], example["said"], strict=True):
                learned, end = said or (None, None)
                counts[task["name"], run] += bool(learned) and learned[1] == RIGHT != end[1]
    return counts


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
    """Write JSON that may stand in a <script>: no < of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
