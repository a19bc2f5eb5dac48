"""The normalisation of answers that VQAv2, VizWiz and TextVQA share, and their soft accuracy.

Written from the public rules, with their oddities: a period survives only before a digit (and from
the 33rd on, since a flag of the regular expression is passed as the count), one comma between
digits changes how ALL punctuation is treated, `none` is the number 0, and four contractions with a
capital letter are never met because the text is lower case by then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

# Written with their apostrophes; what is looked up has lost one.
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_MORE_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll
you'd've
"""


def _contractions() -> dict[str, str]:
    found = {"somebody'd": "somebodyd"}  # the public table has this one the wrong way round
    for form in f"{_ONE_APOSTROPHE} {_MORE_APOSTROPHES}".split():
        places = [place for place, letter in enumerate(form) if letter == "'"]
        found.update({form[:place] + form[place + 1 :]: form for place in places})
    return found


_CONTRACTIONS = _contractions()
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32


def without_punctuation(text: str) -> str:
    """Remove punctuation, or put a space in its place.

    A mark is removed where it stands beside a space anywhere in the text, or where the text has a
    comma between digits; else each of its occurrences becomes a space.
    """
    removes_all = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_a_space or removes_all else " ")
    return _PERIOD.sub("", plain, count=_PERIODS_REMOVED)


def plain_words(text: str) -> str:
    """Fold case, write number words as digits, drop articles, put apostrophes back."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_normalised(text: str) -> str:
    """Normalise a prediction or an answer as the evaluation of VQAv2 does."""
    return plain_words(without_punctuation(without_line_breaks(text)))


def m4c_normalised(text: str) -> str:
    """Normalise a prediction or an answer as the TextVQA evaluation of M4C does.

    It drops every comma and question mark before it looks at punctuation and parts `'s` from its
    word, so that `1,000` is 1000 and `joe's` is `joe 's`.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(without_punctuation(without_line_breaks(text.strip())))


def without_line_breaks(text: str) -> str:
    """Return a text without the space around it, line breaks and tabs as spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def agreement(matches: Sequence[bool]) -> float:
    """Compute the mean over all sets that leave one answer out of min(matches in the set / 3, 1).

    With ten answers of which m match: 0, 0.3, 0.6, 0.9 and 1 for m = 0, 1, 2, 3 and 4 or more.
    """
    return fmean(min((sum(matches) - match) / 3, 1.0) for match in matches)
