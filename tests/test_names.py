"""The names that undrift offers, and that offering them costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import undrift


def test_the_exported_names_are_these():
    assert undrift.__all__ == [
        "PAPER",
        "UNDRIFT",
        "Finetune",
        "Joint",
        "Method",
        "MoeLora",
        "MoeLoraConfig",
        "Same",
        "Settings",
        "SteadyLora",
        "UndriftError",
        "ZeroShot",
        "__version__",
    ]
    assert set(undrift.__all__) <= set(dir(undrift))


@pytest.mark.parametrize("name", undrift.__all__)
def test_every_name_resolves(name):
    assert getattr(undrift, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Smae'"):
        undrift.Smae  # noqa: B018


def test_importing_undrift_imports_nothing_heavy():
    code = (
        "import sys, undrift; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_touching_a_heavy_name_registers_the_adapter_type():
    config = undrift.MoeLoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert PEFT_TYPE_TO_CONFIG_MAPPING[config().peft_type] is config
