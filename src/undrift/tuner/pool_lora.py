"""POOL_LORA: past LoRA experts and new ones on frozen linears, added up by gates, as a PEFT type.

    y = W0 x + scale * sum_i g_i B_i A_i x        A (E, r, d_in), Bt (E, r, d_out)
      = W0 x + scale * Bt^T h                     h = (g_i A_i x)_i, (E r,)

These are two matrix products, however many experts there are. The gate stands between A and B
once, so no cross term B_j A_i arises. Gradients are made for the newest experts, the gates and x;
the past experts need none, and none is computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from undrift.core.routing import added, float32_product
from undrift.errors import ConfigError, unknown
from undrift.tuner.adapted_linear import (
    AdaptedLinear,
    LinearConfig,
    LinearTuner,
    compute_dtype,
    versions,
)
from undrift.tuner.forward import ForwardContext, Gates
from undrift.tuner.frozen import Frozen
from undrift.tuner.peft_internals import add_type, device_of, register_type

NAME = "pool_lora"
POOL_LORA = add_type(NAME)


@dataclass
class PoolLoraConfig(LinearConfig):
    """Past LoRA experts, never trained again, and new ones beside them, on every chosen linear.

    Args:
        num_new: How many experts are trained.
        num_past: How many are past; by the linear's name where linears differ, and then 0 for one
            that is not named. `grow` keeps it.
        gates: What counts where no gates were set: "given", nothing, and a forward pass without
            them is refused; "all", every expert counts 1, so the adapter needs its method no more.
    """

    num_new: int = field(default=1)
    num_past: int | dict[str, int] = field(default=0)
    gates: str = field(default="given")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value cannot be used; the message names it.
        """
        super().__post_init__()
        self.peft_type = POOL_LORA
        self.check_positive("num_new")
        self.check_among("gates", ("given", "all"))

    def past_of(self, name: str) -> int:
        """Return how many experts of the linear of that name are past."""
        return self.num_past if isinstance(self.num_past, int) else self.num_past.get(name, 0)


class PoolLoraLayer(AdaptedLinear):
    """A linear joined by past experts and new ones.

    Args:
        base_layer: As for `AdaptedLinear`.
        name: As for `AdaptedLinear`.
        context: As for `AdaptedLinear`.

    Attributes:
        pool_lora_A: Per adapter, of the newest experts, (n, r, d_in).
        pool_lora_B: Per adapter, B transposed, (n, r, d_out); zero at first.
        pool_lora_past_A: Per adapter, of the past experts, oldest first; never trained.
        pool_lora_past_B: Likewise.
        pool_gates: Per adapter, what a method trains to decide its gates, if it does: a module of
            the model that one of its layers knows, so that it ends with the adapter.
    """

    adapter_layer_names = ("pool_lora_A", "pool_lora_B")
    other_param_names = ("pool_lora_past_A", "pool_lora_past_B", "pool_lora_config", "pool_gates")
    not_mergeable: ClassVar[str] = (
        "the experts of a pool stay apart, for their gates and for later tasks: keep the adapter "
        "on the model, or train method steadylora, whose adapter is a plain LoRA that merges"
    )

    def __init__(self, base_layer: nn.Module, name: str, context: ForwardContext) -> None:
        super().__init__(base_layer, name, context)
        context.layers.add(name)
        self.pool_lora_A = nn.ParameterDict()
        self.pool_lora_B = nn.ParameterDict()
        self.pool_lora_past_A = Frozen()
        self.pool_lora_past_B = Frozen()
        self.pool_lora_config: dict[str, PoolLoraConfig] = {}
        self.pool_gates: dict[str, nn.Module] = {}

    def update_layer(self, adapter_name: str, config: PoolLoraConfig) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add an adapter: A Kaiming-uniform as in LoRA, B zero, room for the past."""
        n, r = config.num_new, config.r
        self.pool_lora_A[adapter_name] = nn.Parameter(torch.empty(n, r, self.in_features))
        self.pool_lora_B[adapter_name] = nn.Parameter(torch.empty(n, r, self.out_features))
        self.pool_lora_config[adapter_name] = config
        self.make_room(adapter_name, config.past_of(self.name))
        self.begin_anew(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def experts(self, adapter_name: str) -> int:
        """Return E, how many experts an adapter has, past and new."""
        return len(self.pool_lora_past_A[adapter_name]) + len(self.pool_lora_A[adapter_name])

    @torch.no_grad()
    def make_room(self, adapter_name: str, past: int) -> None:
        """Make room for so many past experts, whose values are then loaded."""
        device = device_of(self)  # parameters may be made without values at first
        for new, old in self.pairs(adapter_name):
            shape = past, *new.shape[1:]
            old[adapter_name] = torch.zeros(shape, dtype=new.dtype, device=device)
        self.forget_packed()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **named: Any) -> None:
        """Make room for the past experts of a state, which may be of another number of tasks."""
        for name, past in self.pool_lora_past_A.items():
            saved = state_dict.get(f"{prefix}pool_lora_past_A.{name}")
            if saved is not None and len(saved) != len(past):
                self.make_room(name, len(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @torch.no_grad()
    def grow(self, adapter_name: str) -> None:
        """Put the newest experts at the end of the past ones, and begin anew in their place.

        The parameters that are trained stay the same objects, so that an optimiser and a trainer
        who hold them already need not know.
        """
        for new, old in self.pairs(adapter_name):
            past = old[adapter_name]
            old[adapter_name] = torch.cat([past, new.detach().to(past.dtype)])
        self.begin_anew(adapter_name)

    @torch.no_grad()
    def begin_anew(self, adapter_name: str) -> None:
        """Give the newest experts their first values: A drawn, B zero.

        A is drawn from torch's seed, the layer's name and the number of past experts alone,
        whatever else was drawn before, so that a task begins alike on all ranks and after a resume.
        """
        A, B = self.pool_lora_A[adapter_name], self.pool_lora_B[adapter_name]
        drawn = torch.empty(A.shape[0] * A.shape[1], A.shape[2], device="cpu")
        generator = generator_of(self.name, len(self.pool_lora_past_A[adapter_name]))
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        A.copy_(drawn.view_as(A))
        B.zero_()
        self.forget_packed()

    def routes(self, x: Tensor) -> Tensor:
        """Return what each expert of the active adapter counts for, as shares; oldest first.

        Gates need not have the sum 1: an expert's share is its gate's size among all.

        Args:
            x: The linear's input, (B, L, d_in).

        Returns:
            (tokens, E) float32.
        """
        name = self._active()[0]
        gates, tokens = self._look(name, x), x.shape[:-1].numel()
        experts = self.experts(name)
        if isinstance(gates, str):
            newest = len(self.pool_lora_A[name]) if gates == "newest" else experts
            gates = (torch.arange(experts, device=x.device) >= experts - newest).float()
        assert isinstance(gates, Tensor)  # `_look` has called what is a function
        rows = in_groups(gates.detach().to(x.device), tokens, experts, self.name)
        sizes = rows.float().abs()
        shares = sizes / sizes.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return shares.repeat_interleave(tokens // len(rows), 0)

    def _look(self, name: str, x: Tensor) -> Gates:
        """The gates of this linear, a function among them called."""
        gates = self.context.gates_of(self.name)
        if gates is None:
            if self.pool_lora_config[name].gates == "given":
                raise ConfigError(
                    "no gates are set for the experts of this adapter: its method sets them from "
                    "every prompt. Use the model that Method.attach returns, or open the adapter "
                    "with undrift; by hand, set them with gate_context(model).set_gates"
                )
            return "all"
        if isinstance(gates, Tensor) or gates == "all" or gates == "newest":
            return gates
        return gates(x)

    def _add(self, name: str, y: Tensor, x: Tensor, looked: Gates, *, in_place: bool) -> Tensor:
        rows = None
        if isinstance(looked, Tensor):
            tokens = x.numel() // x.shape[-1]
            rows = in_groups(looked.to(x.device), tokens, self.experts(name), self.name)
        newest = isinstance(looked, str) and looked == "newest"
        return add_pool(
            y,
            x,
            rows,
            self.pool_lora_A[name],
            self.pool_lora_B[name],
            self._pack(name, compute_dtype(x), newest=newest),
            self.pool_lora_config[name].scale,
            in_place=in_place,
        )

    @torch.no_grad()
    def _pack(self, name: str, dtype: torch.dtype, *, newest: bool) -> tuple[Tensor, Tensor]:
        """The experts as the products read them; kept while nothing is trained.

        An optimiser may write past the parameters' versions, so in training it is made anew.
        """
        pairs = [[new] if newest else [old[name], new] for new, old in self.pairs(name)]
        made_of = dtype, versions(p for pair in pairs for p in pair)
        kept = self._packed.get((name, newest))
        if kept is not None and not self.training and kept[0] == made_of:
            return kept[1]
        A, B = (torch.cat([p.detach().to(dtype).flatten(0, 1) for p in pair]) for pair in pairs)
        if not self.training:
            self._packed[name, newest] = made_of, (A, B)
        return A, B

    def pairs(self, name: str) -> tuple[tuple[Tensor, Frozen], ...]:
        """Return the newest experts' A and B of an adapter, each with what holds the past ones."""
        return (
            (self.pool_lora_A[name], self.pool_lora_past_A),
            (self.pool_lora_B[name], self.pool_lora_past_B),
        )


class PoolLoraModel(LinearTuner):
    """Puts a `PoolLoraLayer` around every target; use it through `peft.get_peft_model`."""

    prefix = f"{NAME}_"
    config_cls: ClassVar[type[PeftConfig]] = PoolLoraConfig
    tuner_layer_cls = PoolLoraLayer


def pool_layers(model: nn.Module) -> dict[str, PoolLoraLayer]:
    """All linears that have a pool, by the name they have in the base model."""
    return {module.name: module for module in model.modules() if isinstance(module, PoolLoraLayer)}


def gate_context(model: nn.Module) -> ForwardContext:
    """Find where the gates of a model's pools are set; a ConfigError if it has no pool."""
    for layer in pool_layers(model).values():
        return layer.context
    raise ConfigError(
        "the model has no pool of experts: use the model that Method.attach returns, or give your "
        "trainer the method's peft_config()"
    )


def grow(model: PeftModel, adapter: str = "default", only: Collection[str] | None = None) -> None:
    """Let the newest experts become past ones, and begin new ones beside them.

    Args:
        model: A PeftModel with a pool.
        adapter: The adapter's name.
        only: The linears that keep their newest experts, by name; in all others these are thrown
            away, and others begin in their place. All keep them where not given.

    Raises:
        UnknownName: If no linear of that name has a pool.
    """
    found = pool_layers(model)
    for name in only or ():
        if name not in found:
            raise unknown("layer with a pool", name, found)
    for name, layer in found.items():
        if only is None or name in only:
            layer.grow(adapter)
        else:
            layer.begin_anew(adapter)
    note_past(model, adapter)


def make_room(model: PeftModel, past: int, adapter: str = "default") -> None:
    """Make room for so many past experts on every linear."""
    for layer in pool_layers(model).values():
        layer.make_room(adapter, past)
    note_past(model, adapter)


def note_past(model: PeftModel, adapter: str = "default") -> int:
    """Enter in the configuration how many experts are past, and return the most on a linear."""
    counts = {n: len(layer.pool_lora_past_A[adapter]) for n, layer in pool_layers(model).items()}
    most, config = max(counts.values()), model.peft_config[adapter]
    if isinstance(config, PoolLoraConfig):
        config.num_past = most if min(counts.values()) == most else counts
    return most


def generator_of(*place: str | int) -> torch.Generator:
    """Make random numbers that depend on torch's seed and a place, and on nothing drawn before."""
    digest = hashlib.sha256(repr((torch.initial_seed(), place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# ---------------------------------------------------------------- the two products


def add_pool(
    y: Tensor,
    x: Tensor,
    gates: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    packed: tuple[Tensor, Tensor],
    scale: float,
    *,
    in_place: bool = False,
) -> Tensor:
    """Add a pool's part to the base layer's output.

    Args:
        y: W0 x, (..., d_out); its own graph brings the gradient of the base layer.
        x: Tokens, (..., d_in).
        gates: A row for every T / G consecutive tokens, (G, E); 1 for every expert where None.
        A: The newest experts, to which the gradient goes, (n, r, d_in).
        Bt: Likewise, (n, r, d_out).
        packed: All experts in the precision of the products, the newest last: (E r, d_in) and
            (E r, d_out).
        scale: alpha / r.
        in_place: Write into y, which must be a contiguous matrix that nobody else needs.

    Returns:
        The sum, in y's dtype.
    """
    x2d = x.reshape(-1, x.shape[-1]).to(packed[0].dtype)
    y2d = y if y.dim() == 2 else y.reshape(-1, y.shape[-1])
    apply = cast("Callable[..., Tensor]", _AddPool.apply)  # pyright: ignore
    return apply(y2d, x2d, gates, A, Bt, packed, scale, in_place).view(y.shape)


class _AddPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        gates: Tensor | None,
        A: Tensor,
        Bt: Tensor,
        packed: tuple[Tensor, Tensor],
        scale: float,
        in_place: bool,
    ) -> Tensor:
        """Add the pool's part to y."""
        with torch.autocast(x.device.type, enabled=False):
            z = x @ packed[0].mT  # (T, E r)
            h = _gated(z, gates, A.shape[1])
            out = added(ctx, y, h, packed[1], scale, in_place)
        ctx.save_for_backward(x, z, gates)
        ctx.packed, ctx.scale, ctx.shape = packed, scale, A.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, the gates, A and Bt."""
        x, z, gates = ctx.saved_tensors
        A, Bt = ctx.packed
        n, r, _ = ctx.shape
        dA = dBt = dx = dgates = None
        with torch.autocast(x.device.type, enabled=False):
            g = dy.to(Bt.dtype)
            dh = (g @ Bt.mT).mul_(ctx.scale)  # (T, E r)
            dz = _gated(dh, gates, r)
            if ctx.needs_input_grad[1]:
                dx = dz @ A
            if ctx.needs_input_grad[2]:
                wide = dh.to(torch.promote_types(dh.dtype, torch.float32)) * z
                dgates = wide.view(len(gates), -1, gates.shape[1], r).sum((1, 3))  # (G, E)
                dgates = dgates.to(gates.dtype)
            if ctx.needs_input_grad[3]:
                dA = float32_product(dz[:, -n * r :].mT, x).view(n, r, -1)
            if ctx.needs_input_grad[4]:
                h = _gated(z, gates, r)[:, -n * r :]
                dBt = float32_product(h.mT, g).mul_(ctx.scale).view(n, r, -1)
        return dy, dx, dgates, dA, dBt, None, None, None


def _gated(z: Tensor, gates: Tensor | None, r: int) -> Tensor:
    """Scale the block of every expert in z (T, E r) by its gate."""
    if gates is None:
        return z
    groups, experts = gates.shape
    blocks = z.view(groups, -1, experts, r)
    return (blocks * gates[:, None, :, None]).to(z.dtype).view_as(z)


def in_groups(gates: Tensor, tokens: int, experts: int, name: str) -> Tensor:
    """Bring gates into rows that serve equally many consecutive tokens.

    A search with beams asks for every sample several times in a row; its copies get the sample's
    gates.

    Args:
        gates: (E,), (B, E) or (B, L, E).
        tokens: How many there are, sample after sample.
        experts: E.
        name: The layer's name, for messages.

    Returns:
        (G, E); tokens is a multiple of G.

    Raises:
        ConfigError: If the gates are for another number of experts or samples.
    """
    if gates.shape[-1] != experts or gates.dim() > 3:
        raise ConfigError(
            f"{name} has {experts} experts, and gates of shape {tuple(gates.shape)} were set; "
            "expected (experts,), (batch, experts) or (batch, length, experts)"
        )
    if gates.dim() == 3:
        copies = tokens // max(1, gates[..., 0].numel())
        gates = gates.repeat_interleave(copies, 0) if copies > 1 else gates
    rows = gates.reshape(-1, experts)
    if tokens % len(rows) or (gates.dim() == 3 and tokens != len(rows)):
        raise ConfigError(
            f"{name} is called with {tokens} tokens, and gates of shape {tuple(gates.shape)} were "
            "set, which are of another batch; set the gates of this one first"
        )
    return rows


register_type(POOL_LORA, PoolLoraConfig, PoolLoraModel)
