"""Configs of the noising process and of sampling, free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.config.base import Spec

if TYPE_CHECKING:
    from udit.diffusion.schedule import DDPM, Flow


class DDPMConfig(Spec):
    """Discrete variance-preserving diffusion, eps prediction (Ho et al. 2020; ADM)."""

    kind: Literal["ddpm"] = "ddpm"
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """T."""
    betas: Literal["linear", "scaled-linear"] = "linear"
    """Linear from 0.1 / T to 20 / T (ADM, DiT); or linear in the square root from 0.85 / T to 12 / T with times counted
    from 1, on which the latent U-ViTs were trained."""

    def build(self) -> DDPM:
        """The schedule's float64 tables."""
        from udit.diffusion.schedule import DDPM

        return DDPM.linear(self.steps) if self.betas == "linear" else DDPM.scaled_linear(self.steps)


class FlowConfig(Spec):
    """Flow matching on the linear path, velocity prediction (Lipman et al. 2023)."""

    kind: Literal["flow"] = "flow"

    def build(self) -> Flow:
        """The linear path."""
        from udit.diffusion.schedule import Flow

        return Flow()


DiffusionConfig = Annotated[DDPMConfig | FlowConfig, Field(discriminator="kind")]

SAMPLERS = ("ddpm", "ddim", "dpmpp", "unipc", "flow-euler", "flow-heun")
"""``ddpm`` (ADM's ancestral step) and ``ddim`` are exact and our own; the others are diffusers' solvers."""
FLOW_SAMPLERS = ("flow-euler", "flow-heun", "dpmpp", "unipc")
DDPM_SAMPLERS = ("ddpm", "ddim", "dpmpp", "unipc")


class SamplingConfig(Spec):
    """How images are drawn from a model."""

    sampler: Literal["ddpm", "ddim", "dpmpp", "unipc", "flow-euler", "flow-heun"] = "ddim"
    steps: PositiveInt = 50
    """Network evaluations per image; with guidance each is a doubled batch."""
    guidance: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """w of u + w (c - u); 1 is none."""
    guidance_channels: PositiveInt | None = None
    """Guides only the first so many prediction channels: 3 is the published DiT protocol; None is all."""
    guidance_interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    """Noise times t / T between which guidance acts (Kynkäänniemi et al. 2024)."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """DDIM's share of fresh noise; 0 is deterministic."""
    clip: bool = False
    """Clamps x0 to [-1, 1] at every step (ddpm and ddim only); right for pixels, wrong for latents."""

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval is ({low:g}, {high:g}); it runs from the lower to the higher time")
        if self.sampler not in ("ddpm", "ddim") and self.clip:
            raise ValueError(f"clip works with the ddpm and ddim samplers, not with {self.sampler}; set clip to false")
        if self.sampler != "ddim" and self.eta:
            raise ValueError(f"eta is DDIM's; the {self.sampler} sampler has none, set eta to 0")
        return self
