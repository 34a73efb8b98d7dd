"""Configs of the noising process and of sampling, free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from udit.spec.base import Spec

if TYPE_CHECKING:
    from udit.diffusion.schedule import DDPM, EDM, Flow


class DDPMConfig(Spec):
    """Discrete variance-preserving diffusion, eps prediction (Ho et al. 2020; ADM)."""

    SAMPLERS: ClassVar[tuple[str, ...]] = ("ddim", "ddpm", "dpmpp", "unipc")
    """What draws from it; the first where nothing is said."""
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
    """Flow matching, velocity prediction (Lipman et al. 2023)."""

    SAMPLERS: ClassVar[tuple[str, ...]] = ("flow-euler", "flow-heun", "dpmpp", "unipc")
    kind: Literal["flow"] = "flow"
    path: Literal["linear", "gvp"] = "linear"
    """Straight from data to noise; or along a cosine and a sine (GVP, Ma et al. 2024), on which DiMSUM was trained."""

    def build(self) -> Flow:
        """The path."""
        from udit.diffusion.schedule import Flow

        return Flow(self.path)


class EDMConfig(Spec):
    """Noise by its level sigma, x = x0 + sigma n, and Karras et al.'s preconditioning (2022): HDiT's objective."""

    SAMPLERS: ClassVar[tuple[str, ...]] = ("edm-heun", "edm-euler")
    kind: Literal["edm"] = "edm"
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the data that the preconditioning supposes."""
    sigma_min: PositiveFloat = 0.002
    """Lowest level that sampling passes before it reaches the data."""
    sigma_max: PositiveFloat = 80.0
    """Level at which sampling starts."""
    rho: PositiveFloat = 7.0
    """Sampling's levels are even in sigma ** (1 / rho)."""
    density: Literal["log-normal", "cosine-interpolated"] = "log-normal"
    """How training draws sigma: as EDM, or as HDiT, from ``sigma_min`` to ``sigma_max`` by cosine schedules that were
    shifted for two resolutions (Hoogeboom et al. 2023)."""
    log_mean: float = -1.2
    """Mean of the log-normal ln sigma."""
    log_std: PositiveFloat = 1.2
    """Standard deviation of the log-normal ln sigma."""
    resolutions: tuple[PositiveFloat, PositiveFloat] = (0.125, 1.0)
    """Of the interpolated cosine: the sides of the two resolutions over the picture's, the one that rules near noise
    first; 32 and 256 pixels for pictures of 256."""
    weighting: Literal["edm", "soft-min-snr"] = "soft-min-snr"
    """Of the squared error of x0: 1 / c_out ** 2 (EDM), or 1 / (sigma ** 2 + sigma_data ** 2) (HDiT)."""

    @model_validator(mode="after")
    def _check(self) -> EDMConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}; the maximum is larger")
        idle = ("resolutions",) if self.density == "log-normal" else ("log_mean", "log_std")
        for key in idle:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not used by density {self.density}; leave it out, or choose the other one")
        return self

    def build(self) -> EDM:
        """The levels."""
        from udit.diffusion.schedule import EDM

        ladder = (self.sigma_min, self.sigma_max, self.rho)
        drawn = None if self.density == "log-normal" else self.resolutions
        return EDM(*ladder, self.log_mean, self.log_std, drawn, self.sigma_data)


DiffusionConfig = Annotated[DDPMConfig | FlowConfig | EDMConfig, Field(discriminator="kind")]

SAMPLERS = ("ddpm", "ddim", "dpmpp", "unipc", "flow-euler", "flow-heun", "edm-heun", "edm-euler")
"""``ddpm`` (ADM's ancestral step), ``ddim`` and EDM's two are exact and our own; the others are diffusers' solvers."""


class SamplingConfig(Spec):
    """How images are drawn from a model."""

    sampler: Literal["ddpm", "ddim", "dpmpp", "unipc", "flow-euler", "flow-heun", "edm-heun", "edm-euler"] = "ddim"
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
    cache: PositiveInt = 1
    """Evaluations from one run of a network's deep part to the next (Skip-DiT's cached inference)."""
    refresh: tuple[NonNegativeInt, ...] = ()
    """The evaluations that run it, from 0 on, in place of ``cache``: what ``udit tune`` finds."""
    forecast: bool = False
    """The others take a line through its last two outputs, in place of the last one."""
    keep_guidance: bool = False
    """The others take the step from the null prediction to the label's as it was, and run the label's alone."""

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval is ({low:g}, {high:g}); it runs from the lower to the higher time")
        if self.sampler not in ("ddpm", "ddim") and self.clip:
            raise ValueError(f"clip works with the ddpm and ddim samplers, not with {self.sampler}; set clip to false")
        if self.sampler != "ddim" and self.eta:
            raise ValueError(f"eta is DDIM's; the {self.sampler} sampler has none, set eta to 0")
        if self.refresh and self.cache > 1:
            raise ValueError(f"cache is {self.cache} and refresh names evaluations; give one of them")
        if self.refresh and (self.refresh[0] or sorted(set(self.refresh)) != list(self.refresh)):
            raise ValueError(f"refresh is {list(self.refresh)}; it begins with 0 and rises")
        if self.refresh and self.refresh[-1] >= self.steps:
            raise ValueError(f"refresh names evaluation {self.refresh[-1]} of {self.steps}; they count from 0")
        if (self.forecast or self.keep_guidance) and not self.refresh and self.cache == 1:
            name = "forecast" if self.forecast else "keep_guidance"
            raise ValueError(f"{name} is for steps that are cached; set it to false, or give cache or refresh")
        return self
