"""Configs of noising processes and of sampling, free of torch.

A noising process is one ``ProcessConfig`` here, a row of ``PROCESSES``, and the module that ``build`` imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from udit.diffusion.samplers import SAMPLERS, listed
from udit.errors import UserError, nearest
from udit.spec.base import Spec, parse
from udit.spec.words import shown

if TYPE_CHECKING:
    from udit.diffusion.ddpm import DDPM
    from udit.diffusion.edm import EDM
    from udit.diffusion.flow import Flow
    from udit.diffusion.schedule import Schedule

GuidanceKind = Literal["cfg", "apg", "cfg-zero"]
Level = Literal["draft", "good", "best"]
"""Of ``udit sample --quality``."""


# ---- noising processes -----------------------------------------------------------------------------------------------


class ProcessConfig(Spec):
    """What the library asks of a noising process before torch is imported. A subclass is one process."""

    kind: str
    """Names the process; a subclass says it with a Literal and a default."""
    title: ClassVar[str]
    """The process in messages: "the model was trained with ..."."""
    learns_variance: ClassVar[bool] = False
    """Whether its loss trains the variance channels of a network with ``learn_sigma``."""
    reversible: ClassVar[bool] = False
    """Whether it takes networks that get 1 - t and predict x0 - eps (``reversed_flow``)."""
    has_velocity: ClassVar[bool] = False
    """Whether its target is the velocity dx_t/dt of a flow, which CFG-Zero* corrects."""
    quality: ClassVar[dict[Level, tuple[str, int]]]
    """Sampler and steps of ``udit sample --quality`` where nothing has been tuned."""
    few_step_samplers: ClassVar[tuple[str, ...]]
    """What ``udit tune`` tries."""

    @classmethod
    def samplers(cls) -> tuple[str, ...]:
        """Names of the samplers that serve this process; the first is the default."""
        kind = cls.model_fields["kind"].default
        return tuple(name for name, row in SAMPLERS.items() if kind in row.processes)

    @property
    def max_steps(self) -> int | None:
        """Steps that sampling cannot exceed: the length of a discrete schedule; None for a continuous one."""
        return None

    def build(self) -> Schedule:
        """The process itself: schedule, target and loss."""
        raise NotImplementedError(f"{type(self).__name__} names no schedule")


class DDPMConfig(ProcessConfig):
    """Discrete variance-preserving diffusion, eps prediction (Ho et al. 2020; Dhariwal & Nichol 2021, ADM)."""

    title: ClassVar[str] = "DDPM"
    learns_variance: ClassVar[bool] = True
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("dpmpp", 8),
        "good": ("dpmpp", 20),
        "best": ("ddim", 100),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("dpmpp", "unipc", "ddim")

    kind: Literal["ddpm"] = "ddpm"
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """T."""
    betas: Literal["linear", "scaled-linear"] = "linear"
    """``linear``: from 0.1 / T to 20 / T (ADM, DiT). ``scaled-linear``: square roots linear from 0.85 / T to 12 / T,
    and the network gets t + 1 (Rombach et al. 2022), on which the latent U-ViTs were trained."""

    @property
    def max_steps(self) -> int:
        """T."""
        return self.steps

    def build(self) -> DDPM:
        """The schedule's float64 tables."""
        from udit.diffusion.ddpm import DDPM

        return DDPM.linear(self.steps) if self.betas == "linear" else DDPM.scaled_linear(self.steps)


class FlowConfig(ProcessConfig):
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

    kind: Literal["flow"] = "flow"
    path: Literal["linear", "gvp"] = "linear"
    """Straight from data to noise; or along a cosine and a sine (GVP, Ma et al. 2024), on which DiMSUM was trained."""

    def build(self) -> Flow:
        """The path."""
        from udit.diffusion.flow import Flow

        return Flow(self.path)


class EDMConfig(ProcessConfig):
    """Noise by its level sigma, x = x0 + sigma n, and Karras et al.'s preconditioning (2022): HDiT's objective."""

    title: ClassVar[str] = "EDM"
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("edm-heun", 9),
        "good": ("edm-heun", 19),
        "best": ("edm-heun", 39),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("edm-heun", "edm-euler")

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


PROCESSES: dict[str, type[ProcessConfig]] = {"ddpm": DDPMConfig, "flow": FlowConfig, "edm": EDMConfig}
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


# ---- sampling --------------------------------------------------------------------------------------------------------


def known_sampler(name: str) -> str:
    """The name itself.

    Raises:
        UserError: no sampler has it.
    """
    if name not in SAMPLERS:
        raise UserError(f"no sampler has that name{nearest(name, SAMPLERS)}")
    return name


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


class SamplingConfig(Spec):
    """How images are drawn from a model."""

    sampler: Annotated[str, AfterValidator(known_sampler)] = "ddim"
    """A name of ``SAMPLERS``."""
    steps: PositiveInt = 50
    """Network evaluations per image; with guidance each is a doubled batch."""
    guidance: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Guidance scale w of u + w (c - u); 1 means no guidance."""
    guidance_channels: PositiveInt | None = None
    """Guides only the first so many prediction channels: 3 is the published DiT protocol; None is all."""
    guidance_interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    """Noise times t / T between which guidance acts (Kynkäänniemi et al. 2024)."""
    guidance_levels: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """Noise levels sigma / alpha between which guidance acts, in place of ``guidance_interval``; the paper's unit."""
    guidance_kind: GuidanceKind = "cfg"
    """``cfg``: the plain rule. ``apg``: without the part that saturates (Sadat et al. 2024). ``cfg-zero``: CFG-Zero*
    of flow matching, which scales the null prediction (Fan et al. 2025)."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share by which the guided prediction's standard deviation is brought to the conditional one's (Lin et al. 2023);
    theirs is 0.7."""
    guidance_eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """APG: share of the part of guidance that is parallel to the predicted image."""
    guidance_norm: PositiveFloat | None = None
    """APG: largest norm of an image's guidance, r; theirs is 2.5 to 15 in latents. None is no limit."""
    guidance_momentum: Annotated[float, Field(gt=-1, lt=1)] = -0.5
    """APG: what the guidance of one evaluation adds to the next one's, beta; below 0 pushes away from it."""
    guidance_zero_init: NonNegativeInt = 1
    """CFG-Zero*: evaluations at the start whose velocity is 0, of ``flow-euler`` and ``flow-heun``."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """DDIM's fraction of fresh noise; 0 is deterministic."""
    clip: bool = False
    """Clamps x0 to [-1, 1] at every step (ddpm and ddim only); right for pixels, wrong for latents."""
    cache: PositiveInt = 1
    """Runs the network's deep part at every N-th evaluation only (Skip-DiT's cached inference); 1 is every one."""
    refresh: tuple[NonNegativeInt, ...] = ()
    """The evaluations that run the deep part, counted from 0, in place of ``cache``: what ``udit tune`` finds."""
    forecast: bool = False
    """At the others, extrapolates linearly from the deep part's last two outputs; else reuses the last."""
    keep_guidance: bool = False
    """At the others, reuses the last difference between conditional and null prediction, and runs the conditional half
    alone."""

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval is ({low:g}, {high:g}); it runs from the lower to the higher time")
        self._check_guidance()
        for option, value, off in (("clip", self.clip, "false"), ("eta", self.eta, "0")):
            takers = [name for name, row in SAMPLERS.items() if getattr(row, option)]
            if value and self.sampler not in takers:
                samplers = f"sampler{'s' * (len(takers) > 1)}"
                raise ValueError(
                    f"{option} works with the {listed(takers, 'and')} {samplers}, not with {self.sampler}; set "
                    f"{option} to {off}"
                )
        if self.refresh and self.cache > 1:
            raise ValueError(f"cache is {self.cache} and refresh names evaluations; give one of them")
        if self.refresh and (self.refresh[0] or sorted(set(self.refresh)) != list(self.refresh)):
            raise ValueError(
                f"refresh is {list(self.refresh)}; it must start with 0 and each entry must be larger than the one "
                "before, e.g. [0, 3, 6]"
            )
        if self.refresh and self.refresh[-1] >= self.steps:
            raise ValueError(
                f"refresh names evaluation {self.refresh[-1]} of {self.steps}; evaluations are counted from 0"
            )
        if (self.forecast or self.keep_guidance) and not self.refresh and self.cache == 1:
            name = "forecast" if self.forecast else "keep_guidance"
            raise ValueError(f"{name} needs cached steps; set it to false, or give cache or refresh")
        return self

    def _check_guidance(self) -> None:
        """Refuses what another key of guidance leaves unused."""
        if self.guidance_levels is not None:
            low, high = self.guidance_levels
            if low > high:
                raise ValueError(f"guidance_levels is ({low:g}, {high:g}); it runs from the lower to the higher level")
            if self.guidance_interval != (0.0, 1.0):
                raise ValueError("guidance_interval and guidance_levels both limit guidance; give one of them")
        for kind, keys in GUIDANCE_KEYS.items():
            for key in keys if kind != self.guidance_kind else ():
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} works with guidance_kind {kind}, not with {self.guidance_kind}; leave it out, or set "
                        f"guidance_kind to {kind}"
                    )
        if self.zero_init and not SAMPLERS[self.sampler].zero_init:
            takers = listed((name for name, row in SAMPLERS.items() if row.zero_init), "and")
            raise ValueError(
                f"guidance_zero_init works with the {takers} samplers, not with {self.sampler}; set guidance_zero_init "
                "to 0"
            )

    @property
    def zero_init(self) -> int:
        """Evaluations at the start whose velocity is 0."""
        return self.guidance_zero_init if self.guidance_kind == "cfg-zero" else 0

    def guidance_for(self, sampler: str) -> dict[str, Any]:
        """This setting's keys of guidance, for a setting of another sampler; without what that does not take."""
        keys = {name: getattr(self, name) for name in type(self).model_fields if name.startswith("guidance")}
        if self.zero_init and not SAMPLERS[sampler].zero_init:
            keys["guidance_zero_init"] = 0
        return keys


GUIDANCE_KEYS: dict[GuidanceKind, tuple[str, ...]] = {
    "apg": ("guidance_eta", "guidance_norm", "guidance_momentum"),
    "cfg-zero": ("guidance_zero_init",),
}
"""Keys of ``SamplingConfig`` that one kind of guidance alone has."""
