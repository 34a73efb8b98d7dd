"""How images are drawn from a model, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from udit.diffusion.samplers import SAMPLERS, listed
from udit.errors import UserError, nearest
from udit.spec.base import Spec

GuidanceKind = Literal["cfg", "apg", "cfg-zero"]


def known_sampler(name: str) -> str:
    """The name itself.

    Raises:
        UserError: no sampler has it.
    """
    if name not in SAMPLERS:
        raise UserError(f"no sampler has that name{nearest(name, SAMPLERS)}")
    return name


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
        if not SAMPLERS[self.sampler].caches and (self.refresh or self.cache > 1):
            raise ValueError(
                f"{'refresh' if self.refresh else 'cache'} keeps what changes little between many steps, and "
                f"{self.sampler} takes few long ones; leave it out"
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

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain values; keys of ``LATER`` only where they differ from their defaults.

        So a setting without them is written as it always was: scores and samples of it that exist are found again.
        """
        values: dict[str, Any] = dump(self)
        defaults = {key: type(self).model_fields[key].default for key in LATER}
        return {key: value for key, value in values.items() if key not in LATER or value != defaults[key]}

    def replace(self, **changes: Any) -> Self:
        """As ``Spec.replace``; what a change puts out of use returns to its default.

        Another kind of guidance drops the former one's keys, and an interval and levels drop each other.
        """
        dropped: tuple[str, ...] = ()
        if changes.get("guidance_kind", self.guidance_kind) != self.guidance_kind:
            dropped += GUIDANCE_KEYS.get(self.guidance_kind, ())
        if changes.get("guidance_levels") is not None:
            dropped += ("guidance_interval",)
        elif "guidance_interval" in changes:
            dropped += ("guidance_levels",)
        return super().replace(**{key: type(self).model_fields[key].default for key in dropped} | changes)

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


LATER = frozenset({"guidance_levels", "guidance_kind", "guidance_rescale", "guidance_eta", "guidance_norm"})
LATER |= {"guidance_momentum", "guidance_zero_init"}
"""Keys of ``SamplingConfig`` that the first run folders did not have."""
GUIDANCE_KEYS: dict[GuidanceKind, tuple[str, ...]] = {
    "apg": ("guidance_eta", "guidance_norm", "guidance_momentum"),
    "cfg-zero": ("guidance_zero_init",),
}
"""Keys of ``SamplingConfig`` that one kind of guidance alone has."""
