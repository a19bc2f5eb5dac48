"""The desk's six tasks: text alone, on real data, each with an answer format of its own.

No prompt says which format is wanted, so only training tells, and format drift can happen. What
the data is allowed to be used for stands in `undrift.data.benchmarks.desk.LICENCE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from undrift.data.pocket import raw_data
from undrift.data.pocket.tasks import SPLITS, by_hash
from undrift.data.types import Example, Task

SIZES = {"train": 200, "validation": 60, "test": 100}
SHARES = (0.0, 0.50, 0.18)  # of pretrain (nothing was), train and validation; test has the rest
SYSTEM = "You are a helpful assistant."  # SmolLM2's own, which goes before no system turn, is long

Item = Any
Ask = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class DeskTask:
    """One task of the desk.

    Attributes:
        name: The task's name.
        items: Everything that could be asked about, dealt to the splits by a hash of its group.
        group: The leak rule: what must not be shared between splits.
        ask: The question about an item, and its answer.
        stratum: What of an answer is kept in balance in every split.
        scorer: The scorer's name.
        max_new_tokens: Room for the longest answer and its end.
    """

    name: str
    items: Callable[[], Sequence[Item]]
    group: Callable[[Item], Hashable]
    ask: Callable[[Item], Ask]
    stratum: Callable[[Item, str], Hashable] = lambda _, answer: answer
    scorer: str = "exact"
    max_new_tokens: int = 6

    def pools(self) -> Mapping[str, Sequence[Item]]:
        """Return all items of each split; `group` of no item occurs in two splits."""
        pools = by_hash(self.name, self.items(), self.group, SHARES)
        return {split: pools[split] for split in SPLITS[1:]}

    def task(self) -> Task:
        """Draw the examples of each split by a seed, and make a task of them."""
        made = {split: self._draw(split, items) for split, items in self.pools().items()}
        return Task(self.name, **made, scorer=self.scorer, max_new_tokens=self.max_new_tokens)

    def _draw(self, split: str, items: Sequence[Item]) -> tuple[Example, ...]:
        """Take from each stratum in turn, none twice; what is asked stands in a random order."""
        random, strata = Random(f"{self.name}:{split}"), dict[Hashable, list[Ask]]()
        for item in random.sample(list(items), len(items)):
            asked = self.ask(item)
            strata.setdefault(self.stratum(item, asked[1]), []).append(asked)
        queues = [strata[key] for key in sorted(strata, key=repr)]
        chosen = dict[str, str]()
        for at in count():
            left = [queue for queue in queues if len(queue) > at]
            if not left or len(chosen) == SIZES[split]:
                break
            for question, answer in (queue[at] for queue in left):
                if len(chosen) < SIZES[split]:
                    chosen.setdefault(question, answer)
        rows = list(chosen.items())
        random.shuffle(rows)
        return tuple(
            Example(f"{self.name}-{split}-{i:03}", question, (answer,), system=SYSTEM)
            for i, (question, answer) in enumerate(rows)
        )


# --- languages: a film's language, from its title and director. Capitalised --------------------
# Directors are disjoint; the eight languages are shared.

LANGUAGES = "Cantonese French German Hindi Italian Japanese Korean Spanish".split()


def _foreign_films() -> list[dict[str, Any]]:
    return [film for film in raw_data.film_records() if film["language"] in LANGUAGES]


LANGUAGES_TASK = DeskTask(
    name="languages",
    items=_foreign_films,
    group=lambda film: film["director"],
    ask=lambda film: (
        f"In which language is {film['title']}, a film by {film['director']}?",
        film["language"],
    ),
)

# --- orders: one of three facts about a sale. A phrase in lower case ---------------------------
# Cities are disjoint; the printed values are shared.

_ASKED = {
    "Ship Mode": "How was it shipped?",
    "Segment": "Who bought it?",
    "State": "In which state?",
}


def _orders() -> list[tuple[dict[str, str], str]]:
    return [(row, field) for row in raw_data.orders() for field in _ASKED]


def _ask_order(item: tuple[dict[str, str], str]) -> Ask:
    row, field = item
    told = (
        f"{row['Quantity']} {row['Sub-Category']}, {row['Segment']}, {row['Ship Mode']}, "
        f"{row['City']}, {row['State']}."
    )
    return f"{told} {_ASKED[field]}", row[field].lower()


ORDERS_TASK = DeskTask(
    name="orders",
    items=_orders,
    group=lambda item: item[0]["City"],
    ask=_ask_order,
    stratum=lambda item, _: item[1],
)

# --- goods: what kind of thing was sold. A letter ----------------------------------------------
# Cities are disjoint; the 17 things are shared.

_KINDS = ("Furniture", "Office Supplies", "Technology")


def _ask_goods(row: dict[str, str]) -> Ask:
    told = f"{row['Quantity']} {row['Sub-Category']} for {row['City']}."
    choices = ", ".join(f"{'ABC'[i]}. {kind.lower()}" for i, kind in enumerate(_KINDS))
    return f"{told} {choices}?", "ABC"[_KINDS.index(row["Category"])]


GOODS_TASK = DeskTask(
    name="goods",
    items=raw_data.orders,
    group=lambda row: row["City"],
    ask=_ask_goods,
    scorer="letter",
)

# --- atoms: how many of one kind a formula holds. A number -------------------------------------
# Formulas are disjoint.

_ELEMENTS = {"C": "carbon", "H": "hydrogen", "N": "nitrogen", "O": "oxygen"}


def _formulas() -> list[tuple[str, str, str]]:
    """Formula, element and number, where the formula writes it with one digit."""
    return [
        (formula, element, number)
        for formula in sorted(set(raw_data.formulas()))
        if len(formula) <= 14
        for element, number in re.findall(r"([A-Z][a-z]?)([2-9])(?!\d)", formula)
        if element in _ELEMENTS
    ]


ATOMS_TASK = DeskTask(
    name="atoms",
    items=_formulas,
    group=lambda item: item[0],
    ask=lambda item: (f"How many {_ELEMENTS[item[1]]} atoms has {item[0]}?", item[2]),
)

# --- records: a film's year and length. JSON ---------------------------------------------------
# Films (titles) are disjoint.


def _timed_films() -> list[dict[str, Any]]:
    return [film for film in raw_data.film_records() if film["language"] == "English"]


RECORDS_TASK = DeskTask(
    name="records",
    items=_timed_films,
    group=lambda film: film["title"],
    ask=lambda film: (
        f"{film['title']} was made in {film['year']} and runs {film['minutes']} minutes.",
        json.dumps({"minutes": film["minutes"]}),
    ),
    stratum=lambda film, _: film["year"] // 10,
    max_new_tokens=12,
)

# --- births: more than four children a woman, where and when. Yes or No ------------------------
# Countries are disjoint.


def _births() -> list[tuple[str, int, str]]:
    return [
        (country, year, f"{values[year]:.1f}")
        for country, values in raw_data.fertility().items()
        for year in range(1964, 2014, 3)
        if f"{values[year]:.1f}" != "4.0" and len(country) <= 20  # prompts stay short
    ]


BIRTHS_TASK = DeskTask(
    name="births",
    items=_births,
    group=lambda item: item[0],
    ask=lambda item: (
        f"In {item[1]} women in {item[0]} had {item[2]} children. Is that more than four?",
        "Yes" if float(item[2]) > 4 else "No",
    ),
)

IN_ORDER = (
    LANGUAGES_TASK, ORDERS_TASK, GOODS_TASK, ATOMS_TASK, RECORDS_TASK, BIRTHS_TASK,
)  # fmt: skip
