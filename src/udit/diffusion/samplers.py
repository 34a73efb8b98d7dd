"""The table of samplers, free of torch: the only place where their names are listed.

Validation, errors, command-line help and the table of docs/sampling.md follow from it. Adding a sampler is a class
beside its noising process and a row here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from udit.diffusion.sample import Sampler


@dataclass(frozen=True)
class SamplerSpec:
    """What the library knows of a sampler before torch is imported; a subclass builds one class of samplers."""

    name: str
    about: str
    """What it is, with its source."""
    processes: tuple[str, ...]
    """Kinds of the noising processes it serves."""
    zero_init: bool = field(default=False, kw_only=True)
    """Whether it takes ``guidance_zero_init``: it follows a velocity and keeps nothing of earlier steps."""
    respaces: ClassVar[bool] = False
    """Whether steps may also be ADM's respacing string, e.g. "ddim50" or "10,20,20"; else a count only."""
    eta: ClassVar[bool] = False
    """Whether it takes ``eta``."""
    clip: ClassVar[bool] = False
    """Whether it takes ``clip``."""
    caches: ClassVar[bool] = True
    """Whether its steps are so many that what changes little between two may be kept (step caching)."""

    def build(self, eta: float, clip: bool) -> Sampler:
        """The sampler; options that it does not take are 0 and False."""
        raise NotImplementedError(f"{type(self).__name__} names no sampler")


class AncestralSpec(SamplerSpec):
    """``ddpm.Ancestral``."""

    respaces: ClassVar[bool] = True
    clip: ClassVar[bool] = True

    def build(self, eta: float, clip: bool) -> Sampler:
        """The ancestral step."""
        from udit.diffusion.ddpm import Ancestral

        return Ancestral(clip)


class DDIMSpec(SamplerSpec):
    """``ddpm.DDIM``."""

    respaces: ClassVar[bool] = True
    eta: ClassVar[bool] = True
    clip: ClassVar[bool] = True

    def build(self, eta: float, clip: bool) -> Sampler:
        """The implicit step."""
        from udit.diffusion.ddpm import DDIM

        return DDIM(eta, clip)


@dataclass(frozen=True)
class KarrasSpec(SamplerSpec):
    """``edm.Karras``."""

    heun: bool

    def build(self, eta: float, clip: bool) -> Sampler:
        """Heun's method or Euler's."""
        from udit.diffusion.edm import Karras

        return Karras(self.heun)


class HeunSpec(SamplerSpec):
    """``transport.Heun``."""

    def build(self, eta: float, clip: bool) -> Sampler:
        """Heun's method with levels of our own."""
        from udit.diffusion.transport import Heun

        return Heun()


class StochasticSpec(SamplerSpec):
    """``transport.Stochastic``."""

    def build(self, eta: float, clip: bool) -> Sampler:
        """SiT's, with w(t) = sigma."""
        from udit.diffusion.transport import Stochastic

        return Stochastic()


class AverageSpec(SamplerSpec):
    """``meanflow.AverageSteps``."""

    caches: ClassVar[bool] = False

    def build(self, eta: float, clip: bool) -> Sampler:
        """Steps along the average velocity."""
        from udit.diffusion.meanflow import AverageSteps

        return AverageSteps()


class ConsistencySpec(SamplerSpec):
    """``consistency.ConsistencySteps``."""

    caches: ClassVar[bool] = False

    def build(self, eta: float, clip: bool) -> Sampler:
        """Guesses of the data, each from the former one with fresh noise."""
        from udit.diffusion.consistency import ConsistencySteps

        return ConsistencySteps()


class SolverSpec(SamplerSpec):
    """``solvers.Solver``: one of diffusers'."""

    def build(self, eta: float, clip: bool) -> Sampler:
        """The solver of this name."""
        from udit.diffusion.solvers import Solver

        return Solver(self.name)


FLOWS = ("flow", "mean-flow")
"""Processes that have a velocity at every time."""
_ROWS = (
    DDIMSpec("ddim", "DDIM, the implicit step (Song et al. 2021)", ("ddpm",)),
    AncestralSpec("ddpm", "the ancestral step (Ho et al. 2020; Dhariwal & Nichol 2021)", ("ddpm",)),
    AverageSpec("flow-average", "steps along MeanFlow's average velocity (Geng et al. 2025)", ("mean-flow",)),
    SolverSpec("flow-euler", "Euler's method along the path, by diffusers", FLOWS, zero_init=True),
    HeunSpec("flow-heun", "Heun's method along the path, its last step Euler's", FLOWS, zero_init=True),
    KarrasSpec("edm-heun", "Heun's method over noise levels (Karras et al. 2022, Alg. 1)", ("edm",), heun=True),
    KarrasSpec("edm-euler", "Euler's method over noise levels (Karras et al. 2022)", ("edm",), heun=False),
    SolverSpec("dpmpp", "DPM-Solver++ 2M (Lu et al. 2022), by diffusers", ("ddpm", *FLOWS)),
    SolverSpec("unipc", "UniPC of order 2 (Zhao et al. 2023), by diffusers", ("ddpm", *FLOWS)),
    StochasticSpec("flow-sde", "Euler-Maruyama's method along the reverse SDE (Ma et al. 2024, SiT)", FLOWS),
    ConsistencySpec("flow-consistency", "guesses of the data, each noised anew (Song et al. 2023)", ("consistency",)),
)
SAMPLERS: dict[str, SamplerSpec] = {row.name: row for row in _ROWS}
"""Every sampler by name. Of those that serve a process the first is its default."""


def listed(names: Iterable[str], last: str = "or") -> str:
    """``"a, b or c"``."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end
