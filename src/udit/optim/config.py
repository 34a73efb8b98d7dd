"""Configs of optimisers and of learning rate schedules, free of torch.

An optimiser is one ``OptimizerConfig`` here and what its ``build`` imports; a schedule is one ``ScheduleConfig``. Both
are functions of the step alone, so that a resumed run goes on exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveInt

from udit.errors import UserError, nearest
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import nn

    from udit.optim.groups import Choices
    from udit.optim.optimizer import Optimizer

Fraction = Annotated[float, Field(ge=0, le=1)]
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


# ---- schedules -------------------------------------------------------------------------------------------------------


class ScheduleConfig(Spec):
    """The learning rate as a fraction of ``training.lr``. A subclass says how it goes on after the warm-up."""

    kind: str
    ends: ClassVar[bool] = True
    """Whether the rate depends on the number of the last step."""

    def factor(self, step: int, steps: int, warmup: int) -> float:
        """The fraction, 0 to 1, for the step after the first ``step`` ones.

        Args:
            step: steps done, from 0.
            steps: of the whole run.
            warmup: steps over which the rate rises linearly to what the schedule says.
        """
        rising = (step + 1) / warmup if step < warmup else 1.0
        return rising * self.after(max(step, warmup), steps, warmup)

    def after(self, step: int, steps: int, warmup: int) -> float:
        """The fraction at a step after the warm-up."""
        raise NotImplementedError(f"{type(self).__name__} is no schedule")

    @staticmethod
    def progress(step: int, steps: int, begin: int) -> float:
        """How far ``step`` lies between ``begin`` (0) and the end of the run (1)."""
        return min(1.0, max(0.0, (step - begin) / max(steps - begin, 1)))


class ConstantSchedule(ScheduleConfig):
    """The same rate to the end."""

    kind: Literal["constant"] = "constant"
    ends: ClassVar[bool] = False

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1."""
        return 1.0


class LinearSchedule(ScheduleConfig):
    """Falls linearly."""

    kind: Literal["linear"] = "linear"
    end: Fraction = 0.0
    """Fraction that the last step comes close to."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1 to ``end``."""
        return 1 - (1 - self.end) * self.progress(step, steps, warmup)


class CosineSchedule(ScheduleConfig):
    """Falls along half a cosine (Loshchilov & Hutter 2017), without restarts."""

    kind: Literal["cosine"] = "cosine"
    end: Fraction = 0.0
    """Fraction that the last step comes close to."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1 to ``end``."""
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * self.progress(step, steps, warmup)))


class InverseSqrtSchedule(ScheduleConfig):
    """Falls as 1 / sqrt(step) once ``reference`` steps are done (Karras et al. 2024, EDM2)."""

    kind: Literal["inverse-sqrt"] = "inverse-sqrt"
    ends: ClassVar[bool] = False
    reference: PositiveInt = 70_000
    """Step from which the rate falls; it is half as large after four times as many."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1, then sqrt(reference / step)."""
        return 1 / math.sqrt(max(step / self.reference, 1.0))


class WarmupStableDecaySchedule(ScheduleConfig):
    """Constant, then a short decay at the end of the run (WSD; Hu et al. 2024; Hägele et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps over which it falls."""
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """1 - sqrt(progress) falls fast at first; Hägele et al. found it better than a line."""
    end: Fraction = 0.0
    """Fraction that the last step comes close to."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1, then 1 to ``end``."""
        progress = self.progress(step, steps, steps - round(self.decay * steps))
        return 1 - (1 - self.end) * (math.sqrt(progress) if self.shape == "1-sqrt" else progress)


ScheduleUnion = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | InverseSqrtSchedule | WarmupStableDecaySchedule,
    Field(discriminator="kind"),
]


AnySchedule = Annotated[ScheduleUnion, BeforeValidator(lambda values: _by_kind(values, ScheduleUnion))]
"""A schedule's config, also from plain values or from its kind alone."""


# ---- optimisers ------------------------------------------------------------------------------------------------------


class OptimizerConfig(Spec):
    """What the library asks of an optimiser before torch is imported. A subclass is one optimiser."""

    kind: str
    averages: ClassVar[bool] = False
    """Whether it keeps an average of the weights itself, which then takes the place of the EMA."""
    elementwise: ClassVar[bool] = False
    """Whether it changes tensors that are split over processes (FSDP): each number by its own gradient alone."""

    def build(self, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
        """The optimiser of a network's weights.

        Args:
            model: the network, on its device.
            choices: scale of the learning rate and weight decay of each parameter.
            betas: of Adam's moments.

        Raises:
            UserError: it has nothing to do in this network, or a package is missing.
        """
        raise NotImplementedError(f"{type(self).__name__} is no optimiser")


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019), torch's fused one."""

    kind: Literal["adamw"] = "adamw"
    elementwise: ClassVar[bool] = True

    def build(self, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
        """For all weights."""
        from udit.optim.adamw import adamw

        return adamw(model, choices, betas)


class MuonConfig(OptimizerConfig):
    """Muon (Jordan et al. 2024) for the matrices of linear layers within blocks; AdamW for all other weights.

    Others are the input and output layers, embeddings, convolutions and vectors. On CUDA it is torch's own, in
    bfloat16; elsewhere the same iteration in float32.
    """

    kind: Literal["muon"] = "muon"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    iterations: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations that make an update orthogonal."""
    adjust: Literal["match-rms-adamw", "original"] = "match-rms-adamw"
    """How the rate depends on a matrix's shape: times 0.2 sqrt(max(rows, columns)), so that AdamW's rates and weight
    decays serve (Liu et al. 2025); or times sqrt(max(1, rows / columns)), as Jordan et al. have it."""

    def build(self, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
        """Muon and AdamW side by side.

        Raises:
            UserError: the network's blocks have no matrices.
        """
        from udit.optim.muon import muon

        return muon(self, model, choices, betas)


class AdamW8bitConfig(OptimizerConfig):
    """AdamW with moments of 8 bits (Dettmers et al. 2022), of the package bitsandbytes; of 32 for small tensors."""

    kind: Literal["adamw-8bit"] = "adamw-8bit"

    def build(self, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
        """For all weights.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        from udit.optim.adamw import adamw_8bit

        return adamw_8bit(model, choices, betas)


class ScheduleFreeConfig(OptimizerConfig):
    """Schedule-Free AdamW (Defazio et al. 2024), of the package schedulefree; it needs no decay of the learning rate.

    Its average of the weights takes the place of the EMA.
    """

    kind: Literal["schedule-free"] = "schedule-free"
    averages: ClassVar[bool] = True

    def build(self, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
        """For all weights.

        Raises:
            UserError: schedulefree is not installed.
        """
        from udit.optim.adamw import schedule_free

        return schedule_free(model, choices, betas)


OptimizerUnion = Annotated[AdamWConfig | MuonConfig | AdamW8bitConfig | ScheduleFreeConfig, Field(discriminator="kind")]


AnyOptimizer = Annotated[OptimizerUnion, BeforeValidator(lambda values: _by_kind(values, OptimizerUnion))]
"""An optimiser's config, also from plain values or from its kind alone."""


def _by_kind(values: Any, union: Any) -> Any:
    """Plain values with a known kind, also of its word alone; a spec as it is.

    Raises:
        UserError: an unknown kind.
    """
    if isinstance(values, Spec):
        return values
    values = values if isinstance(values, dict) else {"kind": values}
    kinds = [spec.model_fields["kind"].default for spec in get_args(get_args(union)[0])]
    if values.get("kind") not in kinds:
        raise UserError(f"its kind is one of {', '.join(kinds)}{nearest(str(values.get('kind')), kinds)}")
    return values


class GroupConfig(Spec):
    """Parameters with a learning rate or weight decay of their own."""

    match: Annotated[str, Field(min_length=1)]
    """Names of the parameters, with * and ? as in file names, e.g. ``*.label.weight``; those of
    ``udit.build(MODEL).named_parameters()``."""
    lr: Annotated[float, Field(ge=0)] = 1.0
    """Factor on ``training.lr``; 0 freezes them."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """In place of ``training.weight_decay``."""
