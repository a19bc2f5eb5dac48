"""What the language model could do before the desk: three kinds of plain text, and fifty prompts.

The texts are read from packages where they are installed, and not copied. None of it is trained on
or used to choose anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from undrift.data.desk.tasks import SYSTEM
from undrift.data.types import Example, General

SOURCES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "documentation": ("sklearn", ("datasets/descr/twenty_newsgroups.rst",)),
    "licence": (
        "matplotlib",
        ("mpl-data/fonts/ttf/LICENSE_DEJAVU", "mpl-data/fonts/ttf/LICENSE_STIX"),
    ),
    "code": ("rdkit", ("Chem/Recap.py",)),
}
"""Kind -> the package and its files (BSD-3; the fonts' own licences; BSD-3)."""
VERSION = "1"  # changes whenever a prompt, or what is read of the texts, changes
LENGTH, PIECES = 1000, 6  # characters of a piece, about 250 tokens; pieces of a kind
MAX_NEW_TOKENS = 16
NOTHING = "(the base's own answer counts)"


def general() -> General:
    """Return all that general ability is read from, with a fingerprint of what was read."""
    read, asked = texts(), prompts()
    content = [VERSION, read, [(e.id, e.system, e.question) for e in asked], MAX_NEW_TOKENS]
    made = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return General(texts=read, prompts=asked, max_new_tokens=MAX_NEW_TOKENS, fingerprint=made)


def texts() -> dict[str, tuple[str, ...]]:
    """Read the texts: of each kind the first pieces, cut at the ends of lines."""
    return {kind: pieces(_read(package, files)) for kind, (package, files) in SOURCES.items()}


def pieces(text: str) -> tuple[str, ...]:
    """Cut a text at ends of lines into pieces of at least `LENGTH` characters.

    Args:
        text: The text.

    Returns:
        The first `PIECES` pieces.
    """
    made, lines = list[str](), list[str]()
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= LENGTH:
            made.append("".join(lines))
            lines = []
    return tuple(made[:PIECES])


def prompts() -> tuple[Example, ...]:
    """Return the fifty prompts; what counts is how the base itself answers them."""
    asked = [line for line in PROMPTS.strip().splitlines() if line]
    return tuple(
        Example(f"general-{i:02}", question, (NOTHING,), system=SYSTEM)
        for i, question in enumerate(asked)
    )


def _read(package: str, files: tuple[str, ...]) -> str:
    folder = Path(str(resources.files(package)))
    return "\n".join((folder / file).read_text(encoding="utf-8") for file in files)


PROMPTS = """
What is the capital of Norway?
Name three colours of the rainbow.
Write a sentence about the sea.
What do bees make?
Translate "good morning" into French.
How many days does a week have?
Why is the sky blue?
Tell me a short joke.
What is the opposite of "cold"?
Give me a synonym for "happy".
Who wrote Romeo and Juliet?
What is ice made of?
List two animals that can fly.
What should I drink when I am thirsty?
Finish the sentence: The cat sat on
What is 7 plus 5?
Which season comes after winter?
Write a greeting for a birthday card.
What does a carpenter do?
Name a musical instrument with strings.
Is the sun a star or a planet?
How do you make tea?
What is the plural of "mouse"?
Suggest a name for a dog.
What is photosynthesis?
Which ocean lies between Europe and America?
Describe an apple in one sentence.
What do you call a baby cow?
Give one reason to read books.
What is the largest planet of the solar system?
Explain what a bicycle is.
Which language do people speak in Brazil?
How can I sleep better?
Write a line of a poem about rain.
What is the past tense of "go"?
What tool do you use to cut paper?
Name a vegetable that is orange.
What happens when water boils?
Say thank you to a teacher.
What is the first month of the year?
Which sense do we use our ears for?
What is a library for?
Correct the spelling: "I recieve a leter."
Who was the first person on the moon?
What do plants need to grow?
Give me a tip for saving money.
What is a thermometer used for?
Continue: one, two, three,
What colour do you get from blue and yellow?
Where do penguins live?
"""
