"""Tokens with a meaning of their own in prompts and answers: looked up as tokens, never as text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.run.families import SEEING, template, tokenizer
from undrift.data.doctor_checks import RowQuestion, Split
from undrift.data.prompts import Renderer
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError
from undrift.run.answer import decode
from undrift.run.backbone import Backbone
from undrift.run.lengths import Ruler, lengths

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>"
    "{% else %} {% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'image' %}<|image_pad|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRUCK = "<p><s>old</s> new</p>"


def llama_like(legacy: bool, adds: str = "<s> $A") -> hf.PreTrainedTokenizerFast:
    """A tokenizer of words with a mark for spaces, as LLaMA's, in its old form or its new."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if legacy:
        first = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(first)  # pyright: ignore
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])  # pyright: ignore
    special = ["<unk>", "<s>", "</s>"]
    known = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=known, show_progress=False)
    made.train_from_iterator(["▁user: assistant: what▁is▁old▁new▁dog <p>/▁▁"] * 3, trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=adds, pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<unk>",
    )  # fmt: skip


def qwen_like() -> hf.PreTrainedTokenizerFast:
    """Bytes, and special tokens for turns and for places in a picture; it begins with nothing."""
    marks = ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
    words = tokenizer(*marks, "<|image_pad|>")
    words.eos_token, words.bos_token, words.pad_token = "<|im_end|>", None, "<pad>"
    return words


def tokenised(words, chat: str, *examples: Example) -> tuple[list[list[int]], list[list[int]]]:
    words.chat_template = chat
    renderer = Renderer(words, ())
    prompts = renderer.prompts(examples)
    return renderer.ids(prompts), renderer.answers(examples, prompts)


# ---------------------------------------------------------------- where an answer ends


@pytest.mark.foreign("5.5")
@pytest.mark.parametrize(
    ("words", "chat", "end"),
    [
        (llama_like(True), CHAT, "</s>"),
        (llama_like(False), CHAT, "</s>"),
        (llama_like(False), CHAT.replace("</s>", " "), "</s>"),
        (qwen_like(), CHATML, "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("said", [STRUCK, "a <|im_end|> b", "</s>", "<pad></s> <|im_end|>", "dog"])
def test_only_the_templates_own_end_ends_an_answer(words, chat, end, said):
    _, (answer,) = tokenised(words, chat, Example("x", "what?", (said,)))
    assert words.decode(answer).strip() == said + end
    stop = words.convert_tokens_to_ids(end)
    assert answer[-1] == stop and answer.count(stop) == 1
    assert {words.bos_token_id, words.pad_token_id}.isdisjoint(answer) or words.unk_token


@pytest.mark.foreign("5.5")
def test_an_answer_without_such_a_token_is_what_it_was_and_keeps_its_other_special_tokens():
    words = qwen_like()
    said = "<|object_ref_start|>dog<|object_ref_end|>"
    for more in ("", " <|im_end|> and <s>"):
        _, (answer,) = tokenised(words, CHATML, Example("x", "what?", (said + more,)))
        assert answer[: len(words(said)["input_ids"])] == words(said)["input_ids"]
        assert answer[0] == words.convert_tokens_to_ids("<|object_ref_start|>")


@pytest.mark.foreign("5.5")
def test_a_token_that_cannot_be_spelled_out_is_refused_with_the_example(monkeypatch):
    monkeypatch.setattr("undrift.data.prompts.spelled_out", lambda *_: None)
    example = Example("e7", "what?", (STRUCK,))
    with pytest.raises(DataError, match=r"answer of example 'e7' holds .*'</s>'.* take it out"):
        tokenised(llama_like(True), CHAT, example)


@pytest.mark.foreign("5.5")
@pytest.mark.parametrize("bad", ["what </s> is it?", "a <s> b"])
def test_a_question_that_would_end_or_begin_a_text_is_refused(bad):
    words = llama_like(False)
    words.chat_template = CHAT
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, vocab_size=len(words)))
    collator = Backbone.of("x", model, words).collator()
    collator.encode([Example("e1", "what is it?", (STRUCK,))], answered=True)
    with pytest.raises(DataError, match=r"text of example 'e8' holds '</?s>', which begins or"):
        collator.encode([Example("e8", bad, ("x",))], answered=False)


SMALL = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.foreign("5.6")
@pytest.mark.parametrize("said", ["<|object_ref_start|>dog<|object_ref_end|>", "a <|im_start|> b"])
def test_special_tokens_of_an_answer_survive(said):
    words = qwen_like()
    words.chat_template = CHATML
    end = words.eos_token_id
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL | {"eos_token_id": end}, vocab_size=320))
    backbone = Backbone.of("x", model, words)
    (one,) = backbone.collator().encode([Example("x", "what?", (said,))], answered=True)
    pad = words.pad_token_id
    rows = torch.tensor([[*one.answer, pad, pad], [pad, *one.answer[:-1], end, end]])
    assert decode(backbone, rows) == [said, said]


# ---------------------------------------------------------------- tokens in the place of media


@pytest.fixture(scope="module")
def seeing():
    torch.manual_seed(0)
    return {name: Backbone.of(name, *SEEING[name]()) for name in ("qwen2_5_vl", "internvl")}


@pytest.mark.foreign("5.7")
@pytest.mark.parametrize(
    ("family", "token"),
    [
        ("qwen2_5_vl", "<|image_pad|>"), ("qwen2_5_vl", "<|video_pad|>"),
        ("qwen2_5_vl", "<|vision_start|>"), ("internvl", "<IMG_CONTEXT>"), ("internvl", "<video>"),
        ("internvl", "</img>"),
    ],
)  # fmt: skip
def test_a_token_in_the_place_of_media_is_refused_in_question_answer_and_system(
    family, token, seeing
):
    collator = seeing[family].collator()
    plain = Example("e1", "what is <ref>?", ("it is [1, 2]",))
    collator.encode([plain], answered=True)
    for bad in (
        replace(plain, id="e2", question=f"what is {token}?"),
        replace(plain, id="e2", answers=(f"a {token}",)),
        replace(plain, id="e2", system=f"you see {token}"),
    ):
        with pytest.raises(DataError, match=r"text of example 'e2' holds .*stands for a picture"):
            collator.encode([plain, bad], answered=True)


@pytest.mark.foreign("5.7")
def test_the_doctor_lists_every_one_of_them(folder_of):
    ruler = Ruler.load(str(folder_of("qwen2_5_vl")))
    examples = [
        Example("good", "what?", ("dog",)),
        Example("asked", "what is <|image_pad|>?", ("dog",)),
        Example("said", "what?", ("<|vision_start|>",)),
        Example("ends", "what </s>?", ("dog",)),
    ]
    asked = tuple(RowQuestion(row, example) for row, example in enumerate(examples, 1))
    found = lengths(ruler, [Split("t", "train", None, 4, asked)], {})
    first = found[0]
    assert (first.check, first.severity, [i.what for i in first.items]) == (
        "refused", "error", ["asked", "said", "ends"],
    )  # fmt: skip
    assert "'<|image_pad|>'" in found[0].items[0].reason and "--skip-bad" in found[0].advice


# ---------------------------------------------------------------- where a text begins


@pytest.mark.foreign("5.8")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("before", ["", "{{ bos_token }}", "\n {{ bos_token }}"])
def test_one_start_and_no_end_before_the_answer(legacy, adds, before):
    words = llama_like(legacy, adds)
    examples = [Example("a", "what is it?", ("old dog",)), Example("b", "what?", ("new",))]
    prompts, answers = tokenised(words, before + CHAT, *examples)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert 2 not in prompt and answer.index(2) == len(answer) - 1
        assert prompt.count(1) == (1 if before or adds.startswith("<s>") else 0)


@pytest.mark.foreign("5.8")
@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("before", ["", "{{ bos_token }}", "\n{{ bos_token }}"])
def test_the_processor_makes_the_same_ids_as_the_tokenizer(adds, before, tmp_path):
    model, processor = SEEING["qwen2_5_vl"]()
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=adds, pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    chat = template("<|image_pad|>").replace("{{ bos_token }}", before)
    processor.chat_template = processor.tokenizer.chat_template = chat
    backbone = Backbone.of("x", model, processor)
    collator = backbone.collator()
    encoded = collator.encode(
        [Example("a", "which colour?", ("a",)), Example("b", "?", ("b",))], answered=False
    )
    batch = collator.collate(encoded)
    for row, mask, one in zip(batch["input_ids"], batch["attention_mask"], encoded, strict=True):
        assert row[mask == 1].tolist() == one.prompt
        assert one.prompt.count(1) == (1 if before or adds.startswith("<s>") else 0)
        assert 2 not in one.prompt


@pytest.mark.foreign("5.8")
def test_a_processor_that_starts_texts_itself_does_not_do_so_twice():
    from tests.run.test_unseen import mllama

    model, processor = mllama()
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", 1)]
    )
    processor.chat_template = template("<|image|>").replace("{{ bos_token }}", "")
    collator = Backbone.of("x", model, processor).collator()
    encoded = collator.encode([Example("a", "which?", ("a",))], answered=True)
    assert collator.collate(encoded)["input_ids"][0].tolist()[:2].count(1) == 1


# ---------------------------------------------------------------- forms of templates, system turns


@pytest.mark.foreign("5.9")
def test_a_template_of_texts_is_given_texts(tmp_path):
    for refusing in (False, True):
        model, processor = SEEING["qwen2_5_vl"]()
        start = "{{ 'user: ' + messages[0].content" if refusing else "user: {{ messages[0].content"
        processor.chat_template = start + " }}{% if add_generation_prompt %} said: {% endif %}"
        renderer = Renderer(processor, (), model.config)
        picture = tmp_path / "a.png"
        asked = [Example("a", "what?", ("x",)), Example("b", "what?", ("x",), (picture,))]
        assert renderer.prompts(asked) == [
            "user: what? said: ", "user: <|image_pad|>\nwhat? said: ",
        ]  # fmt: skip
    processor.chat_template = "{{ messages[0].role }}: hello"
    with pytest.raises(ConfigError, match="neither as a list of parts nor as a text"):
        Renderer(processor, (), model.config)


@pytest.mark.foreign("3.6")
def test_a_system_turn_is_written_or_refused():
    words = llama_like(False)
    asked = [Example("a", "what?", ("x",)), Example("b", "what?", ("x",), system="be brief")]
    words.chat_template = CHAT
    one, other = Renderer(words, ()).prompts(asked)
    assert one == "user: what? assistant:" and other == "system: be brief user: what? assistant:"
    first = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    dropped = CHAT.replace("messages %}", "messages if m.role != 'system' %}")
    for chat in (first + CHAT, dropped):
        words.chat_template = chat
        renderer = Renderer(words, ())
        assert renderer.prompts(asked[:1]) == ["user: what? assistant:"]
        with pytest.raises(DataError, match=r"no system turn, and example 'b' has one: 'be brief'"):
            renderer.prompts(asked)
