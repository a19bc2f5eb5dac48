"""ModalPrompt: prompts where they belong, chosen for each sample by prototypes that learn."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch

from tests.methods.training import SMALL, attached, learn
from tests.precision import assert_same
from tests.tuner.llava import IMAGE_TOKEN, tiny_llava
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.modalprompt import ModalPrompt
from undrift.registry import METHODS
from undrift.tuner.soft_prompt import Insertion, SoftPrompts, soft_prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
M = 4  # tokens of a prompt
OPTIONS = {**SMALL, "prompt_length": M, "top_k": 2}
BOS, PICTURE = 1, [IMAGE_TOKEN] * 4


def made(tasks: int = 3, **options) -> tuple[ModalPrompt, torch.nn.Module, SoftPrompts]:
    """A method that has learned some tasks, a step each."""
    method = ModalPrompt(**{**OPTIONS, **options})
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=1)
    return method, model.eval(), soft_prompts(model)


def batch(rows: list[list[int]], side: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    """Samples given by their tokens; each with pictures of its own, wherever it stands."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    pixels = [
        torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed + row[5]))
        for row in rows
        if IMAGE_TOKEN in row
    ]
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"pixel_values": torch.stack(pixels)} if pixels else {})


LONG = [BOS, *PICTURE, *range(5, 20)]
SHORT = [BOS, *PICTURE, 30, 31, 32]
NO_BOS = [*PICTURE, 40, 41, 42, 43]
NO_PICTURE = [BOS, 50, 51, 52, 53, 54]
GREEDY = {"do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
ALL = [LONG, SHORT, NO_BOS, NO_PICTURE]


def spied(monkeypatch) -> list[torch.Tensor]:
    """What is chosen from now on, a prefill each."""
    seen: list[torch.Tensor] = []

    def note(self, name, value):
        if name == "chosen" and value is not None:
            seen.append(value.detach())
        object.__setattr__(self, name, value)

    monkeypatch.setattr(Insertion, "__setattr__", note)
    return seen


@torch.no_grad()
def by_hand(model, row: list[int], rows: torch.Tensor) -> torch.Tensor:
    """Logits of one sample with its prompts put behind BOS by hand, in the base model."""
    base = model.get_base_model()
    own = batch([row])
    embeds = base.get_input_embeddings()(own["input_ids"])
    if "pixel_values" in own:
        features = base.get_image_features(own["pixel_values"]).pooler_output
        embeds[own["input_ids"] == IMAGE_TOKEN] = torch.cat(list(features))
    start = int(row[0] == BOS)
    embeds = torch.cat([embeds[:, :start], rows[None], embeds[:, start:]], 1)
    hidden = base.get_decoder().forward(inputs_embeds=embeds).last_hidden_state
    kept = torch.cat(
        [hidden[:, : max(start - 1, 0)], hidden[:, max(start - 1, 0) + len(rows) :]], 1
    )
    return base.lm_head(kept)[0, -len(row) :]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompts_stand_behind_the_first_token_whatever_the_padding(side, monkeypatch):
    model = made()[1]
    seen = spied(monkeypatch)
    given = batch(ALL, side)
    with torch.no_grad():
        logits = model(**given).logits
    assert logits.shape[:2] == given["input_ids"].shape and seen[0].shape == (4, 2 * M, 24)
    for i, row in enumerate(ALL):
        got = logits[i][given["attention_mask"][i].bool()]
        want = by_hand(model, row, seen[0][i])
        first = int(row[0] != BOS)  # without BOS the last prompt has no place in the output
        torch.testing.assert_close(got[first:], want[first:], rtol=1e-4, atol=1e-5)


def test_a_sample_gets_the_same_prompts_and_answer_alone_and_in_any_batch(monkeypatch):
    model = made()[1]
    seen = spied(monkeypatch)
    options = GREEDY | {"max_new_tokens": 5, "min_new_tokens": 5}
    together = model.generate(**batch(ALL), **options)[:, -5:]
    assert len(seen) == 1  # chosen at prefill, not again while decoding
    for i, row in enumerate(ALL):
        alone = model.generate(**batch([row]), **options)[:, -5:]
        assert torch.equal(seen[-1][0], seen[0][i])
        assert torch.equal(alone[0], together[i])
    beams = model.generate(**batch(ALL), num_beams=3, **options)
    assert beams.shape[0] == len(ALL)


def test_decoding_with_a_cache_equals_reading_everything_at_once(monkeypatch):
    model = made()[1]
    out = model.generate(
        **batch(ALL), **GREEDY, max_new_tokens=4, min_new_tokens=4, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    tokens = out.sequences[:, -4:].tolist()
    seen = spied(monkeypatch)
    with torch.no_grad():
        model(**batch(ALL))
    for i, row in enumerate(ALL):
        want = by_hand(model, [*row, *tokens[i][:-1]], seen[0][i])[-4:]
        got = torch.stack([step[i] for step in out.logits])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_answers_do_not_decide_about_prompts(monkeypatch):
    model = made()[1]
    seen = spied(monkeypatch)
    for answer in ([60, 61], [9, 9]):
        given = batch([[*LONG, *answer]])
        labels = given["input_ids"].clone()
        labels[:, :-2] = -100
        model(**given, labels=labels)
    assert torch.equal(*seen)


def test_labels_of_inserted_tokens_are_ignored(monkeypatch):
    model = made()[1]
    seen = spied(monkeypatch)
    row = [*SHORT, 33, 34]
    labels = torch.tensor([[-100] * len(SHORT) + [33, 34]])
    with torch.no_grad():
        loss = model(**batch([row]), labels=labels).loss
    logits = by_hand(model, row, seen[0][0])
    want = torch.nn.functional.cross_entropy(logits[-3:-1], torch.tensor([33, 34]))
    torch.testing.assert_close(loss, want)


def test_each_of_the_cosine_losses_has_a_gradient_on_f_and_on_the_prompt():
    for weight, moves in ((1.0, True), (0.0, False)):
        method, model, prompts = made(tasks=2, match_weight=weight)
        model.train()
        given = batch([LONG, SHORT])
        labels = given["input_ids"].clone()
        labels[:, :-2] = -100
        method.loss(model, given | {"labels": labels}).backward()
        up = prompts.soft_prompt_up["default"].weight.grad
        image, text = (torch.zeros(2, 24) if up is None else up).split(24)
        assert bool(image.any()) is bool(text.any()) is moves
        assert prompts.soft_prompt_P["default"].grad.any()


def test_the_losses_are_one_minus_the_mean_cosines_added_to_the_models_own():
    method, model, prompts = made(tasks=2)
    given = batch([LONG, NO_PICTURE])
    labels = given["input_ids"].clone()
    labels[:, :-2] = -100
    losses = {}
    for weight in (0.0, 1.0):
        method.config = type(method.config)(**{**OPTIONS, "match_weight": weight})
        losses[weight] = method.loss(model.train(), given | {"labels": labels})
    prompt = []
    model.get_base_model().get_decoder()  # features as the method saw them
    from undrift.methods.shared.prompt_features import features
    from undrift.tuner.forward import ForwardContext

    ForwardContext.of(model).on_prompt = prompt.append
    with torch.no_grad():
        model.eval()
        prompts.enable_adapters(False)
        model(**given, labels=labels)
    found = features(prompt[0], method._centre)
    p = prompts.prototype("default")
    cos = torch.nn.functional.cosine_similarity
    want = 1 - cos(found.of["image"][:1], p["image"][None])[0]  # one sample has no picture
    want = want + 1 - cos(found.of["text"], p["text"][None]).mean()
    torch.testing.assert_close(losses[1.0] - losses[0.0], want, rtol=1e-3, atol=1e-5)


def test_the_losses_weigh_the_same_where_a_step_adds_up_parts_of_its_batch():
    given = batch([LONG, SHORT])
    labels = given["input_ids"].clone()
    labels[:, :-2] = -100
    extra = {}
    for parts in (1, 2):
        found = []
        for weight in (0.0, 1.0):
            method, model, _ = made(tasks=2, match_weight=weight)
            method._args = SimpleNamespace(gradient_accumulation_steps=parts)
            given_items = {"num_items_in_batch": torch.tensor(4)}
            found.append(method.loss(model.train(), given | {"labels": labels} | given_items))
        extra[parts] = found[1] - found[0]
    torch.testing.assert_close(extra[1], 2 * extra[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("averaged", "parts"), [(True, 6), (False, 2)])
def test_a_step_has_as_many_parts_as_batches_on_all_processes(averaged, parts):
    method, model, prompts = made(tasks=1)
    args = SimpleNamespace(
        gradient_accumulation_steps=2, average_tokens_across_devices=averaged, world_size=3
    )
    state = SimpleNamespace(global_step=0, max_steps=4)
    optimizer = torch.optim.AdamW(prompts.parameters())
    method.on_train_begin(args, state, None, model=model, optimizer=optimizer)
    assert method.parts_of_step == parts


def test_first_middle_and_last_prompts_learn_and_past_ones_stay_bit_for_bit():
    method = ModalPrompt(**OPTIONS)
    model = attached(method)
    prompts = soft_prompts(model)
    kept = []
    for task in range(1, 13):  # more than ten: the number of tasks is not known in advance
        begun = []

        def note(step, begun=begun):
            begun.append(prompts.soft_prompt_P["default"].detach().clone())

        learn(method, model, task=task, steps=2, on_step=note)
        assert not torch.equal(begun[0], begun[1])
        kept.append(begun[1])
        past = prompts.soft_prompt_past_P["default"]
        assert torch.equal(past, torch.stack(kept)[:-1]) and not past.requires_grad
    assert prompts.soft_prompt_past["default"].shape == (11, 2, 24)


def test_what_a_trainer_has_cast_is_float32_again_when_a_task_begins():
    method = ModalPrompt(**OPTIONS)
    model = attached(method)
    for task in (1, 2):
        soft_prompts(model).bfloat16()
        learn(method, model, task=task, steps=1)
        held = soft_prompts(model).state_dict().values()
        assert {each.dtype for each in held} == {torch.float32}


def test_training_takes_the_best_past_prompts_and_the_new_one_last(monkeypatch):
    _, model, prompts = made(tasks=3)
    model.train()
    seen = spied(monkeypatch)
    given = batch([LONG, SHORT])
    model(**given)
    past, P = prompts.soft_prompt_past_P["default"], prompts.soft_prompt_P["default"]
    for row in seen[0].split(M, dim=1)[0]:
        assert any(torch.equal(row, one) for one in past)
    assert all(torch.equal(row, P) for row in seen[0][:, M:])


def test_at_test_the_best_is_last_and_the_oracle_puts_the_task_asked_there(monkeypatch):
    method, model, prompts = made(tasks=3)
    seen = spied(monkeypatch)
    method.asked = 1
    with torch.no_grad():
        model(**batch(ALL))
    assert method.facts()["prompts"] == len(ALL) and method.facts() == {}
    told, model, prompts = made(tasks=3, oracle=True)
    with pytest.raises(ConfigError, match="needs to be told"):
        model(**batch(ALL))
    told.asked = 1
    with torch.no_grad():
        model(**batch(ALL))
    first = prompts.soft_prompt_past_P["default"][0]
    assert all(torch.equal(row, first) for row in seen[-1][:, -M:])


def test_a_prompt_near_its_samples_is_found(monkeypatch):
    """Learned with a picture's own prototype, a task is identified by it."""
    method, model, prompts = made(tasks=2)
    found = []
    monkeypatch.setattr(method, "_scores", lambda f, i, t: found.append(f) or plain(f, i, t))
    plain = ModalPrompt._scores.__get__(method)
    with torch.no_grad():
        model(**batch([LONG]))
        features = found[0]
        place = prompts.soft_prompt_past["default"]
        place[0, 0], place[0, 1] = features.of["image"][0], features.of["text"][0]
    method.asked = 1
    with torch.no_grad():
        model(**batch([LONG]))
    assert method.facts() == {"identified": 100.0, "prompts": 1}


def test_without_its_method_an_adapter_is_refused_not_ignored(tmp_path):
    method, model, _ = made(tasks=2)
    method.save_state(model, tmp_path)
    alone = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    with pytest.raises(ConfigError, match="needs its method"):
        alone(**batch([LONG]))
    with torch.no_grad(), alone.disable_adapter():
        want = tiny_llava()(**batch([LONG])).logits
        assert_same(alone(**batch([LONG])).logits, want)


def test_another_length_or_width_does_not_fit(tmp_path):
    method, model, _ = made(tasks=2)
    method.save_state(model, tmp_path)
    for changed in ({"prompt_length": M + 1}, {"bottleneck": 5}):
        other = ModalPrompt(**{**OPTIONS, **changed})
        with pytest.raises(AdapterMismatch, match="does not fit"):
            other.load_state(attached(other), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"prompt_length": 0}, {"top_k": 0}, {"image_share": 1.5}, {"bottleneck": 0}]
)
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        attached(METHODS.load("modalprompt")(**wrong))
