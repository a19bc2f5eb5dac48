"""LLaVA-1.5-7B on a GPU: a block, a whole step and answers, beside PEFT's LoRA and a plain loop.

Weights are random and made on the device; base in bfloat16, adapters float32 under autocast, as a
run trains them. Time is that of CUDA events, variants in turn. CoIN's own code is not here: the
loop is Eq. 2 as its layer computes it, one expert after the other.

Without a CUDA device the same code runs on tiny shapes, so that it is known to run: what it prints
then says nothing about a GPU, and nothing is written.

    python -m benchmarks.gpu --json docs/results/performance
"""

from __future__ import annotations

import argparse
import gc
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.growth import (
    METHODS,
    Learner,
    Model,
    Passes,
    attached,
    learner,
    lora,
    plain,
    sharing,
)
from benchmarks.meter import Bar, Round, measure, median
from benchmarks.table import Cell, Table
from benchmarks.variants import FFN, Loop, N, R
from undrift.methods.finetune import Finetune
from undrift.methods.moelora import MoeLora

T = TypeVar("T", bound=nn.Module)
CHECKPOINTED = {"use_reentrant": False}


@dataclass(frozen=True)
class Shapes:
    """How large everything is.

    Attributes:
        device: Where it runs.
        dtype: Of the base.
        d: The width of the language model.
        m: The width inside its blocks.
        layers: Its layers.
        heads: Its heads.
        vocabulary: Its tokens, that of a picture included, which is the last.
        tower: Width, inner width, layers, heads, side of a picture and of a patch.
        batch: Examples a step.
        length: Tokens of each, those of the picture included.
        new: Tokens of an answer.
        rounds: Rounds that count, of blocks and of whole steps.
    """

    device: str
    dtype: torch.dtype
    d: int
    m: int
    layers: int
    heads: int
    vocabulary: int
    tower: tuple[int, int, int, int, int, int]
    batch: int
    length: int
    new: int
    rounds: tuple[int, int]

    @property
    def patches(self) -> int:
        """How many tokens a picture has."""
        return (self.tower[4] // self.tower[5]) ** 2


def llava(dtype: torch.dtype = torch.bfloat16) -> Shapes:
    """LLaVA-1.5-7B, at the paper's batch of 6."""
    tower = (1024, 4096, 24, 16, 336, 14)
    sizes = (4096, 11008, 32, 32, 32064, tower, 6, 700, 64)
    return Shapes("cuda", dtype, *sizes, rounds=(30, 10))


def tiny(dtype: torch.dtype = torch.float32) -> Shapes:
    """What runs everywhere in seconds, and tells nothing."""
    return Shapes("cpu", dtype, 32, 48, 2, 2, 64, (16, 24, 2, 2, 8, 4), 2, 10, 4, rounds=(2, 2))


# ------------------------------------------------------------ time, memory, synchronisation


def timed(shapes: Shapes, variants: Mapping[str, Callable[[], object]], rounds: int) -> list[Round]:
    """Take the seconds of each variant, a round after the other: by CUDA events where there are."""
    if shapes.device == "cpu":
        return measure(variants, rounds)
    names, taken = list(variants), []
    for number in range(rounds + 2):
        start, marks = number % len(names), {}
        for name in names[start:] + names[:start]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            variants[name]()
            end.record()
            marks[name] = begin, end
        torch.cuda.synchronize()
        taken.append({n: begin.elapsed_time(end) / 1000 for n, (begin, end) in marks.items()})
    return taken[2:]


@contextmanager
def synchronisations_refused() -> Iterator[None]:
    """Within this context whatever makes the host wait for a CUDA device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(step: Callable[[], None]) -> str | None:
    """What the first wait of the host for the device in a step is; None if there is none."""
    try:
        with synchronisations_refused():
            step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).splitlines()[0]
    return None


def allocated(shapes: Shapes) -> int:
    return 0 if shapes.device == "cpu" else torch.cuda.memory_allocated()


@dataclass(frozen=True)
class Built:
    """A variant that is ready to be timed.

    Attributes:
        learner: Takes steps.
        own: Bytes that it holds beside the base: adapter, optimiser, state.
    """

    learner: Learner
    own: int

    def peak(self, base: int) -> int:
        """Bytes at the highest point of a step, as if the variant were alone with the base."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.learner.step()
        torch.cuda.synchronize()
        return base + self.own + torch.cuda.max_memory_allocated() - before


def built(shapes: Shapes, make: Callable[[], Learner]) -> Built:
    """Make a variant and let it take a step, so that its optimiser has all that it keeps."""
    gc.collect()
    before = allocated(shapes)
    learner = make()
    learner.step()
    gc.collect()  # optimisers of the tasks before
    return Built(learner, allocated(shapes) - before)


def looped(model: nn.Module) -> nn.Module:
    """Put Eq. 2 as a loop on every linear of the feed-forward blocks of a language model."""
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] == "mlp" and all(hasattr(module, own) for own in FFN):
            for own in FFN:
                base: Any = getattr(module, own)
                loop = Loop(base)
                for part in (loop.A, loop.B, loop.router):
                    part.to(base.weight.device)
                setattr(module, own, loop)
    return model


# ------------------------------------------------------------ what is compared

LORA = "PEFT LoRA 64"
PACKED, LOOP = "packed", "loop over experts"


def compared(
    shapes: Shapes, variants: Mapping[str, Callable[[], Learner]], base: int, rounds: int, kind: str
) -> tuple[list[dict[str, Cell]], list[Bar]]:
    """Build variants of one base, time them, and hold them to the bars.

    Args:
        shapes: How large they are.
        variants: By name, what makes each.
        base: Bytes of the base.
        rounds: How many rounds.
        kind: What is compared, for the names of the bars.

    Returns:
        A row a variant, and the bars.
    """
    ready = {name: built(shapes, make) for name, make in variants.items()}
    taken = timed(shapes, {name: each.learner.step for name, each in ready.items()}, rounds)
    on_gpu = shapes.device != "cpu"
    peaks = {name: each.peak(base) for name, each in ready.items()} if on_gpu else {}
    rows: list[dict[str, Cell]] = []
    bars: list[Bar] = []
    for name, each in ready.items():
        ratio = median(taken, lambda s, name=name: s[name] / s[LORA])
        waited = waits(each.learner.step) if on_gpu else None
        state = each.learner.kept + each.learner.sums
        rows.append(
            {
                "variant": name,
                "ms": 1000 * statistics.median(s[name] for s in taken),
                f"/ {LORA}": ratio,
                "peak GB": peaks[name] / 1e9 if on_gpu else None,
                "state GB": state / 1e9,
                "waits": (waited or "no") if on_gpu else None,
            }
        )
        if name in (PACKED, *METHODS):
            bars.append(Bar(f"{kind}: {name} / {LORA}", ratio, 1.0 if name == PACKED else 1.05))
            if kind == "block":  # in a whole step transformers itself may wait; the table says so
                bars.append(Bar(f"{kind}: {name} waits for the device", waited is not None, 0))
        if name in METHODS and on_gpu:
            more = 4 * (each.learner.adapter - ready[LORA].learner.adapter)  # gradient, moments
            share = peaks[name] / (peaks[LORA] + state + more)
            bars.append(Bar(f"{kind}: peak memory of {name} / (LoRA + state)", share, 1.02))
    loop = median(taken, lambda s: s[LOOP] / s[PACKED])
    bars.append(Bar(f"{kind}: {LOOP} / packed", loop, 2.0, at_most=False))
    return rows, bars


def block(shapes: Shapes) -> Table:
    """A feed-forward block: forward, backward, statistics, the step of AdamW and its transforms."""
    torch.manual_seed(0)
    base = _made(shapes, lambda: Model(shapes.d, shapes.m)).requires_grad_(False)
    size = (shapes.batch, shapes.length, shapes.d)

    def passes(model: nn.Module, task: int) -> Callable[[], None]:
        generator = torch.Generator(shapes.device).manual_seed(task)
        draw = {"generator": generator, "device": shapes.device}
        spectrum = torch.rand(shapes.d, **draw).pow(8) + 0.01
        x, dy = (torch.randn(size, **draw) * s for s in (spectrum, 1.0))
        x, dy = x.to(shapes.dtype).requires_grad_(), dy.to(shapes.dtype)

        def run() -> None:
            x.grad = None
            for p in model.parameters():
                p.grad = None
            with _autocast(shapes):
                y = model(inputs_embeds=x)
            y.backward(dy)

        return run

    def own(name: str) -> Callable[[], Learner]:
        def make() -> Learner:
            method = METHODS[name](experts=N, rank=R)
            return learner(method, attached(method, sharing(base)), passes)

        return make

    packed = METHODS["same"](experts=N, rank=R, router=False, expert=False)  # which is moelora
    variants: dict[str, Callable[[], Learner]] = {
        LORA: lambda: plain(lora(sharing(base), N * R), passes),
        PACKED: lambda: plain(attached(packed, sharing(base)), passes),
        LOOP: lambda: plain(looped(sharing(base)), passes),
        **{name: own(name) for name in METHODS},
    }
    rows, bars = compared(shapes, variants, _bytes(base), shapes.rounds[0], "block")
    return _table(shapes, "block", f"A block, {shapes.batch} x {shapes.length} tokens", rows, bars)


def whole(shapes: Shapes) -> list[Table]:
    """A whole step under gradient checkpointing, and answers with adapters on and off."""
    torch.manual_seed(0)
    config = config_of(shapes)
    base = _made(shapes, lambda: LlavaForConditionalGeneration(config)).requires_grad_(False)
    given = inputs(shapes)
    passes = _learning(shapes, given)

    def ready(model: nn.Module) -> nn.Module:
        model.train().gradient_checkpointing_enable(CHECKPOINTED)  # pyright: ignore
        return model

    models: dict[str, nn.Module] = {}

    def put(name: str, method: Any) -> nn.Module:
        models[name] = ready(method.attach(sharing(base)))
        return models[name]

    def own(name: str) -> Callable[[], Learner]:
        method = METHODS[name](experts=N, rank=R)
        return lambda: learner(method, put(name, method), passes)

    alike: dict[str, Any] = {"experts": N, "rank": R}
    variants: dict[str, Callable[[], Learner]] = {
        LORA: lambda: plain(put(LORA, Finetune(**alike)), passes),
        PACKED: lambda: plain(put(PACKED, MoeLora(**alike)), passes),
        LOOP: lambda: plain(ready(looped(sharing(base))), passes),
        **{name: own(name) for name in METHODS},
    }
    rows, bars = compared(shapes, variants, _bytes(base), shapes.rounds[1], "step")
    title = f"A whole step, {shapes.batch} x {shapes.length} tokens, gradient checkpointing"
    step = _table(shapes, "step", title, rows, bars)
    return [step, answers(shapes, models, given)]


def answers(shapes: Shapes, models: Mapping[str, nn.Module], given: Mapping[str, Tensor]) -> Table:
    """Tokens a second of greedy answers that are all equally long, prompts included."""
    asked = {name: value for name, value in given.items() if name != "labels"}
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": shapes.new, "pad_token_id": 0}

    def say(model: Any, *, on: bool) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            with _autocast(shapes):
                model.generate(**asked, **options, max_new_tokens=shapes.new)

        def without() -> None:
            with model.disable_adapter():
                run()

        return run if on else without

    variants: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        model.eval().gradient_checkpointing_disable()  # pyright: ignore
        variants[name] = say(model, on=True)
    variants["adapters off"] = say(models[LORA], on=False)
    taken = timed(shapes, variants, shapes.rounds[1])
    rows: list[dict[str, Cell]] = [
        {
            "variant": name,
            "tokens / s": shapes.batch * shapes.new / statistics.median(s[name] for s in taken),
            "time / adapters off": median(taken, lambda s, name=name: s[name] / s["adapters off"]),
        }
        for name in variants
    ]
    title = f"Answers of {shapes.new} tokens to {shapes.batch} prompts of {shapes.length}"
    return _table(shapes, "answers", title, rows, [])


# ------------------------------------------------------------ the model


def config_of(shapes: Shapes) -> LlavaConfig:
    """The configuration of a LLaVA."""
    width, inner, layers, heads, side, patch = shapes.tower
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=side,
            patch_size=patch,
            projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=shapes.vocabulary,
            hidden_size=shapes.d,
            intermediate_size=shapes.m,
            num_hidden_layers=shapes.layers,
            num_attention_heads=shapes.heads,
            num_key_value_heads=shapes.heads,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_index=shapes.vocabulary - 1,
    )


def inputs(shapes: Shapes) -> dict[str, Tensor]:
    """A batch of one picture and random text each, of which the last tenth is to be learned."""
    text = (shapes.batch, shapes.length - shapes.patches)
    with torch.device(shapes.device):
        words = torch.randint(3, shapes.vocabulary - 1, text)
        picture = torch.full((shapes.batch, shapes.patches), shapes.vocabulary - 1)
        ids = torch.cat([picture, words], dim=1)
        labels = ids.clone()
        labels[:, : -max(2, shapes.length // 10)] = -100
        side = shapes.tower[4]
        pixels = torch.randn(shapes.batch, 3, side, side).to(shapes.dtype)
        mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


def _learning(shapes: Shapes, given: Mapping[str, Tensor]) -> Passes:
    def passes(model: nn.Module, task: int) -> Callable[[], None]:
        batch = {**given, "input_ids": given["input_ids"].roll(task, 0)}

        def run() -> None:
            for p in model.parameters():
                p.grad = None
            with _autocast(shapes):
                loss = model(**batch, use_cache=False).loss
            loss.backward()

        return run

    return passes


def _made(shapes: Shapes, make: Callable[[], T]) -> T:
    """Make a module of random weights on the device, in the base's precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(shapes.dtype)
    try:
        with torch.device(shapes.device):
            return make()
    finally:
        torch.set_default_dtype(before)


def _autocast(shapes: Shapes) -> torch.autocast:
    """As a trainer does with bf16: adapters stay float32, products are in the base's precision."""
    return torch.autocast(shapes.device, torch.bfloat16, enabled=shapes.dtype == torch.bfloat16)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _table(
    shapes: Shapes, name: str, title: str, rows: Sequence[dict[str, Cell]], bars: Sequence[Bar]
) -> Table:
    notes = ["random weights; the loop is Eq. 2 as CoIN's layer computes it, not CoIN's own code"]
    if shapes.device == "cpu":
        bars = []
        notes.append("NOT GPU NUMBERS: tiny shapes on a CPU, which say that the code runs, no more")
    return Table(f"gpu-{name}", title, rows, bars, notes, shapes.device)


def tables(shapes: Shapes) -> list[Table]:
    """All of them."""
    return [block(shapes), *whole(shapes)]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the numbers there")
    parser.add_argument("--tiny", choices=("float32", "bfloat16"), help="tiny shapes on the CPU")
    args = parser.parse_args(words)
    warnings.simplefilter("ignore", FutureWarning)
    on_gpu = torch.cuda.is_available() and args.tiny is None
    if args.json is not None and not on_gpu:
        parser.error("there are no GPU numbers to write: no CUDA device is used")
    shapes = llava() if on_gpu else tiny(getattr(torch, args.tiny or "float32"))
    for table in tables(shapes):
        print(table, flush=True)
        if args.json is not None:
            table.write(args.json, f"python -m benchmarks.gpu --json {args.json}")


if __name__ == "__main__":
    main()
