"""HDiT (Crowson et al. 2024, arXiv 2401.11605): an hourglass of transformer levels straight on pixels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from udit.models.config import ModelConfig
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import nn


class AxialGlobal(Spec):
    """Cosine self-attention of all pixels of a map, with rotary positions along both axes (Crowson et al. 2024)."""

    kind: Literal["global"] = "global"

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; nothing is there to shift."""
        from udit.nn.axial import AxialAttention

        return AxialAttention(width, heads, dropout=dropout)

    def check_size(self, height: int, width: int) -> None:
        """Any map will do."""


class AxialWindow(Spec):
    """The same within square windows, which every other block shifts by half their side (Liu et al. 2021, Swin)."""

    kind: Literal["window"] = "window"
    size: PositiveInt = 8
    """Side of the windows in pixels of the level; divides its H and W."""

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; ``shifted`` for every other block."""
        from udit.nn.axial import AxialAttention, attend_windows

        shift = self.size // 2 if shifted else 0
        return AxialAttention(width, heads, partial(attend_windows, size=self.size, shift=shift), dropout)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless windows tile a map of height x width."""
        if height % self.size or width % self.size:
            raise ValueError(f"windows of {self.size}x{self.size} do not tile a level's map of {height}x{width}")


class AxialNeighborhood(Spec):
    """The same among the pixels around each (Hassani et al. 2023, NATTEN), moved inside the map at its edges."""

    kind: Literal["neighborhood"] = "neighborhood"
    kernel: PositiveInt = 7
    """Odd side of the square of pixels that each attends to, in pixels of the level."""

    @model_validator(mode="after")
    def _check(self) -> AxialNeighborhood:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; a neighbourhood around a pixel needs an odd side, e.g. 7")
        return self

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; nothing is there to shift."""
        from udit.nn.axial import AxialAttention
        from udit.nn.neighborhood import neighborhood_attention

        attend = partial(neighborhood_attention, kernel=self.kernel, scale=1.0)
        return AxialAttention(width, heads, attend, dropout)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless a map of height x width holds a neighbourhood."""
        if min(height, width) < self.kernel:
            raise ValueError(
                f"neighbourhoods of {self.kernel}x{self.kernel} do not fit a level's map of {height}x{width}"
            )


class HourglassLevel(Spec):
    """The blocks of one resolution, on either side of the hourglass."""

    width: PositiveInt
    depth: PositiveInt
    """Blocks, on each side; the last level has one side."""
    head_channels: PositiveInt = 64
    """Channels of an attention head, a multiple of 8."""
    ratio: Annotated[float, Field(gt=0)] = 3.0
    """Hidden channels of the FFN per channel."""
    attention: Annotated[AxialGlobal | AxialWindow | AxialNeighborhood, Field(discriminator="kind")] = AxialGlobal()
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
    """Length M of a free condition vector beside the label; 0 for none."""

    @model_validator(mode="after")
    def _check(self) -> HDiTConfig:
        if self.time != "sigma":
            raise ValueError(f"time is {self.time!r}; HDiT embeds the logarithm of the noise level, so it is 'sigma'")
        self.check_size(*self.size)
        return self

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width, and windows tile it."""
        factor = self.patch * 2 ** (len(self.stages) - 1)
        if height % factor or width % factor:
            near = [max(factor, factor * round(side / factor)) for side in (height, width)]
            raise ValueError(
                f"an input of {height}x{width} cannot pass {len(self.stages)} levels of {self.patch}x{self.patch} "
                f"patches; H and W must be multiples of {factor}, e.g. {near[0]}x{near[1]}"
            )
        for level, stage in enumerate(self.stages):
            scale = self.patch * 2**level
            stage.attention.check_size(height // scale, width // scale)

    def build(self) -> nn.Module:
        """The network, uninitialised."""
        from udit.models.hdit.network import HDiT

        return HDiT(self)
