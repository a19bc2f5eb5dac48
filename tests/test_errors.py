from __future__ import annotations

import pytest

from undrift import errors
from undrift.errors import ConfigError, MissingExtra, UndriftError, UnknownName


def test_every_exception_is_an_undrift_error():
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert {e.__name__ for e in classes} == {
        "UndriftError",
        "ConfigError",
        "UnknownName",
        "MissingExtra",
        "DataError",
        "RunDirError",
        "AdapterMismatch",
        "TrainingDiverged",
    }
    assert all(issubclass(e, UndriftError) for e in classes)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(MissingExtra, ImportError)


def test_the_tree_in_the_docstring_names_every_exception():
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    for exception in classes:
        assert exception.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smae", "unknown method 'smae'; did you mean 'same'? known: joint, moelora, same"),
        ("SAME", "unknown method 'SAME'; did you mean 'same'? known: joint, moelora, same"),
        ("xyzzy", "unknown method 'xyzzy'; known: joint, moelora, same"),
    ],
)
def test_unknown_offers_the_nearest_name(name, message):
    error = errors.unknown("method", name, ["same", "moelora", "joint"])
    assert isinstance(error, UnknownName)
    assert str(error) == message


def test_unknown_with_nothing_known():
    assert str(errors.unknown("order", "x", [])) == "unknown order 'x'; known: (none)"


def test_missing_extra_holds_the_command_that_mends_it():
    error = errors.missing_extra("rdkit", "pocket", "the task molecules")
    assert "pip install 'undrift[pocket]'" in str(error)
    assert error.name == "rdkit"
