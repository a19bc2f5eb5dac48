"""Every choice that SAME leaves open, in one frozen object, and its two named settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal, get_args, get_origin, get_type_hints

from undrift.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How an expert may move, and what is remembered of its inputs; routers have no part in it.

    Attributes:
        space: What the transforms act on: the optimiser's "step"; the "gradient" as the authors'
            code does (Adam undoes most of it); or "both", so that Adam sizes its step by what of
            the gradient is free to act.
        a_metric: Scale the steps of A by (C^{t-1} + mu I)^-1 [Eq. 14, 15].
        mu: Damping of the A metric [Eq. 15].
        mu_relative: Take mu in units of the mean kept eigenvalue, so that one value serves all
            layers; otherwise it is absolute.
        normalise: Multiply the A metric by mu: eigenvalues mu / (s + mu) inside V_par, 1 outside.
        b_metric: Scale the steps of B by nothing, "none"; by (A C A^T + mu I)^-1 of each expert,
            "aca"; or by (C_z + mu I)^-1, the second moment of B's own input, over all experts, "z".
        mu_b: Damping of the B metric, in units of the mean eigenvalue of its matrix.
        delta: The share of energy that the kept eigenpairs hold [Eq. 4, 5].
        max_components: The most eigenpairs kept between tasks.
        columns: l, the columns of the sketch; at least 2 `max_components` is advised.
        token_fraction: The share of tokens the statistics are taken over, each of which stands for
            1 / share; where None, an eighth, or all in a task too short to give 30 sampled tokens
            for every dimension of the linear's input.
        token_weights: What a token counts for in C and C_z, with g the gradient of the loss with
            respect to the linear's output at the token: all the "same" (the paper); "gradient",
            ||g||^2, so that the past is held where the answers depend on it; "share", the token's
            share of the sum of ||g|| over its example, so that every example counts for one and
            those that are answered well already are not forgotten; or "answer", half of that and
            an even half for the tokens that predict the answer, so that what all answers of a
            task have in common (a capital, a key of JSON), whose gradient is small as soon as it
            is learned, is held as well.
        task_weights: What a task counts for in them: its number of "tokens" (the paper), or all
            tasks "equal", so that a small one is not drowned by a large one.
        rebase_share: Re-base the sketch once, after this share of a task's steps; 0 never does.
        merge_share: Merge what was seen into the history on the way, after every such share of the
            steps, for streams whose tasks have no ends; 0 merges at a task's end only. Each part
            is then to the statistics what a task is.
        seed: What the sketches are drawn from and the tokens are chosen by.

    Raises:
        ConfigError: If a value lies outside its range.
    """

    space: Literal["step", "gradient", "both"] = "both"
    a_metric: bool = True
    mu: float = 0.1
    mu_relative: bool = True
    normalise: bool = True
    b_metric: Literal["none", "aca", "z"] = "z"
    mu_b: float = 0.03
    delta: float = 0.99
    max_components: int = 64
    columns: int = 128
    token_fraction: float | None = None
    token_weights: Literal["same", "gradient", "share", "answer"] = "share"
    task_weights: Literal["tokens", "equal"] = "equal"
    rebase_share: float = 0.02
    merge_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        for name, low, high in _RANGES:
            value = getattr(self, name, low)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}, expected a number from {low} to {high}")
        for name in ("mu", "mu_b", "delta", "token_fraction"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} is 0, expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Settings(Metrics):
    """The choices of SAME, with those of `Metrics`.

    The defaults are the setting `undrift`; `PAPER` reads the paper plainly.

    Attributes:
        router: Constrain the router's steps [Eq. 6 to 11]. First switch of the paper's ablation.
        expert: Scale the experts' steps by the history's metric [Eq. 12 to 15]. Second switch.
        activation: Freeze experts that a task hardly needs [Eq. 16 to 18]. Third switch.
        history: What the router is held against: C^{t-1}, "past", or C^t refreshed while the task
            runs, "running" [Eq. 3]. The experts' metric always uses C^{t-1}.
        refresh_share: With "running", V is refreshed after this share of the task's steps, at
            least 10 steps.
        lambda_par: Weight of the step inside V_par [Eq. 11].
        lambda_perp: Weight of the step outside V_par [Eq. 11].
        clamp_gain: Take g = min(g, 1), so that no direction is amplified [Eq. 7].
        rho: Exponent of the gain g(s) = (s / s_bar)^rho [Eq. 7].
        half_width: w, the window [i-w, i+w] over which s_bar is a mean [Eq. 7].
        warmup_share: Decide which experts to freeze after this share of a task's steps.
        tau: Freeze the experts that score below it, in [-1, 1] [Eq. 18]. To be measured.
        max_frozen: The most experts frozen at a time: N // 2 where None; a negative number counts
            from N, -1 is N - 1.
        importance_power: Weigh a token's energy by w, 1 (the paper), or by w^2, 2 [Eq. 17, App. C].

    Raises:
        ConfigError: If a value lies outside its range.
    """

    router: bool = True
    expert: bool = True
    activation: bool = False
    history: Literal["past", "running"] = "past"
    refresh_share: float = 0.05
    lambda_par: float = 0.0
    lambda_perp: float = 1.0
    clamp_gain: bool = True
    rho: float = 1.0
    half_width: int = 3
    warmup_share: float = 0.1
    tau: float = 0.0
    max_frozen: int | None = None
    importance_power: Literal[1, 2] = 1
    mu: float = 0.03  # a LoRA without routes does better with the 0.1 of `Metrics`

    def frozen_at_most(self, experts: int) -> int:
        """Resolve `max_frozen` for a linear of N `experts`; between 0 and N - 1."""
        if self.max_frozen is None:
            return experts // 2
        most = self.max_frozen + experts if self.max_frozen < 0 else self.max_frozen
        return max(0, min(most, experts - 1))


_INF = float("inf")
_RANGES = (
    ("refresh_share", 0, 1),
    ("lambda_par", 0, _INF),
    ("lambda_perp", 0, _INF),
    ("rho", 0, _INF),
    ("half_width", 0, _INF),
    ("mu", 0, _INF),
    ("mu_b", 0, _INF),
    ("delta", 0, 1),
    ("max_components", 1, _INF),
    ("columns", 1, _INF),
    ("token_fraction", 0, 1),
    ("rebase_share", 0, 1),
    ("merge_share", 0, 1),
    ("warmup_share", 0, 1),
    ("tau", -1, 1),
)


def check_choices(config: object) -> None:
    """Check the bools, numbers and `Literal` fields of a dataclass against their annotations.

    Args:
        config: An instance of a dataclass; `None` is let through where the annotation has it.

    Raises:
        ConfigError: If a field holds a value that its annotation does not allow.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):  # pyright: ignore[reportArgumentType]
        hint, value = hints[field.name], getattr(config, field.name)
        if get_origin(hint) is Literal:
            allowed = get_args(hint)
            if value not in allowed or isinstance(value, bool):
                names = ", ".join(map(repr, allowed))
                raise ConfigError(f"{field.name} is {value!r}, expected one of {names}")
            continue
        kinds = get_args(hint) or (hint,)
        good = (
            (value is None and type(None) in kinds)
            or (isinstance(value, bool) and bool in kinds)
            or (isinstance(value, int) and not isinstance(value, bool) and {int, float} & {*kinds})
            or (isinstance(value, (float, str)) and type(value) in kinds)
        )
        if not good:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ConfigError(f"{field.name} is {value!r}, expected {names}")


UNDRIFT = Settings()
"""Ours, as measured: both factors scaled, in the gradient and in the optimiser's step."""

PAPER = Settings(
    space="gradient",
    activation=True,
    history="running",
    lambda_par=1.0,
    lambda_perp=1.0,
    clamp_gain=False,
    half_width=1,
    mu=0.9,
    mu_relative=False,
    normalise=False,
    b_metric="none",
    delta=0.9,
    token_fraction=1.0,
    token_weights="same",
    task_weights="tokens",
    tau=0.1,
    max_frozen=-1,
)
"""The paper, read plainly. Its text gives no weights of the router's step: both are 1 here. tau,
the 64 components, mu, delta, the window and the scaling of A alone are those of its public code,
where mu stands beside square roots of eigenvalues; freezing is decided once a task [OURS]."""

SETTINGS: Mapping[str, Settings] = MappingProxyType({"paper": PAPER, "undrift": UNDRIFT})
