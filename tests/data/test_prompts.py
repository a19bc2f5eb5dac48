"""The training template of LLaVA-1.5: the text of the Hub's, with a mask on the answers."""

from __future__ import annotations

import pytest

from tests.run.tiny import tiny_llava
from undrift.data.prompts import training_template
from undrift.errors import UnknownName

# chat_template.json of llava-hf/llava-1.5-7b-hf, to compare with.
HUB = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def turn(role: str, text: str, images: int = 0):
    pictures = [{"type": "image"} for _ in range(images)]
    return {"role": role, "content": [{"type": "text", "text": text}, *pictures]}


ASKED = [turn("user", "Which colour\nis it?", 1)]
ANSWERED = [*ASKED, turn("assistant", "dark red")]
LONGER = [turn("system", "Be brief."), *ANSWERED, turn("user", "Why?", 2), turn("assistant", "so")]


@pytest.fixture(scope="module")
def processor():
    return tiny_llava()[1]


@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("turns", [ASKED, ANSWERED, LONGER, LONGER[:-1]])
def test_the_text_is_the_hubs(processor, turns, asking):
    def text(template):
        return processor.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=asking, tokenize=False
        )

    ours, hubs = text(training_template("llava_1_5")), text(HUB)
    if turns[-1]["role"] == "assistant":  # the last answer ends with the end token
        assert ours.count("</s>") == 1
        ours = ours.replace("</s>", " ")
    assert ours == hubs
    assert hubs.startswith(("USER: <image>\n", "Be brief. USER: <image>\n"))


def test_the_mask_is_on_the_answers_and_their_end(processor):
    tokenizer = processor.tokenizer
    made = tokenizer.apply_chat_template(
        LONGER, chat_template=training_template("llava_1_5"), return_assistant_tokens_mask=True,
        return_dict=True,
    )  # fmt: skip
    marked = [i for i, on in zip(made["input_ids"], made["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == "dark red so</s>"


def test_an_unknown_family_is_told_the_known_one():
    with pytest.raises(UnknownName, match="did you mean 'llava_1_5'"):
        training_template("llava-1.5")
