"""Specs of the layers that networks share. A spec builds its module, so that networks need no switch over kinds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.spec.base import Spec
from udit.spec.words import shown

if TYPE_CHECKING:
    from torch import nn


class MapAttention(Spec):
    """Base of the attention specs that U-DiT's blocks accept: how queries and keys are compared."""

    cosine: bool = True
    """Cosine similarity times a learned scale per head (Table 9); off is the scaled dot product."""
    rope: bool = True
    """Rotary positions from (row, column) (Table 9); off leaves positions to the convolutions."""

    any_map: ClassVar[bool] = True
    """Whether it takes every map whose H and W are multiples of ``step``."""

    @property
    def step(self) -> int:
        """H and W of every level's map must be multiples of it."""
        return 1

    def check_heads(self, width: int, heads: int) -> None:
        """Raises ValueError unless the heads divide the width and, with RoPE, a head has a multiple of 4 channels."""
        if width % heads:
            raise ValueError(f"width {width} does not split over {heads} heads; choose a multiple")
        channels = width // heads
        if self.rope and channels % 4:
            raise ValueError(
                f"width {width} over {heads} heads leaves {channels} channels per head; RoPE needs a multiple of 4, "
                f"e.g. width {4 * heads * max(1, round(channels / 4))}"
            )

    def check_map(self, height: int, width: int) -> None:
        """Raises ValueError if the attention cannot take a map of height x width, both multiples of ``step``."""

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """The attention module for maps [B, H, W, width] of the ``index``-th block of a stage.

        Raises:
            UserError: heads do not divide the width, or RoPE cannot split a head.
        """
        raise NotImplementedError(f"{type(self).__name__} names no module")

    def folded(self) -> Self:
        """The spec of the fused module."""
        return self


class Full(MapAttention):
    """Self-attention among all pixels of a map, as in DiT."""

    kind: Literal["full"] = "full"

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """See ``MapAttention``."""
        from udit.nn.attention import Attention

        return Attention(width, heads, cosine=self.cosine, rope=self.rope)


class Filtered(MapAttention):
    """Base of attentions whose input passes through a low-pass filter, a depthwise convolution."""

    factor: PositiveInt = 2
    """By how much an axis is downsampled; divides H and W of every level."""
    kernel: Annotated[int, Field(ge=0)] = 5
    """Odd side of the depthwise low-pass filter in front; 0 for none."""
    shortcut: bool = True
    """Adds the map itself to the filtered map (Table 7: "DW + shortcut")."""

    @model_validator(mode="after")
    def _check_filter(self) -> Self:
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; a centred filter needs an odd side, e.g. 5 (0 for none)")
        if self.shortcut and not self.kernel:
            raise ValueError(
                "shortcut adds the map to the filtered map; with kernel 0 there is no filter, set shortcut to false"
            )
        return self

    @property
    def step(self) -> int:
        """The factor."""
        return self.factor

    def folded(self) -> Self:
        """The spec of the fused module, in which the shortcut is part of the filter."""
        return self.replace(shortcut=False)


class Downsampled(Filtered):
    """Self-attention within the interleaved sub-grids of a map (Tian et al. 2024, Sec. 3.2).

    Each of the ``factor**2`` sub-grids attends to itself, at 1 / factor**2 of the cost of full attention.
    """

    kind: Literal["downsampled"] = "downsampled"
    dense: bool = False
    """The filter is an ordinary convolution that mixes channels, not a depthwise one. Table 7 has such a row and no
    equation; that the filter is the same otherwise is our definition."""

    @model_validator(mode="after")
    def _check_dense(self) -> Self:
        if self.dense and not self.kernel:
            raise ValueError(
                "dense makes the filter an ordinary convolution; with kernel 0 there is none, set it to false"
            )
        return self

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """See ``MapAttention``."""
        from udit.nn.attention import DownsampledAttention

        return DownsampledAttention(self, width, heads)


class KVDownsampled(Filtered):
    """Every pixel attends to a coarser map, as in pyramid transformers (the ablation of Tian et al. 2024, Table 1).

    The paper prints no equation; this definition is ours. Keys and values come from the filtered map, averaged over
    ``factor x factor`` pixels; queries come from the unfiltered map. Attention costs 1 / factor**2 of full attention.
    With RoPE the position of a mean is the centre of its pixels.
    """

    kind: Literal["kv-downsampled"] = "kv-downsampled"

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """See ``MapAttention``."""
        from udit.nn.attention import KVDownsampledAttention

        return KVDownsampledAttention(self, width, heads)


class Window(MapAttention):
    """Self-attention within the square windows of a map (Liu et al. 2021, Swin).

    Where an axis of the map is no longer than a window, one window spans it and is not shifted along it. Queries and
    keys are compared as in U-DiT. This is not Swin DiT's attention (arXiv 2505.13219), whose equations are unpublished.
    """

    any_map: ClassVar[bool] = False
    kind: Literal["window"] = "window"
    size: PositiveInt = 8
    """Side of the windows in pixels of the level."""
    shift: bool = True
    """Every other block of a stage, from the second on, shifts its windows by half their side."""

    def check_map(self, height: int, width: int) -> None:
        """Raises ValueError unless windows tile the map, or one spans it."""
        if any(side > self.size and side % self.size for side in (height, width)):
            raise ValueError(
                f"windows of {self.size}x{self.size} do not tile a level's map of {height}x{width}; each side is a "
                f"multiple of {self.size}, or smaller than that"
            )

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """See ``MapAttention``."""
        from udit.nn.attention import WindowAttention

        return WindowAttention(self, width, heads, self.size // 2 if self.shift and index % 2 else 0)


class BridgedWindow(MapAttention):
    """Windows that are linked by high frequencies and not shifted, after the idea of Swin DiT (arXiv 2505.13219).

    Some heads attend within windows. The channels of the others pass a depthwise convolution whose kernels sum to 0: it
    reaches over the windows' borders and keeps what attention, a weighted mean, smooths away. A matrix mixes both.

    The paper's abstract speaks of window attention with a high-frequency bridging branch in place of shifted windows,
    and of channels that are divided between both. Operators, shares and depths are unpublished; these are ours, and
    nothing is claimed of that system.
    """

    any_map: ClassVar[bool] = False
    kind: Literal["bridged-window"] = "bridged-window"
    size: PositiveInt = 8
    """Side of the windows in pixels of the level."""
    bridge_heads: PositiveInt = 1
    """Of the heads, how many give their channels to the bridge; they do not attend."""
    kernel: Annotated[int, Field(ge=3)] = 5
    """Odd side of the bridge's convolution."""

    @model_validator(mode="after")
    def _check_kernel(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; a centred filter needs an odd side, e.g. 5")
        return self

    def check_heads(self, width: int, heads: int) -> None:
        """As ``MapAttention``; and a head is left to attend."""
        super().check_heads(width, heads)
        if self.bridge_heads >= heads:
            raise ValueError(
                f"bridge_heads is {self.bridge_heads} and there are {heads} heads; at least one must be left to attend"
            )

    def check_map(self, height: int, width: int) -> None:
        """Raises ValueError unless windows tile the map, or one spans it."""
        Window(size=self.size).check_map(height, width)

    def build(self, width: int, heads: int, index: int = 0) -> nn.Module:
        """See ``MapAttention``."""
        from udit.nn.bridge import BridgedWindowAttention

        return BridgedWindowAttention(self, width, heads)


Attention = Annotated[Downsampled | KVDownsampled | Full | Window | BridgedWindow, Field(discriminator="kind")]


class AxialGlobal(Spec):
    """Cosine self-attention of all pixels of a map, with rotary positions along both axes (Crowson et al. 2024)."""

    kind: Literal["global"] = "global"

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; ``shifted`` has no effect."""
        from udit.nn import axial

        return axial.AxialAttention(width, heads, dropout=dropout)

    def check_size(self, height: int, width: int) -> None:
        """Accepts any map."""


class AxialWindow(Spec):
    """``AxialGlobal`` within square windows, shifted by half a side in every other block (Liu et al. 2021, Swin)."""

    kind: Literal["window"] = "window"
    size: PositiveInt = 8
    """Side of the windows in pixels of the level; divides its H and W."""

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; ``shifted`` for every other block."""
        from udit.nn import axial

        shift = self.size // 2 if shifted else 0
        return axial.AxialAttention(width, heads, partial(axial.attend_windows, size=self.size, shift=shift), dropout)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless windows tile a map of height x width."""
        if height % self.size or width % self.size:
            raise ValueError(f"windows of {self.size}x{self.size} do not tile a level's map of {height}x{width}")


class AxialNeighborhood(Spec):
    """``AxialGlobal`` within a square around each pixel, shifted inside at the edges (Hassani et al. 2023, NATTEN)."""

    kind: Literal["neighborhood"] = "neighborhood"
    kernel: PositiveInt = 7
    """Odd side of the square that a pixel attends to, in pixels of the level."""

    @model_validator(mode="after")
    def _check(self) -> AxialNeighborhood:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; a neighbourhood around a pixel needs an odd side, e.g. 7")
        return self

    def build(self, width: int, heads: int, shifted: bool = False, dropout: float = 0.0) -> nn.Module:
        """The attention module for maps [B, H, W, width]; ``shifted`` has no effect."""
        from udit.nn import axial
        from udit.nn.neighborhood import neighborhood_attention

        attend = partial(neighborhood_attention, kernel=self.kernel, scale=1.0)
        return axial.AxialAttention(width, heads, attend, dropout)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless a map of height x width holds a neighbourhood."""
        if min(height, width) < self.kernel:
            raise ValueError(
                f"neighbourhoods of {self.kernel}x{self.kernel} do not fit a level's map of {height}x{width}"
            )


AxialAttention = Annotated[AxialGlobal | AxialWindow | AxialNeighborhood, Field(discriminator="kind")]


class RepConv(Spec):
    """FFN with a depthwise convolution, re-parameterised while training (Tian et al. 2024, Sec. 3.3).

    ``branches`` are the sides of parallel depthwise convolutions, joined by an identity; each 1x1 convolution is a
    product of two through ``width`` channels. All of these are linear, so fusing makes them one depthwise convolution
    between two matrices.
    """

    kind: Literal["rep-conv"] = "rep-conv"
    ratio: Annotated[float, Field(gt=0)] = 2.0
    """Hidden channels per channel."""
    branches: tuple[PositiveInt, ...] = (5, 3, 1)
    """Odd sides, largest first."""
    reparam: bool = True
    """Off is the fused form: one matrix, one depthwise convolution without identity, one matrix."""

    @model_validator(mode="after")
    def _check(self) -> RepConv:
        if not self.branches or any(k % 2 == 0 for k in self.branches) or self.branches[0] != max(self.branches):
            raise ValueError(f"branches is {shown(self.branches)}; odd sides are needed, largest first, e.g. [5, 3, 1]")
        if not self.reparam and len(self.branches) != 1:
            raise ValueError(
                f"branches is {shown(self.branches)}; without reparam there is one, e.g. [{self.branches[0]}]"
            )
        return self

    def build(self, width: int) -> nn.Module:
        """The FFN module for maps [B, H, W, width]."""
        from udit.nn.ffn import DepthwiseFFN

        return DepthwiseFFN(self, width)

    def folded(self) -> RepConv:
        """The spec of the fused module."""
        return self.replace(branches=self.branches[:1], reparam=False)


class Context(Spec):
    """A condition of vectors: y is float [B, tokens, width], e.g. the output of a text encoder."""

    tokens: PositiveInt = 77
    """Vectors per sample; CLIP's texts have 77."""
    width: PositiveInt = 768
    """Channels of each vector."""


def check_context(context: Context | None, num_classes: int) -> None:
    """Raises ValueError where a model would take both vectors and labels."""
    if context and num_classes:
        raise ValueError(f"context replaces labels and num_classes is {num_classes}; set it to 0, or drop context")


class Mlp(Spec):
    """Two matrices with a GELU between, as in ViT."""

    kind: Literal["mlp"] = "mlp"
    ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden channels per channel."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """DiT's approximation by a hyperbolic tangent, or the exact function, as in U-ViT."""

    def build(self, width: int) -> nn.Module:
        """The FFN module for [..., width]."""
        from udit.nn.ffn import MLP

        return MLP(self, width)

    def folded(self) -> Mlp:
        """The spec itself: an MLP is not re-parameterised."""
        return self


Ffn = Annotated[RepConv | Mlp, Field(discriminator="kind")]


class SwiGlu(Spec):
    """Two matrices, the first one's halves multiplied, one of them behind a SiLU (Shazeer 2020)."""

    kind: Literal["swiglu"] = "swiglu"
    hidden: PositiveInt | None = None
    """Hidden channels. None is two thirds of four times the width, rounded down: the weights of an MLP of ratio 4."""

    def channels(self, width: int) -> int:
        """Hidden channels at this width."""
        return self.hidden or 8 * width // 3

    def build(self, width: int) -> nn.Module:
        """The FFN module for [..., width]."""
        from udit.nn.ffn import SwiGLU

        return SwiGLU(self, width)
