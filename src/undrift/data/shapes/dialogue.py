"""Turns of a user and an assistant, as LLaVA (`from`, `value`) and as chats (`role`, `content`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from undrift.data.formats.wording import brief
from undrift.data.shapes.said import IMAGE, Said, Turn, placed, text_under
from undrift.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system", "developer": "system"}  # fmt: skip
_ASSISTANT = ("gpt", "assistant")
_OWN = ("image", "url", "path", "base64")  # where a part may hold its picture


class _Message(NamedTuple):
    role: Any
    text: str
    places: tuple[Any, ...]


def read_turns(value: Any, key: str, used: frozenset[str]) -> Said:
    """Read turns.

    Args:
        value: What a row holds under `key`.
        key: Its name, for messages.
        used: The keys of the row that have been read by this.

    Returns:
        Questions with their answers.

    Raises:
        DataError: If these are no turns of a user and an assistant, perhaps behind one of a system.
    """
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        raise DataError(_expected(key, value))
    unread: dict[str, list[Any]] = {}
    said = [_message(message, key, unread) for message in value]
    roles = [message.role for message in said]
    plain = [_ROLES.get(role, role) if isinstance(role, str) else role for role in roles]
    system = ""
    if plain[0] == "system":
        plain, system = plain[1:], said[0].text
        if said.pop(0).places:
            raise DataError("the system's turn holds a picture; pictures belong to questions")
    if not plain or plain != ["user", "assistant"] * (len(plain) // 2):
        raise DataError(_expected(key, roles[:6]))
    turns = []
    for number, (asked, answer) in enumerate(zip(said[::2], said[1::2], strict=True), 1):
        if not answer.text.strip():
            raise DataError(f"answer {number} is empty")
        if answer.places:
            what = IMAGE if IMAGE in answer.text else "a picture"
            raise DataError(f"answer {number} holds {what}; pictures belong to questions")
        turns.append(Turn(asked.text, answer.text, f"answer {number}", asked.places))
    held = {
        place: each[0] if each == each[:1] * len(each) else each for place, each in unread.items()
    }
    return Said(tuple(turns), used, system, held)


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
    if not isinstance(content, list):
        return _Message(message.get(role), *placed(text_under(message, value)))
    texts, places = list[str](), list[Any]()
    for part in content:
        known = {"text": part} if isinstance(part, str) else part
        kind = _kind(known)
        if kind == "text":
            _note(known, ("type", "text"), f"{key}[].{value}[]", unread)
            if known.get("text") is not None:
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
    _note(part, ("type", "index", "image_url", *_OWN), where, unread)
    if len(own) > 1:
        raise DataError(f"a part of a message holds {len(own)} pictures: {brief(dict(part))}")
    if own and part.get("base64"):
        return f"data:image/png;base64,{own[0]}" if isinstance(own[0], str) else own[0]
    if own:
        return own[0]
    for key in ("source", "file_id", "file", "data"):
        if part.get(key):
            raise DataError(f"a part of type image holds {key}, of which no picture can be made")
    number = part.get("index")
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _note(
    held: Mapping[str, Any], read: tuple[str, ...], where: str, into: dict[str, list[Any]]
) -> None:
    """Note what is not read."""
    for key, value in held.items():
        if key not in read and value is not None:
            into.setdefault(f"{where}.{key}", []).append(value)
