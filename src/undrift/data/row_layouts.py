r"""Layouts of rows, from LLaVA's to TRL's: a row of any of them as questions with their answers.

Conversations, as LLaVA and ShareGPT write them::

    {"id": 17, "image": "a/1.jpg", "conversations": [{"from": "human", "value": "<image>\n..."},
                                                     {"from": "gpt", "value": "B"}, ...]}

Messages, as OpenAI's API, TRL's trainers and Qwen's scripts write them. Content is a text or a list
of parts. A part may hold its own picture (`image`, `url`, `path`, `base64` or OpenAI's
`image_url`); one that does not stands for the next of `images`::

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "B"}],
     "images": ["a/1.jpg"]}

Prompts and completions that are lists of messages, as TRL has them::

    {"prompt": [{"role": "user", "content": "..."}],
     "completion": [{"role": "assistant", "content": "B"}]}

A question and its answer under two keys; each pair of keys is a layout of its own. `answers`
(several accepted ones) wins over `answer_bbox`, and that over `answer`, which then stays in
`extra`; any other key of an answer must hold the same one. `history` holds earlier questions with
their answers::

    {"question_id": "17", "image": "a/1.jpg", "text": "...", "answer": "B"}   LLaVA's evaluation
    {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."]]}  Alpaca

What a layout does not read of a row is accounted for in `undrift.data.instructions`. A new layout
is one more name in `LAYOUTS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeGuard

from undrift.errors import ConfigError, DataError, brief

Row = Mapping[str, Any]
IMAGE = "<image>"
"""Where a picture stands in a text; the collator puts its own token there."""

BOOLEANS = ("yes-no",)
_BOX = "box"  # the scorer whose answers are four numbers
_REFUSED = ("<video>", "<audio>")
_INSIDE = re.compile(r"<img>([^<>]+)</img>")  # Qwen-VL's own way to write a picture's name
_MEDIA = "(?:image|img|video|audio|speech|vision)"
_ABOUT = "here|placeholder|pad|start|begin|end|patch|soft|token|context|content|break|newline"
_STRANGE = re.compile(
    # In one digit and one word at a time, so that no text takes the square of its length; and `<`
    # and `[` alone begin it, so that a text without them takes no time at all.
    rf"<(?:\|?/?_*(?:(?:start|begin|end)_of_|fake_token_around_|global[_-])?{_MEDIA}"
    rf"(?:[ _-]?(?:\d|{_ABOUT}))*_*\s*/?\|?"
    r"|im_(?:start|end|patch|col)"  # not <|im_start|>: that begins a turn, in ChatML
    r"|\|media_(?:begin|content|pad|end)\||__media__)>"
    r"|\[(?:(?-i:IMG(?:_(?:BREAK|END|START|CONTEXT))?\d*)"
    r"|(?<![\w\])]\[)/?(?:image|img))\]",  # and no a[img] of a program
    re.IGNORECASE,
)
"""The places of pictures that other programs know, a token of a model most often."""


@dataclass(frozen=True)
class AnswerReader:
    """How a task's answers are to be read.

    Args:
        scorer: The task's: where it is `box`, a list of four numbers is one answer.
        booleans: "yes-no" to read true and false as Yes and No; they are refused otherwise.

    Raises:
        ConfigError: If `booleans` is something else.
    """

    scorer: str = "exact"
    booleans: str = ""

    def __post_init__(self) -> None:
        if self.booleans not in ("", *BOOLEANS):
            raise ConfigError(f"booleans is {self.booleans!r}; expected yes-no, or nothing at all")

    def texts(self, value: Any, key: str) -> tuple[str, ...]:
        """Return accepted answers as texts.

        Args:
            value: What the row holds: a text or number, or a list of them.
            key: Its key, for messages.

        Returns:
            The texts; a DataError is raised where it is something else, or ambiguous.
        """
        if not isinstance(value, list):
            return (self._text(value, key),)
        if are_numbers(value):
            return (self._box(value, key),)
        return tuple(
            self._box(one, key) if are_numbers(one) else self._text(one, key) for one in value
        )

    def _box(self, numbers: list[Any], key: str) -> str:
        text = f"[{', '.join(self._text(one, key) for one in numbers)}]"
        if self.scorer == _BOX and len(numbers) == 4:
            return text
        if self.scorer == _BOX:
            raise DataError(f"{key} is {brief(text)}; a box has four numbers")
        raise DataError(
            f"{key} is the list of numbers {brief(text)}; for a box say scorer: box (--scorer "
            "box), for several accepted answers write them as texts"
        )

    def _text(self, value: Any, key: str) -> str:
        if isinstance(value, bool):
            if self.booleans:
                return "Yes" if value else "No"
            raise DataError(
                f"{key} is the truth value {str(value).lower()}; write the text that is meant, or "
                "say booleans: yes-no (--booleans yes-no)"
            )
        if isinstance(value, float) and math.isfinite(value):
            whole = value.is_integer() and abs(value) < 2**53  # 1.0 is how tables write a 1
            return str(int(value) if whole else value)
        if isinstance(value, float) or not isinstance(value, str | int):
            raise DataError(f"{key} should be a text or a number, found {brief(value)}")
        if isinstance(value, str) and IMAGE in value:
            raise DataError(f"{key} holds {IMAGE}; pictures belong to questions")
        return str(value)


class Turn(NamedTuple):
    """A question and its answer.

    Args:
        question: The text, `<image>` included.
        answer: Accepted answers as the row has them.
        key: Where the answer stands, for messages.
        places: A picture of its own for each place of one; None where the row's next is meant, and
            a whole number where the row's picture of that number is, from 0.
    """

    question: str
    answer: Any
    key: str
    places: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ParsedRow:
    """What a layout makes of a row.

    Args:
        turns: At least one.
        used: The keys of the row that were read.
        system: The system turn; empty if there is none.
        unread: What turns and parts hold besides, by where it stands.
    """

    turns: tuple[Turn, ...]
    used: frozenset[str]
    system: str = ""
    unread: Mapping[str, Any] = field(default_factory=dict)


def text_under(row: Row, key: str) -> str:
    """Return the text that a row, or a turn, holds under a key; a DataError if there is none."""
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"expected a text under {key!r}, found {brief(value)}; the keys are {_keys_of(row)}"
        )
    return value


def _keys_of(row: Iterable[Any]) -> str:
    """Name the keys of a row, the first twenty."""
    named = [brief(key) for key in islice(row, 21)]
    return ", ".join(named[:20]) + (", ..." if len(named) > 20 else "") if named else "none"


def placed(text: str) -> tuple[str, tuple[str | None, ...]]:
    """Find the places of pictures in a text.

    Args:
        text: The text, as a row has it.

    Returns:
        The text with `<image>` in each place, and for each the name inside it, or None.

    Raises:
        DataError: If it holds a place of another kind, or one of a video or of sound.
    """
    for mark in _REFUSED:
        if mark in text:
            raise DataError(f"the text holds {mark}; videos and sound are not supported")
    marks = re.finditer(f"{_INSIDE.pattern}|{IMAGE}", text)
    places = tuple(mark[1].strip() if mark[1] else None for mark in marks)
    text = _INSIDE.sub(IMAGE, text)
    if strange := _STRANGE.search(text.replace(IMAGE, "")):
        raise DataError(
            f"the text holds {strange[0]}; the place of a picture is {IMAGE}, and its name stands "
            "under image or images"
        )
    return text, places


def are_numbers(value: Any) -> TypeGuard[list[Any]]:
    """Tell whether a value is a list of numbers, as a box is; an empty one is not."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)


# ------------------------------------------------------------ turns

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system", "developer": "system"}  # fmt: skip
_ASSISTANT = ("gpt", "assistant")
_OWN = ("image", "url", "path", "base64")  # where a part may hold its picture


class _Message(NamedTuple):
    role: Any
    text: str
    places: tuple[Any, ...]


def _read_turns(value: Any, key: str, used: Iterable[str] = ()) -> ParsedRow:
    """Read turns of a user and an assistant, perhaps behind one of a system; `key` holds them."""
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        raise DataError(_expected(key, value))
    unread: dict[str, list[Any]] = {}
    messages = [_message(message, key, unread) for message in value]
    roles = [message.role for message in messages]
    plain = [_ROLES.get(role, role) if isinstance(role, str) else role for role in roles]
    system = ""
    if plain[0] == "system":
        plain, system = plain[1:], messages[0].text
        if messages.pop(0).places:
            raise DataError("the system's turn holds a picture; pictures belong to questions")
    if not plain or plain != ["user", "assistant"] * (len(plain) // 2):
        raise DataError(_expected(key, roles[:6]))
    turns = []
    pairs = zip(messages[::2], messages[1::2], strict=True)
    for number, (asked, answer) in enumerate(pairs, 1):
        if not answer.text.strip():
            raise DataError(f"answer {number} is empty")
        if answer.places:
            what = IMAGE if IMAGE in answer.text else "a picture"
            raise DataError(f"answer {number} holds {what}; pictures belong to questions")
        turns.append(Turn(asked.text, answer.text, f"answer {number}", asked.places))
    return ParsedRow(tuple(turns), frozenset(used), system, _each_once(unread))


def _expected(key: str, found: Any) -> str:
    return (
        f"expected turns from human, gpt, human, gpt ... (or user, assistant ...) as {key}, found "
        f"{brief(found)}"
    )


def _message(message: Mapping[str, Any], key: str, unread: dict[str, list[Any]]) -> _Message:
    chat = message.get("role") is not None or message.get("content") is not None
    role, value = ("role", "content") if chat else ("from", "value")
    _note(message, (role, value), f"{key}[]", unread)
    if message.get("tool_calls"):
        raise DataError("a turn calls tools; that is not supported")
    if 0 in (message.get("weight"), message.get("loss")):
        raise DataError("a turn is not to be learned (weight or loss is 0); leave it out")
    content = message.get(value)
    if chat and message.get("value") not in (None, "", content):
        raise DataError("a turn holds different texts as content and value; leave one of them out")
    if not isinstance(content, list):
        return _Message(message.get(role), *placed(text_under(message, value)))
    texts, places = list[str](), list[Any]()
    for part in content:
        known = {"text": part} if isinstance(part, str) else part
        kind = _kind(known)
        if kind == "text":
            _note(known, ("type", "text"), f"{key}[].{value}[]", unread)
            if any(known[name] not in (None, "", []) for name in known if name != "type"):
                text, inside = placed(text_under(known, "text"))
                texts.append(text)
                places += inside
        else:
            places.append(_own_picture(known, f"{key}[].{value}[]", unread))
    between = "" if message.get(role) in _ASSISTANT else "\n"  # an answer is learned as it is
    return _Message(message.get(role), between.join(filter(None, texts)), tuple(places))


def _kind(part: Any) -> str:
    """Tell whether a part is text or a picture; whatever else it may be is refused."""
    known: Mapping[str, Any] = part if isinstance(part, Mapping) else {}
    kind = known.get("type")
    if kind is None:
        kind = next((one for one in ("text", "image", "image_url") if known.get(one)), None)
    if kind == "text":
        return "text"
    if kind in ("image", "image_url"):
        return "image"
    if isinstance(kind, str) and ("video" in kind or "audio" in kind):
        raise DataError(f"a part of a message is of type {brief(kind)}: that is not supported")
    raise DataError(
        f"a message's content should be a text, or parts of text and image; found {brief(part)}"
    )


def _own_picture(part: Mapping[str, Any], where: str, unread: dict[str, list[Any]]) -> Any:
    """Return the picture that a part holds itself, or its number in the row, or None: the next."""
    given = part.get("image_url")
    held = given.get("url") if isinstance(given, Mapping) else given
    if isinstance(given, Mapping):
        _note(given, ("url",), f"{where}.image_url", unread)
    own = [value for value in (held, *map(part.get, _OWN)) if value not in (None, "", [])]
    number = None if own else part.get("index")  # beside a picture of its own, it is not read
    read = ("type", "text", "image_url", *_OWN, *([] if number is None else ["index"]))
    _note(part, read, where, unread)
    if said := part.get("text"):
        raise DataError(
            f"a part of type image holds the text {brief(said)}; write it as a part of type text"
        )
    if len(own) > 1:
        raise DataError(f"a part of a message holds {len(own)} pictures: {brief(dict(part))}")
    if own and part.get("base64"):
        return f"data:image/png;base64,{own[0]}" if isinstance(own[0], str) else own[0]
    if own:
        return own[0]
    for key in ("source", "file_id", "file", "data"):
        if part.get(key):
            raise DataError(f"a part of type image holds {key}, of which no picture can be made")
    if isinstance(number, float) and number.is_integer():
        number = int(number)  # 1.0 is how tables write a 1
    if number is not None and type(number) is not int:
        raise DataError(
            f"the index of a part is {brief(number)}; expected a whole number: that of the row's "
            "picture, from 0"
        )
    return number


def _note(
    held: Mapping[str, Any], read: tuple[str, ...], where: str, into: dict[str, list[Any]]
) -> None:
    """Note what is not read."""
    for key, value in held.items():
        if key not in read and value is not None:
            into.setdefault(f"{where}.{key}", []).append(value)


def _each_once(unread: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Write what is not read once, where it is the same everywhere."""
    same = {place: each == each[:1] * len(each) for place, each in unread.items()}
    return {place: each[0] if same[place] else each for place, each in unread.items()}


# ------------------------------------------------------------ pairs of keys

_ANSWERS = ("answers", "answer_bbox", "answer")


@dataclass(frozen=True)
class Pair:
    """Rows with a question under one key and its answer under another.

    Args:
        question: The question's key.
        answers: The answer's, the most wanted first.
        more: Where the question may go on.
    """

    question: str
    answers: tuple[str, ...]
    more: str = ""

    @property
    def name(self) -> str:
        """What the layout is called in messages."""
        return f"{self.question} and {self.answers[-1]}"

    def fits(self, row: Row) -> bool:
        """Tell whether a row is of this layout."""
        question = row.get(self.question)
        return (
            question is not None
            and any(key in row for key in self.answers)
            and not isinstance(question, list)
        )

    def read(self, row: Row) -> ParsedRow:
        """Read a row of this layout; a DataError says what is wrong."""
        there = [key for key in self.answers if key in row]
        key = next((key for key in there if row[key] not in ("", [])), there[0])
        for other in sorted(ANSWERS & row.keys()):
            ranked = {key, other} <= {*_ANSWERS} & {*self.answers}  # these may differ, see above
            if not ranked and not _agree(row[key], row[other]):
                raise DataError(f"{key} and {other} hold different answers; leave one of them out")
        unread: dict[str, list[Any]] = {}
        for one in row[key] if isinstance(row[key], list) else ():
            if isinstance(one, Mapping):
                _note(one, ("answer",), f"{key}[]", unread)
        question = text_under(row, self.question)
        used = {self.question, key}
        if self.more and self.more in row:
            used.add(self.more)
            question = "\n".join(filter(None, [question, text_under(row, self.more)]))
        question, places = placed(question)
        turns = [Turn(question, _plain(row[key]), key, places)]
        if row.get("history"):
            used.add("history")
            turns = [*_earlier(row["history"]), *turns]
        return ParsedRow(tuple(turns), frozenset(used), unread=_each_once(unread))


PAIRS = (
    Pair("text", _ANSWERS),
    Pair("question", (*_ANSWERS[:2], "response", "answer")),
    Pair("query", ("response",)),
    Pair("instruction", ("response", "output"), more="input"),
    Pair("prompt", ("response", "answer", "completion")),
    Pair("problem", ("answer", "solution")),
)
QUESTIONS = frozenset(filter(None, (key for pair in PAIRS for key in (pair.question, pair.more))))
"""Every key that a question, or a part of one, may stand under."""
ANSWERS = frozenset(key for pair in PAIRS for key in pair.answers)
"""Every key that an answer may stand under."""


def check_answer(row: Row) -> None:
    """Refuse a row whose `answer` is none of its accepted `answers`.

    Args:
        row: The row as its file has it. The `answers` of a second file, such as those of ten
            people, may well be others.

    Raises:
        DataError: If it is none of them, whatever the case of its letters.
    """
    answers, answer = row.get("answers", ""), row.get("answer", "")
    folded = [{text.casefold() for text in _said(held)} for held in (answer, answers)]
    if answers not in ("", []) and answer not in ("", []) and not folded[0] <= folded[1]:
        raise DataError(
            f"answer is {brief(answer)}, which is none of the answers; put it among them, or leave "
            "it out"
        )


def _agree(used: Any, other: Any) -> bool:
    """Tell whether an answer that is not used is among those that are."""
    return other in ("", []) or other == used or _said(other) <= _said(used)


def _said(answers: Any) -> set[str]:
    plain = _plain(answers)
    return {str(one).strip() for one in (plain if isinstance(plain, list) else [plain])}


def _plain(answers: Any) -> Any:
    """Take the answers of a list out of VQA's objects, each with an `answer`."""
    if not isinstance(answers, list):
        return answers
    return [one.get("answer") if isinstance(one, Mapping) else one for one in answers]


def _earlier(history: Any) -> list[Turn]:
    if isinstance(history, list) and history and all(isinstance(h, Mapping) for h in history):
        earlier = _read_turns(history, "history")
        if earlier.system or earlier.unread:
            raise DataError("history should hold questions and answers alone")
        return list(earlier.turns)
    turns = []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        whole = isinstance(pair, list) and len(pair) == 2
        if not whole or not all(isinstance(text, str) and text.strip() for text in pair):
            raise DataError(f"history should be a list of [question, answer], found {brief(pair)}")
        question, places = placed(pair[0])
        turns.append(Turn(question, pair[1], f"answer {number} of history", places))
    return turns


# ------------------------------------------------------------ all layouts


class Layout(NamedTuple):
    """What a layout is called in messages, whether a row is of it, and how it is read."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], ParsedRow]


def _turns_under(key: str) -> Layout:
    return Layout(key, lambda row: key in row, lambda row: _read_turns(row[key], key, {key}))


def _prompt_and_completion(row: Row) -> ParsedRow:
    answer = row["completion"]
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    name = "prompt and completion"
    return _read_turns([*row["prompt"], *turns], name, {"prompt", "completion"})


LAYOUTS: tuple[Layout | Pair, ...] = (
    _turns_under("conversations"),
    _turns_under("messages"),
    Layout(
        "prompt and completion",
        lambda row: (
            isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list | str)
        ),
        _prompt_and_completion,
    ),
    *PAIRS,
)


def read_row(row: Row) -> ParsedRow:
    """Read a row of whatever layout is known.

    Args:
        row: The row, without null values.

    Returns:
        What it says.

    Raises:
        DataError: If it is of no layout or of several, or if something in it is wrong.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(row)]
    if len(fitting) > 1:
        names = " and as ".join(layout.name for layout in fitting)
        raise DataError(f"the row can be read as {names}; leave out the keys that are not meant")
    if fitting:
        return fitting[0].read(row)
    raise DataError(_unknown(row))


def _unknown(row: Row) -> str:
    """Say what a row lacks that is of no layout."""
    question = next((pair.question for pair in PAIRS if pair.question in row), "")
    answer = next((key for pair in PAIRS for key in pair.answers if key in row), "")
    lacks = "no question and no answer"
    if question or answer:
        lacks = f"no answer beside {question!r}" if question else f"no question beside {answer!r}"
    known = ", ".join(layout.name for layout in LAYOUTS)
    lacks += f"; the keys are {_keys_of(row)}; expected {known}"
    for key, value in row.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return f"{lacks}. If {key!r} holds the rows, make a file of that list alone"
    return lacks
