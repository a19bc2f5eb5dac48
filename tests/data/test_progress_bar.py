"""A bar is over when its block is, whatever ends it."""

from __future__ import annotations

import threading

import pytest

from undrift.data.progress_bar import bar


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_of_a_bar_is_left_after_an_error_in_its_loop(shown):
    before = set(threading.enumerate())
    with pytest.raises(KeyError), bar([1, 2, 3], "counting", shown=shown) as numbers:
        kept = numbers  # as the frames of an error that is kept do
        for number in kept:
            raise KeyError(number)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # it was told to stop, and may be in its last round
        assert not thread.is_alive()


def test_all_are_gone_through():
    with bar(iter("abc"), "reading", total=3, shown=False) as letters:
        assert list(letters) == ["a", "b", "c"]
