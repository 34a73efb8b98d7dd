"""Configs of conditions: images that a network sees beside the noisy one, as further channels; free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from udit.spec.base import Spec, parse_kind

if TYPE_CHECKING:
    from udit.data.condition import Condition
    from udit.data.config import DataInfo


class ConditionBase(Spec):
    """What the library asks of a condition before torch is imported. A subclass is one kind."""

    kind: str

    def channels(self, seen: DataInfo) -> int:
        """Channels beside those of an image of which the network sees ``seen``.

        Raises:
            ValueError: there is no such condition of these images.
        """
        raise NotImplementedError(f"{type(self).__name__} has no channels")

    def build(self) -> Condition:
        """Makes the condition of images."""
        raise NotImplementedError(f"{type(self).__name__} makes nothing")


class PreviousState(ConditionBase):
    """The state of a simulation before: the network learns the next one. Of fields alone."""

    kind: Literal["previous"] = "previous"

    def channels(self, seen: DataInfo) -> int:
        """As many."""
        return seen.channels

    def build(self) -> Condition:
        """The earlier state as it is."""
        from udit.data.condition import Previous

        return Previous()


class LowResolution(ConditionBase):
    """The image averaged over squares: the network learns super-resolution."""

    kind: Literal["low-resolution"] = "low-resolution"
    factor: Annotated[int, Field(ge=2, le=64)] = 4
    """Side of the squares."""

    def channels(self, seen: DataInfo) -> int:
        """As many, if the squares fill the image."""
        if seen.height % self.factor or seen.width % self.factor:
            raise ValueError(
                f"data.condition.factor is {self.factor} and images are {seen.height}x{seen.width}; take a factor of "
                "both sides"
            )
        return seen.channels

    def build(self) -> Condition:
        """Averages, each as large as its square."""
        from udit.data.condition import Averaged

        return Averaged(self.factor)


class Mask(ConditionBase):
    """The image without a rectangle of it, and where that is: the network learns to fill in (inpainting)."""

    kind: Literal["mask"] = "mask"
    smallest: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Shortest side of the rectangle, as a share of the image's."""
    largest: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Longest side of the rectangle, as a share of the image's."""

    def channels(self, seen: DataInfo) -> int:
        """One more, which is 1 where the image is hidden."""
        if self.smallest > self.largest:
            raise ValueError(
                f"data.condition.smallest is {self.smallest:g} and largest {self.largest:g}; it must not be above it"
            )
        return seen.channels + 1

    def build(self) -> Condition:
        """Hides a rectangle, drawn by the image's key."""
        from udit.data.condition import Masked

        return Masked(self.smallest, self.largest)


class Grey(ConditionBase):
    """The mean of the image's channels: the network learns to colour it."""

    kind: Literal["grey"] = "grey"

    def channels(self, seen: DataInfo) -> int:
        """One."""
        if seen.channels < 2:
            raise ValueError("data.condition.kind is grey and the images are grey already; set data.channels=3")
        return 1

    def build(self) -> Condition:
        """Averages channels."""
        from udit.data.condition import Luminance

        return Luminance()


ConditionConfig = Annotated[PreviousState | LowResolution | Mask | Grey, Field(discriminator="kind")]


def condition_from(values: Any) -> Any:
    """A condition's config from plain values, or from its kind alone.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    if values is None or isinstance(values, Spec):
        return values
    return parse_kind(ConditionConfig, values if isinstance(values, dict) else {"kind": values}, where="data.condition")


AnyCondition = Annotated[ConditionConfig | None, BeforeValidator(condition_from)]
"""A condition's config, also from plain values or from its kind alone; or none."""
