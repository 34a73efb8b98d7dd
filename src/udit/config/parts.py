"""Specs of the parts that networks share. A spec builds itself; the network that uses it stays free of switches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.config.base import Spec

if TYPE_CHECKING:
    from torch import nn


class Downsampled(Spec):
    """Self-attention within the interleaved sub-grids of a map (Tian et al. 2024, Sec. 3.2)."""

    kind: Literal["downsampled"] = "downsampled"
    factor: PositiveInt = 2
    """Sub-grids per axis; attention costs 1 / factor**2 of full attention. Divides H and W of every level."""
    kernel: Annotated[int, Field(ge=0)] = 5
    """Odd side of the depthwise low-pass filter in front; 0 for none."""
    shortcut: bool = True
    """Adds the map itself to the filtered map (Table 7: "DW + shortcut")."""
    cosine: bool = True
    """Cosine similarity with a learned temperature per head (Table 9); off is the scaled dot product."""
    rope: bool = True
    """Rotary positions from (row, column) (Table 9); off is no position but the convolutions'."""

    @model_validator(mode="after")
    def _check(self) -> Downsampled:
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; a centred filter needs an odd side, e.g. 5 (0 for none)")
        if self.shortcut and not self.kernel:
            raise ValueError("shortcut adds the map to its filtered self; with kernel 0 set shortcut to false")
        return self

    def build(self, width: int, heads: int) -> nn.Module:
        """The attention module for maps [B, H, W, width].

        Raises:
            UserError: heads do not divide the width, or RoPE cannot split a head.
        """
        from udit.nn.attention import DownsampledAttention

        return DownsampledAttention(self, width, heads)

    def folded(self) -> Downsampled:
        """The spec of the inference form: the shortcut lives in the filter."""
        return self.replace(shortcut=False)


class Global(Spec):
    """Cosine self-attention of all pixels of a map, with rotary positions along both axes (Crowson et al. 2024)."""

    kind: Literal["global"] = "global"

    def build(self, width: int, heads: int, shifted: bool = False) -> nn.Module:
        """The attention module for maps [B, H, W, width]; nothing is there to shift."""
        from udit.nn.axial import AxialAttention

        return AxialAttention(width, heads)

    def check_size(self, height: int, width: int) -> None:
        """Any map will do."""


class Window(Spec):
    """The same within square windows, which every other block shifts by half their side (Liu et al. 2021, Swin)."""

    kind: Literal["window"] = "window"
    size: PositiveInt = 8
    """Side of the windows in pixels of the level; divides its H and W."""

    def build(self, width: int, heads: int, shifted: bool = False) -> nn.Module:
        """The attention module for maps [B, H, W, width]; ``shifted`` for every other block."""
        from udit.nn.axial import AxialAttention

        return AxialAttention(width, heads, self.size, self.size // 2 if shifted else 0)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless windows tile a map of height x width."""
        if height % self.size or width % self.size:
            raise ValueError(f"windows of {self.size}x{self.size} do not tile a level's map of {height}x{width}")


class RepConv(Spec):
    """FFN with a depthwise convolution, re-parameterised while training (Tian et al. 2024, Sec. 3.3).

    ``branches`` are the sides of parallel depthwise convolutions, joined by an identity; each 1x1 convolution is a
    product of two through ``width`` channels. All of it is linear, so it folds into one convolution and one matrix a
    side.
    """

    kind: Literal["rep-conv"] = "rep-conv"
    ratio: Annotated[float, Field(gt=0)] = 2.0
    """Hidden channels per channel."""
    branches: tuple[PositiveInt, ...] = (5, 3, 1)
    """Odd sides, largest first."""
    reparam: bool = True
    """Off is the folded form: one matrix, one depthwise convolution without identity, one matrix."""

    @model_validator(mode="after")
    def _check(self) -> RepConv:
        if not self.branches or any(k % 2 == 0 for k in self.branches) or self.branches[0] != max(self.branches):
            raise ValueError(f"branches is {self.branches}; odd sides are needed, largest first, e.g. (5, 3, 1)")
        if not self.reparam and len(self.branches) != 1:
            raise ValueError(f"branches is {self.branches}; without reparam there is one, e.g. ({self.branches[0]},)")
        return self

    def build(self, width: int) -> nn.Module:
        """The FFN module for maps [B, H, W, width]."""
        from udit.nn.ffn import DepthwiseFFN

        return DepthwiseFFN(self, width)

    def folded(self) -> RepConv:
        """The spec of the inference form."""
        return self.replace(branches=self.branches[:1], reparam=False)


class Context(Spec):
    """A condition that comes as vectors: y is float [B, tokens, width], e.g. what a text encoder made."""

    tokens: PositiveInt = 77
    """Vectors a sample; CLIP's texts have 77."""
    width: PositiveInt = 768
    """Channels of each."""


class Mlp(Spec):
    """Two matrices with a GELU between, as in ViT."""

    kind: Literal["mlp"] = "mlp"
    ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden channels per channel."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """DiT's approximation by a hyperbolic tangent, or the exact function, as U-ViT has it."""

    def build(self, width: int) -> nn.Module:
        """The FFN module for [..., width]."""
        from udit.nn.ffn import MLP

        return MLP(self, width)

    def folded(self) -> Mlp:
        """Itself: there is nothing to fold."""
        return self


Ffn = Annotated[RepConv | Mlp, Field(discriminator="kind")]
