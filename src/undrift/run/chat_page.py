"""The page of `undrift chat`: a picture and a question, answered by one or several side by side.

Drawn by gradio, whose files come with it: nothing is asked of any other machine, nothing is counted
or shared, and the page listens on this machine alone.
"""

from __future__ import annotations

import html
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from undrift.errors import ConfigError, UndriftError, missing_extra
from undrift.run.adapters import SavedAdapter
from undrift.run.evaluate import ask
from undrift.rundir.files import temporary_folder

HOST = "127.0.0.1"
_KEPT = 50  # questions asked before that are shown
_FONTS = ["system-ui", "sans-serif"]
_CSS = """
.gradio-container { max-width: min(1100px, 100vw) !important; margin: 0 auto; }
#title h1 { font-size: 1.3rem; margin: 0; }
#title p { margin: .3rem 0 0; color: var(--body-text-color); }
#answers textarea { font-size: 1.1rem; }
#history .wide { overflow-x: auto; contain: inline-size; }
#history table { width: 100%; border-collapse: collapse; margin: .5rem 0 0; }
#history table, #history tr { border: none; }
#history table tr > * {
  text-align: left; vertical-align: top; padding: .4rem .6rem .4rem 0; border: none;
  border-bottom: 1px solid var(--border-color-primary);
}
#history td { min-width: 3rem; max-width: 24rem; overflow-wrap: break-word; }
#history td:first-child { min-width: 7rem; }
@media (max-width: 500px) { #history tr > :nth-child(2) { display: none; } }
#history .other { font-weight: 600; }
footer { display: none !important; }
"""


def load_gradio() -> Any:
    """Import gradio with its counting switched off.

    Returns:
        The package.

    Raises:
        MissingExtra: If it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise missing_extra("gradio", "chat", "undrift chat") from error


@contextmanager
def serving(
    models: Sequence[SavedAdapter], names: Sequence[str], max_new_tokens: int, port: int | None
) -> Iterator[str]:
    """Within this context the page is served.

    Args:
        models: Who answers, from `undrift.run.predict`.
        names: What each is called on the page.
        max_new_tokens: Longest answer, until the page says otherwise.
        port: Where it listens; None for the first free one from 7860 on.

    Yields:
        The page's address.

    Raises:
        MissingExtra: If gradio is not installed.
        ConfigError: If the port is taken.
    """
    gradio = load_gradio()
    with temporary_folder() as folder:  # where gradio puts the pictures that are tried
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        page = chat_page(models, names, max_new_tokens)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                theme=gradio.themes.Default(font=_FONTS, font_mono=["monospace"]),
                css=_CSS,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {HOST}:{port or '7860 to 7959'}: {error}; choose another --port"
            ) from error
        try:
            yield address
        finally:
            page.close()


def chat_page(models: Sequence[SavedAdapter], names: Sequence[str], max_new_tokens: int) -> Any:
    """Make the page, see `serving`; not served yet.

    Args:
        models: Who answers.
        names: What each is called.
        max_new_tokens: Longest answer at first.

    Returns:
        Gradio's `Blocks`.
    """
    gr = load_gradio()

    def answer(picture: str | None, question: str, longest: float, before: list[Any]) -> list[Any]:
        if not question.strip():
            raise gr.Error("write a question first", print_exception=False)
        pictures = (Path(picture),) if picture else ()
        try:
            said = [ask(model, question, pictures, int(longest)) for model in models]
        except UndriftError as error:
            raise gr.Error(str(error), print_exception=False) from error
        row = [question, Path(picture).name if picture else "", *said]
        before = [row, *before][:_KEPT]
        return [*said, _table(names, before), before]

    with gr.Blocks(title="undrift chat", analytics_enabled=False) as page:
        asked = gr.State([])
        gr.HTML(
            "<h1>undrift chat</h1><p>Each question is asked by itself, with the picture that is "
            "shown; nothing that was said before is seen.</p>",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,  # the file as it is: undrift opens it as it does in training
                    format="png",
                    sources=["upload", "clipboard"],
                    height=300,
                )
            with gr.Column(scale=3, min_width=280):
                question = gr.Textbox(
                    label="Question, its format line included",
                    placeholder="Shift+Enter asks",
                    lines=2,
                    max_lines=8,
                    elem_id="question",
                )
                longest = gr.Number(
                    label="Longest answer, in tokens",
                    value=max_new_tokens,
                    minimum=1,
                    precision=0,
                    elem_id="longest",
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Row(elem_id="answers"):
            answers = [
                gr.Textbox(label=name, interactive=False, lines=2, min_width=200) for name in names
            ]
        history = gr.HTML(elem_id="history")
        told = {
            "fn": answer,
            "inputs": [picture, question, longest, asked],
            "outputs": [*answers, history, asked],
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        button.click(**told)
        question.submit(**told)
    return page


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """What was asked before, the last first; answers that differ from the first are bold."""

    def cell(text: str, tag: str = "td", other: bool = False) -> str:
        mark = ' class="other"' if other else ""
        return f"<{tag}{mark}>{html.escape(text)}</{tag}>"

    head = "".join(cell(name, "th") for name in ("question", "picture", *names))
    body = ""
    for question, picture, first, *rest in rows:
        answers = [cell(first), *(cell(said, other=said != first) for said in rest)]
        body += f"<tr>{cell(question)}{cell(picture)}{''.join(answers)}</tr>"
    caption = "Asked before" + ("; what differs from the first answer is bold" * (len(names) > 1))
    table = f"<table><tr>{head}</tr>{body}</table>"
    return f'<p>{caption}</p><div class="wide" tabindex="0">{table}</div>'
