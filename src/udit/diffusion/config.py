"""Configs of noising processes, free of torch; that of sampling is in ``settings``.

A noising process is one ``ProcessConfig``, here or in ``few_step_config``, a row of ``PROCESSES``, and the module that
``build`` imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from udit.diffusion.few_step_config import ConsistencyConfig, MeanFlowConfig
from udit.diffusion.process_config import DensityMean, DensityStd
from udit.diffusion.process_config import Level as Level
from udit.diffusion.process_config import ProcessConfig as ProcessConfig
from udit.diffusion.samplers import SAMPLERS, listed
from udit.diffusion.settings import SamplingConfig as SamplingConfig
from udit.errors import UserError, nearest
from udit.spec.base import parse
from udit.spec.words import shown

if TYPE_CHECKING:
    from udit.diffusion.ddpm import DDPM
    from udit.diffusion.edm import EDM
    from udit.diffusion.flow import Flow

# ---- noising processes -----------------------------------------------------------------------------------------------


class LearnedProcess(ProcessConfig):
    """What processes have in common whose training can be told where to look and how to weigh."""

    predict: str
    density: Literal["uniform", "logit-normal", "mode", "cosmap"] = "uniform"
    """How training times are distributed (Esser et al. 2024, SD3, Sec. 3.1)."""
    density_mean: DensityMean = 0.0
    """Mean of the logit-normal's normal; above 0 favours noise."""
    density_std: DensityStd = 1.0
    """Its standard deviation."""
    density_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """Of ``mode``: above 0 favours the middle, below 0 both ends."""
    weighting: Literal["none", "min-snr", "soft-min-snr", "density"] = "none"
    """Of the squared error: by the ratio of signal to noise, with ``gamma`` (Hang et al. 2023; Crowson et al. 2024); or
    times are drawn uniformly and weighted by the density in its place."""
    gamma: PositiveFloat = 5.0
    """Where the weight of x0's error stops to rise with the ratio of signal to noise."""
    error: Literal["own", "velocity", "v", "x0", "eps"] = "own"
    """The target whose error is squared: the network's own, or another one, which it is converted to: ``velocity`` with
    ``predict: x0`` is JiT's loss (Li & He 2025)."""
    cosine: Annotated[float, Field(ge=0)] = 0.0
    """Weight of 1 - cos between prediction and target, along channels (Yao et al. 2025, LightningDiT has 1)."""

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        keys = {"density_mean": "logit-normal", "density_std": "logit-normal", "density_scale": "mode"}
        for key, density in keys.items():
            if self.density != density and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to density {density} and density is {self.density}; leave it out")
        by_snr = self.weighting in ("min-snr", "soft-min-snr")
        if not by_snr and self.gamma != type(self).model_fields["gamma"].default:
            raise ValueError(f"gamma belongs to weighting min-snr and soft-min-snr, not {self.weighting}; leave it out")
        if self.weighting == "density" and self.density == "uniform":
            raise ValueError("weighting is density and density uniform, so that all weights are 1; choose a density")
        if by_snr and self.error != "own":
            raise ValueError(
                f"weighting {self.weighting} weighs the error of x0, whatever is predicted, and error is {self.error}; "
                "leave one of them out"
            )
        return self


class DDPMConfig(LearnedProcess):
    """Discrete variance-preserving diffusion, eps prediction (Ho et al. 2020; Dhariwal & Nichol 2021, ADM)."""

    title: ClassVar[str] = "DDPM"
    learns_variance: ClassVar[bool] = True
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("dpmpp", 8),
        "good": ("dpmpp", 20),
        "best": ("ddim", 100),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("dpmpp", "unipc", "ddim")
    without: ClassVar[dict[str, str]] = {
        "shift": "it moves the times of a flow's path, and DDPM's noise levels are those of betas; density says which "
        "are trained most",
        "path": "betas are its schedule",
    }

    kind: Literal["ddpm"] = "ddpm"
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """T."""
    betas: Literal["linear", "scaled-linear", "cosine"] = "linear"
    """``linear``: from 0.1 / T to 20 / T (ADM, DiT). ``scaled-linear``: square roots linear from 0.85 / T to 12 / T,
    and the network gets t + 1 (Rombach et al. 2022), on which the latent U-ViTs were trained. ``cosine``: Nichol &
    Dhariwal 2021."""
    zero_terminal_snr: bool = False
    """Rescales the schedule so that the last step is pure noise (Lin et al. 2024); needs ``predict`` v or x0."""
    predict: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts: the noise, the data, or v = alpha eps - sigma x0 (Salimans & Ho 2022)."""

    @field_validator("predict", mode="before")
    @classmethod
    def _check_predict(cls, value: Any) -> Any:
        if value == "velocity":
            raise ValueError("discrete steps have no velocity, which a path of flow matching has; take v")
        return value

    @model_validator(mode="after")
    def _check(self) -> DDPMConfig:
        if self.zero_terminal_snr and "eps" in (self.predict, self.error):
            raise ValueError(
                "zero_terminal_snr leaves no signal at the last step, where eps says nothing of x0; predict v or x0"
            )
        if self.error == "velocity":
            raise ValueError("error is velocity, which a path of flow matching has and discrete steps have not; use v")
        return self

    @property
    def max_steps(self) -> int:
        """T."""
        return self.steps

    def build(self) -> DDPM:
        """The schedule's float64 tables."""
        from dataclasses import replace

        from udit.diffusion.ddpm import DDPM
        from udit.diffusion.learning import Learning

        kinds = {"linear": DDPM.linear, "scaled-linear": DDPM.scaled_linear, "cosine": DDPM.cosine}
        schedule = kinds[self.betas](self.steps)
        schedule = schedule.zero_terminal() if self.zero_terminal_snr else schedule
        return replace(schedule, predict=self.predict, learning=Learning.of(self, "v"))


class FlowConfig(LearnedProcess):
    """Flow matching, velocity prediction (Lipman et al. 2023)."""

    title: ClassVar[str] = "flow matching"
    reversible: ClassVar[bool] = True
    has_velocity: ClassVar[bool] = True
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("dpmpp", 6),
        "good": ("dpmpp", 12),
        "best": ("dpmpp", 30),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("dpmpp", "unipc", "flow-heun")
    without: ClassVar[dict[str, str]] = {
        "betas": "path is its schedule",
        "zero_terminal_snr": "a flow's last time is pure noise already",
    }

    kind: Literal["flow"] = "flow"
    path: Literal["linear", "gvp"] = "linear"
    """Straight from data to noise; or along a cosine and a sine (GVP, Ma et al. 2024), on which DiMSUM was trained."""
    predict: Literal["velocity", "x0", "v"] = "velocity"
    """What the network predicts. It cannot be eps, which at pure noise, where sampling starts, says nothing of x0."""
    shift: PositiveFloat | Literal["resolution"] = 1.0
    """Moves the times of training and sampling towards noise, by t -> s t / (1 + (s - 1) t) (Esser et al. 2024).
    ``resolution`` becomes the side of what the network sees over ``shift_side``."""
    shift_side: PositiveInt = 32
    """Side at which no shift is needed."""

    @field_validator("predict", mode="before")
    @classmethod
    def _check_predict(cls, value: Any) -> Any:
        if value == "eps":
            raise ValueError("at pure noise, where sampling starts, eps says nothing of x0; take velocity, x0 or v")
        return value

    def build(self) -> Flow:
        """The path."""
        from dataclasses import replace

        from udit.diffusion.flow import Flow
        from udit.diffusion.learning import Learning

        assert self.shift != "resolution", "a complete run has a number"
        flow = Flow(self.path, self.predict, shift=self.shift)
        return replace(flow, learning=Learning.of(self, flow.velocity))


class EDMConfig(ProcessConfig):
    """Noise by its level sigma, x = x0 + sigma n, and Karras et al.'s preconditioning (2022): HDiT's objective."""

    title: ClassVar[str] = "EDM"
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("edm-heun", 9),
        "good": ("edm-heun", 19),
        "best": ("edm-heun", 39),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("edm-heun", "edm-euler")

    without: ClassVar[dict[str, str]] = {
        "shift": "log_mean and log_std place its noise levels",
        "density_mean": "log_mean places its noise levels",
        "density_std": "log_std spreads its noise levels",
        "predict": "its preconditioning decides what the network predicts",
        "error": "its weighting is of the error of x0",
        "path": "sigma_min and sigma_max bound its only path",
    }

    kind: Literal["edm"] = "edm"
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the data that the preconditioning assumes."""
    sigma_min: PositiveFloat = 0.002
    """Lowest noise level of sampling before sigma = 0."""
    sigma_max: PositiveFloat = 80.0
    """Noise level at which sampling starts."""
    rho: PositiveFloat = 7.0
    """Sampling's levels are evenly spaced in sigma ** (1 / rho)."""
    density: Literal["log-normal", "cosine-interpolated"] = "log-normal"
    """How training draws sigma: as EDM; or as HDiT, from ``sigma_min`` to ``sigma_max`` by cosine schedules that were
    shifted for two resolutions (Hoogeboom et al. 2023)."""
    log_mean: float = -1.2
    """Mean of the log-normal ln sigma."""
    log_std: PositiveFloat = 1.2
    """Standard deviation of the log-normal ln sigma."""
    resolutions: tuple[PositiveFloat, PositiveFloat] = (0.125, 1.0)
    """Of the interpolated cosine: two resolutions as fractions of the image's side, first the one that dominates near
    noise; (0.125, 1) is 32 and 256 pixels for images of 256."""
    weighting: Literal["edm", "soft-min-snr"] = "soft-min-snr"
    """Of the squared error of x0: 1 / c_out ** 2 (EDM), or 1 / (sigma ** 2 + sigma_data ** 2) (HDiT)."""

    @model_validator(mode="after")
    def _check(self) -> EDMConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}; sigma_max must be larger"
            )
        unused = ("resolutions",) if self.density == "log-normal" else ("log_mean", "log_std")
        for key in unused:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is not used by density {self.density}; leave it out, or choose the other density"
                )
        return self

    def build(self) -> EDM:
        """Noise levels of training and sampling, and the weighting of the loss."""
        from udit.diffusion.edm import EDM

        return EDM(
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
            log_mean=self.log_mean,
            log_std=self.log_std,
            resolutions=None if self.density == "log-normal" else self.resolutions,
            sigma_data=self.sigma_data,
            weighting=self.weighting,
        )


PROCESSES: dict[str, type[ProcessConfig]] = {
    "ddpm": DDPMConfig,
    "flow": FlowConfig,
    "edm": EDMConfig,
    "mean-flow": MeanFlowConfig,
    "consistency": ConsistencyConfig,
}
"""By ``kind``."""


def process_from(values: Any) -> Any:
    """A process's config from plain values with a ``kind`` of ``PROCESSES``; anything but a dict is returned as it is.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    if not isinstance(values, dict):
        return values
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in PROCESSES:
        raise UserError(f"diffusion.kind is {shown(kind)}{nearest(str(kind), PROCESSES)}")
    return parse(PROCESSES[kind], values, where="diffusion")


DiffusionConfig = Annotated[SerializeAsAny[ProcessConfig], BeforeValidator(process_from)]


def check_sampler(name: str, process: type[ProcessConfig], steps: int | str) -> None:
    """Refuses a sampler that does not serve a process, and steps that it does not take.

    Raises:
        UserError: names what serves the process, or what steps may be.
    """
    if name not in process.samplers():
        raise UserError(
            f"{name} does not fit a model that was trained with {process.title}; use {listed(process.samplers())}"
        )
    if not SAMPLERS[name].respaces and not (str(steps).isdecimal() and int(steps) >= 1):
        raise UserError(f"steps is {steps!r}; the {name} sampler takes a count of at least 1")
