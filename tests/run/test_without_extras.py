"""What an extra brings is asked for in one line where it is not installed."""

from __future__ import annotations

import importlib

import pytest

from undrift.errors import ConfigError, MissingExtra


@pytest.fixture
def absent(monkeypatch):
    """Let packages be missing."""
    real = importlib.import_module

    def without(*names):
        def import_module(name, package=None):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, package)

        for module in ("chat_page.importlib", "evaluators.lm_eval_scores"):
            monkeypatch.setattr(f"undrift.run.{module}.import_module", import_module)

    return without


def test_chat_says_what_it_needs(absent):
    from undrift.run.chat_page import load_gradio

    absent("gradio")
    with pytest.raises(MissingExtra, match=r"pip install 'undrift\[chat\]'"):
        load_gradio()


def test_eval_says_what_lm_eval_needs(absent):
    from undrift.run.evaluators.lm_eval_scores import LmEval

    absent("lm_eval")
    with pytest.raises(MissingExtra, match=r"pip install 'undrift\[lm-eval\]'"):
        LmEval(["arc_easy"])


def test_options_of_lm_eval_need_a_task():
    from undrift.cli.ask import evaluate

    with pytest.raises(ConfigError, match="belong to --lm-eval TASK"):
        evaluate(adapter="x", with_base=True)
