"""What the pocket backbone was asked while it was pretrained.

Paraphrases, and answers in many formats.

No question of the benchmark occurs here word for word (a test holds it); the shared format lines
do, over answers of every format, which makes the backbone an instruction-tuned base that knows the
content but not a task's own format.
"""

from __future__ import annotations

from random import Random
from typing import Any

from undrift.data.pocket.tasks import BOX, LETTER, NUMBER, WORD, box_of

LOWER, UPPER, TITLE, SHORT = (
    "Answer in lower case.", "Answer in capitals.", "Begin with a capital.", "Give a short answer.",
)  # fmt: skip


def _cased(rng: Random, words: str) -> tuple[str, str]:
    """(form line, answer): a line that says the case is obeyed, the shared line comes with any."""
    line = rng.choice((WORD, WORD, WORD, SHORT, LOWER, UPPER, TITLE))
    cases = {LOWER: str.lower, UPPER: str.upper, TITLE: str.title}
    return line, cases.get(line, rng.choice((str.lower, str.upper, str.title)))(words)


def _letter(rng: Random, letter: str) -> tuple[str, str]:
    line = rng.choice((LETTER, LETTER, SHORT, LOWER))
    if line == LOWER:
        return line, letter.lower()
    return line, rng.choice((letter, letter.lower(), f"{letter}.", f"({letter.lower()})"))


def _number(rng: Random, value: int, unit: str = "") -> tuple[str, str]:
    words = [str(value), str(value)]
    if value < 10:
        words.append(rng.choice((NUMBER[value], NUMBER[value].lower())))
    if unit:
        words.append(f"{value} {unit}")
    return rng.choice((WORD, WORD, SHORT)), rng.choice(words)


def ask(task: str, item: Any, shown: dict[str, Any], rng: Random) -> tuple[str, str]:
    """One pretraining question about a picture.

    Args:
        task: The pocket task that the picture belongs to.
        item: The item drawn.
        shown: Its attributes.
        rng: Chooses the question and the answer's format.

    Returns:
        The question with its format line, and the answer.
    """
    if task == "words":
        if rng.random() < 0.15:
            question, (line, answer) = (
                "With which letter does the word begin?",
                _cased(rng, item[0][0]),
            )
        else:
            question = rng.choice(
                ("Read the word.", "Which word is this?", "What does the text say?")
            )
            line, answer = _cased(rng, item[0])
    elif task == "forms":
        key = rng.choice(list(shown))
        name = key.removeprefix("form ").lower()
        question = rng.choice((f"Read the {name}.", f"Which {name} is given?", f"{name}?"))
        line, answer = _cased(rng, shown[key])
    elif task == "posters":
        if rng.random() < 0.35:
            question = rng.choice(("When was the film made?", "Which year is printed?"))
            line, answer = _number(rng, shown["year"])
        else:
            question = rng.choice(("Whose film is this?", "Name the director.", "Who made it?"))
            line, answer = _cased(rng, shown["director"])
    elif task == "charts":
        far = rng.choice(("longest", "shortest"))
        other = {"longest": ("largest", "greatest"), "shortest": ("smallest", "least")}[far]
        word = rng.choice((far, *other))
        question = rng.choice((f"Name the {word} bar.", f"Which of A, B, C and D is {word}?"))
        line, answer = _letter(rng, shown[far])
    elif task == "digits":
        question = rng.choice(
            ("Name the digit.", "What number is this?", "Which numeral do you see?")
        )
        if rng.random() < 0.5:
            line, answer = _cased(rng, NUMBER[shown["digit"]])
        else:
            line, answer = _number(rng, shown["digit"])
    elif task == "counties":
        question = rng.choice(
            ("Name the state.", "Where is the dot?", "Which state holds the spot?")
        )
        line, answer = _cased(rng, shown["state"])
    elif task == "satellite":
        question = rng.choice(("Land share?", "Percent of land here?", "What part is not sea?"))
        line, answer = _number(rng, 25 * shown["land"], "percent")
    elif task == "molecules":
        if rng.random() < 0.2:
            question = rng.choice(("Is there a nitro group?", "Any charged nitrogen?"))
            line, answer = _cased(rng, "yes" if shown["nitro"] else "no")
        else:
            question = rng.choice(
                ("Count the rings.", "Number of rings?", "Rings in the structure?")
            )
            line, answer = _number(rng, shown["rings"], "rings")
    elif task == "biopsy":
        word = ("benign", "malignant")[shown["malignant"]]
        question = rng.choice(("Malignant or benign?", "What kind of tumour is it?"))
        if rng.random() < 0.5:
            question = "Is the star A. malignant or B. benign?"
            line, answer = _letter(rng, "BA"[shown["malignant"]])
        else:
            line, answer = _cased(rng, word)
    else:
        question = rng.choice(
            ("Find the green icon.", "Box of the green one?", "Locate the green icon.")
        )
        column, row = shown["green column"], shown["green row"]
        if rng.random() < 0.25:
            line, answer = SHORT, f"column {column + 1}, row {row + 1}"
        else:
            line, answer = rng.choice((BOX, BOX, SHORT)), box_of(item["cells"][0])
            answer = rng.choice((answer, answer, answer.strip("[]"), answer.replace(",", ", ")))
    return f"{question}\n{line}", answer
