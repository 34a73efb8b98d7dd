"""HDiT (Crowson et al. 2024, arXiv 2401.11605): an hourglass of transformer levels on pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.nn.specs import AxialAttention, AxialGlobal
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class HourglassLevel(Spec):
    """The blocks of one resolution, on either side of the hourglass."""

    width: PositiveInt
    depth: PositiveInt
    """Blocks, on each side; the last level has one side."""
    head_channels: PositiveInt = 64
    """Channels of an attention head, a multiple of 8."""
    ratio: Annotated[float, Field(gt=0)] = 3.0
    """Hidden channels of the FFN per channel."""
    attention: AxialAttention = AxialGlobal()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share dropped in training, before the last matrix of attention and of FFN."""

    @model_validator(mode="after")
    def _check(self) -> HourglassLevel:
        if self.width % self.head_channels or self.head_channels % 8:
            raise ValueError(
                f"width {self.width} does not split into heads of {self.head_channels} channels, a multiple of 8; "
                "choose other head_channels"
            )
        return self

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_channels

    @property
    def hidden(self) -> int:
        """Hidden channels of the FFN."""
        return round(self.ratio * self.width)


class Mapping(Spec):
    """The network that turns time and labels into the condition."""

    depth: NonNegativeInt = 2
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Length of the condition."""
    ratio: Annotated[float, Field(gt=0)] = 3.0
    """Hidden channels per channel."""

    @property
    def hidden(self) -> int:
        """Hidden channels."""
        return round(self.ratio * self.width)


class HDiTConfig(ModelConfig):
    """HDiT of any size; the defaults are the release's config for CIFAR-10.

    The network takes the noise level sigma; ``diffusion.edm`` has the preconditioning it was published with.
    """

    has_graph: ClassVar[bool] = False
    family: Literal["HDiT"] = "HDiT"
    in_channels: PositiveInt = 3
    num_classes: NonNegativeInt = 10
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "sigma"
    patch: PositiveInt = 2
    """Side of the square of pixels that becomes one token."""
    stages: Annotated[tuple[HourglassLevel, ...], Field(min_length=1)] = (
        HourglassLevel(width=256, depth=2),
        HourglassLevel(width=512, depth=4),
    )
    """Levels, finest first; the last is the middle of the hourglass."""
    mapping: Mapping = Mapping()
    vector_cond: NonNegativeInt = 0
    """Length M of a free condition vector in addition to the label; 0 for none."""

    @model_validator(mode="after")
    def _check(self) -> HDiTConfig:
        if self.time != "sigma":
            raise ValueError(f"time is {self.time!r}; HDiT embeds the logarithm of the noise level, so it is 'sigma'")
        self.check_size(*self.size)
        return self

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width, and windows tile it."""
        factor = self.patch * 2 ** (len(self.stages) - 1)
        failure = f"cannot pass {len(self.stages)} levels of {self.patch}x{self.patch} patches"
        check_multiples(height, width, factor, failure)
        for level, stage in enumerate(self.stages):
            scale = self.patch * 2**level
            stage.attention.check_size(height // scale, width // scale)

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.hdit.network import HDiT

        return HDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.hdit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.hdit.parity import SYSTEMS

        return SYSTEMS
