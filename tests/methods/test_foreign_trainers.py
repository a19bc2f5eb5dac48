"""Other people's trainers: packed rows, steps inside backward, mixed batches."""

from __future__ import annotations

import peft
import pytest
import torch
import trl
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.methods.test_trainers import train
from tests.methods.training import SMALL, attached, learn, trainable
from tests.tuner.llava import tiny_batch
from undrift.errors import ConfigError, UndriftError
from undrift.methods.disco import Disco
from undrift.methods.ewc import Ewc
from undrift.methods.finetune import Finetune
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora
from undrift.registry import METHODS
from undrift.tuner.token_mask import packed_examples

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
EXACT = {"columns": 64, "max_components": 40, "delta": 1.0, "rebase_share": 0.0}
LENGTHS = (5, 8, 3)


def text_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


def rows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 64, (n,), generator=generator) for n in LENGTHS]


def labelled(ids):
    """The first token of an example is never learned, packed or not."""
    labels = ids.clone()
    labels[0] = -100
    return labels


def apart():
    """The examples in a padded batch."""
    ids = torch.nn.utils.rnn.pad_sequence(rows(), batch_first=True)
    labels = [labelled(row) for row in rows()]
    labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in LENGTHS], batch_first=True)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}


def packed(told):
    """The same examples in one row, as TRL and the flattening collator lay them."""
    row = {
        "input_ids": torch.cat(rows())[None],
        "labels": torch.cat([labelled(row) for row in rows()])[None],
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None],
    }
    if told == "cu_seq_lens":
        row["cu_seq_lens_q"] = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    if told == "seq_idx":
        row["seq_idx"] = torch.cat([torch.full((n,), i) for i, n in enumerate(LENGTHS)])[None]
    return row


def seen(method, batch):
    model = text_model()
    torch.manual_seed(0)
    model = method.attach(model)
    method.task_start(model, 1, 1)
    model.train()
    model(**batch, use_cache=False).loss.backward()
    method.task_end(model)
    return {
        name: ((each.history.V * each.history.s).float() @ each.history.V.mT.float(), each.cz)
        for name, each in method.statistics.items()
    }


@pytest.mark.foreign("7.4")
@pytest.mark.parametrize("told", ["positions", "cu_seq_lens", "seq_idx"])
@pytest.mark.parametrize("weights", ["share", "answer"])
@pytest.mark.parametrize("kind", [Same, SteadyLora])
def test_packed_examples_weigh_what_they_do_alone(kind, weights, told):
    options = EXACT | {"token_weights": weights}
    expected = seen(kind(**SMALL, **options), apart())
    found = seen(kind(**SMALL, **options), packed(told))
    for name, pair in expected.items():
        for mine, theirs in zip(found[name], pair, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.max()))


@pytest.mark.foreign("7.4")
def test_the_same_tokens_are_sampled_packed_or_not():
    options = EXACT | {"token_weights": "same", "token_fraction": 0.5}
    expected = seen(SteadyLora(**SMALL, **options), apart())
    found = seen(SteadyLora(**SMALL, **options), packed("positions"))
    for name, (C, _) in expected.items():
        torch.testing.assert_close(found[name][0], C, rtol=1e-3, atol=1e-5 * float(C.max()))


@pytest.mark.foreign("7.4")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"position_ids": torch.tensor([[0, 1, 2, 3]])}, None),
        ({"position_ids": torch.tensor([[0, 1, 0], [0, 1, 2]])}, [[0, 0, 1], [2, 2, 2]]),
        ({"position_ids": torch.tensor([[2, 3, 2, 3]])}, [[0, 0, 1, 1]]),
        ({"position_ids": torch.tensor([[7]])}, None),
        (  # left padding, whose positions are anything
            {
                "position_ids": torch.tensor([[1, 1, 0, 1]]),
                "attention_mask": torch.tensor([[0, 0, 1, 1]]),
            },
            None,
        ),
        ({"position_ids": torch.tensor([[[0, 1, 1, 1, 2, 0, 1]]] * 3)}, [[0] * 5 + [1] * 2]),
        ({"position_ids": torch.tensor([[[0, 0, 0, 0, 2, 3, 4]]] * 3)}, None),  # a picture first
        ({"cu_seq_lens_q": torch.tensor([0, 1, 3])}, [[0, 1, 1]]),
        ({}, None),
    ],
)  # fmt: skip
def test_where_an_example_begins(given, expected):
    found = packed_examples(given)
    assert (found if found is None else found.tolist()) == expected


@pytest.mark.foreign("7.4")
@pytest.mark.parametrize("kind", [Disco, Ewc])
def test_methods_that_take_a_row_for_an_example_refuse_packed_ones(kind):
    method = kind(**SMALL)
    torch.manual_seed(0)
    model = method.attach(text_model())
    with pytest.raises(ConfigError, match="packed row holds several"):
        if kind is Ewc:
            method.bind(model)
            method._loader = [packed("positions")]
            method.task_end(model)
        else:
            method.task_start(model, 1, 1)
            model.train()(**packed("positions"))


# ---------------------------------------------------------------- steps inside backward


class Layerwise(torch.optim.Optimizer):
    """What galore_adamw_layerwise is: a dummy, and one optimiser hanging on each parameter."""

    def __init__(self, params, late=False, **_):
        params = list(params)
        super().__init__(params, {"lr": 1e-3})
        self.late = late
        for p in params:
            own = torch.optim.AdamW([p], lr=1e-3)

            def move(p, own=own):
                own.step()
                own.zero_grad()

            if late:  # hangs on the tensors, so that nobody sees it beforehand
                p.register_hook(lambda g, p=p: p.data.sub_(1e-3 * g))
                p.register_post_accumulate_grad_hook(move).remove()
            else:
                p.register_post_accumulate_grad_hook(move)

    def step(self, closure=None):
        pass


class Lomo(torch.optim.Optimizer):
    def __init__(self, params, **_):
        super().__init__(list(params), {"lr": 1e-3})

    def fused_backward(self, loss, lr):
        loss.backward()


@pytest.mark.foreign("7.5")
@pytest.mark.parametrize("optimizer", [Layerwise, Lomo])
@pytest.mark.parametrize("kind", [Same, SteadyLora, Ewc])
def test_an_optimiser_that_steps_inside_backward_is_refused(kind, optimizer):
    method = kind(**SMALL)
    with pytest.raises(ConfigError, match="inside the backward pass"):
        learn(method, attached(method), 1, steps=1, optimizer=optimizer)


@pytest.mark.foreign("7.5")
def test_one_that_nobody_sees_beforehand_is_refused_at_its_second_step():
    method = SteadyLora(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    method.task_start(model, 2, 3)
    held = list(method.step_transforms(model))
    from undrift.core.step_hook import StepHook

    optimizer = torch.optim.SGD(held, lr=0.1)
    hook = StepHook(optimizer, lambda: method.step_transforms(model)).attach()
    optimizer.step()
    for p in held:
        with torch.no_grad():
            p.sub_(0.01)
    with pytest.raises(ConfigError, match="inside the backward pass"):
        optimizer.step()
    hook.detach()


@pytest.mark.foreign("7.5")
def test_such_an_optimiser_in_a_trainer_is_refused_before_its_first_step(tmp_path):
    method = Same(**SMALL)
    model = attached(method)
    args = TrainingArguments(
        str(tmp_path),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        max_steps=1,
    )
    optimizer = Layerwise(p for p in model.parameters() if p.requires_grad)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    data = [{k: v[i] for k, v in tiny_batch((9,) * 2).items()} for i in range(2)]
    trainer = Trainer(
        model, args, train_dataset=data, callbacks=[method], optimizers=(optimizer, schedule)
    )
    with pytest.raises(ConfigError, match="inside the backward pass"):
        trainer.train()


@pytest.mark.foreign("7.5")
def test_where_nothing_is_protected_any_optimiser_will_do():
    method = Finetune(**SMALL)
    learn(method, attached(method), 1, steps=1, optimizer=Layerwise)


# ---------------------------------------------------------------- arguments of PEFT


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize("kind", [Same, Disco])
@pytest.mark.parametrize("argument", ["adapter_names", "alora_offsets"])
def test_an_adapter_for_each_sample_is_refused(kind, argument):
    model = attached(kind(**SMALL))
    batch = tiny_batch()
    batch.pop("labels")
    with pytest.raises(ConfigError, match=argument):
        model(**batch, **{argument: ["default"] * 3})
    with pytest.raises(ConfigError, match=argument):
        model.generate(**batch, **{argument: ["default"] * 3})


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize("kind", [Same, Disco])
def test_what_needs_one_weight_is_refused(kind):
    model = attached(kind(**SMALL))
    for action in ("merge_and_unload", "merge_adapter"):
        with pytest.raises(UndriftError, match="merge"):
            getattr(model, action)()
    with pytest.raises(UndriftError, match="cannot be added up"):
        model.add_weighted_adapter(["default"], [1.0], "both")


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_B.default.bias"),
        ({"rank_pattern": {"q_proj": 3}}, "one rank"),
        ({"trainable_token_indices": [5]}, "trainable_tokens_delta"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*lora_bias:UserWarning")
def test_what_a_lora_trains_and_nobody_watches_is_named(options, said):
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"target_modules": ["q_proj", "k_proj"], "r": 4} | options)
    model = peft.get_peft_model(text_model(), config)
    with pytest.raises(ConfigError, match=said):
        SteadyLora().task_start(model, 1, 3)


@pytest.mark.foreign("7.6")
def test_a_forward_pass_that_goes_round_the_lora_is_noticed_at_the_first_step():
    method = SteadyLora(**SMALL)
    model = attached(method)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            module.forward = lambda x, m=module, A=A, B=B: m.base_layer(x) + x @ A.mT @ B.mT
    with pytest.raises(ConfigError, match="no input of the LoRA was seen"):
        learn(method, model, 1, steps=2)


@pytest.mark.foreign("7.4")
def test_rows_that_do_not_say_where_examples_begin_are_refused(tmp_path):
    config = trl.SFTConfig(
        str(tmp_path), packing=True, packing_strategy="wrapped", use_cpu=True, bf16=False
    )
    method = SteadyLora(token_weights="share", **SMALL)
    model = attached(method)
    with pytest.raises(ConfigError, match="where examples begin"):
        method.on_train_begin(config, TrainerState(), TrainerControl(), model=model)


@pytest.mark.parametrize("name", ["finetune", "osf", "ewc", "moelora", "nearlora", "riemannian"])
def test_what_a_trainer_cast_is_learned_in_float32(name, tmp_path):
    method = METHODS.load(name)(**SMALL)
    model = attached(method)
    for p in trainable(model).values():  # as TRL does for 4-bit models
        p.data = p.data.bfloat16()
    train(method, model, 1, tmp_path)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    train(method, model, 2, tmp_path)
