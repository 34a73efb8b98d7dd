"""Wan 2.1 (Wan team 2025, arXiv 2503.20314): joint attention over all patches of a clip; a text by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from udit.errors import UserError
from udit.models.clips import ClipConfig
from udit.models.isotropic import IsotropicConfig
from udit.nn.specs import Context, Mlp, check_context

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class WanConfig(ClipConfig, IsotropicConfig):
    """Wan 2.1 of any size; the defaults are the 1.3B model on 81 frames of 480x832 pixels as latents.

    Its condition is a text (``context``): y is float [B, tokens, width]. Without ``context`` it is a label, whose
    embedding is the text's only token (ours: the release knows texts alone).
    """

    family: Literal["Wan"] = "Wan"
    in_channels: PositiveInt = 16
    num_classes: NonNegativeInt = 0
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = (60, 104)
    frames: PositiveInt = 21
    learn_sigma: bool = False
    width: PositiveInt = 1536
    depth: PositiveInt = 30
    heads: PositiveInt = 12
    patch_frames: PositiveInt = 1
    """Frames of a patch; ``patch`` is its side."""
    context: Context | None = Context(tokens=512, width=4096)
    """The text's tokens; None takes labels instead."""
    ffn: Mlp = Mlp(ratio=8960 / 1536)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_context(self.context, self.num_classes)
        channels = self.width // self.heads
        if channels % 2:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves {channels} channels per head; RoPE needs an even "
                f"number, e.g. width {self.heads * (channels + 1)}"
            )
        if self.frames % self.patch_frames:
            raise ValueError(
                f"frames {self.frames} do not split into patches of {self.patch_frames}; choose a multiple"
            )
        return self

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return self.depth // 4

    @property
    def texts(self) -> tuple[int, int]:
        """Tokens of a text, and their channels."""
        return (self.context.tokens, self.context.width) if self.context else (1, self.width)

    @property
    def rotary(self) -> tuple[int, int, int]:
        """Channels of a head that turn with the frame, the row and the column."""
        channels = self.width // self.heads
        side = 2 * (channels // 6)
        return channels - 2 * side, side, side

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: a text's vectors, or () for a label."""
        return self.texts if self.context else super().condition_shape

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """A flow, whose t is 1000 at noise."""
        return super().native_diffusion if self.time == "sigma" else {"kind": "flow"}

    @property
    def size_step(self) -> int:
        """A patch's side."""
        return self.patch

    def check_clip(self, shape: Sequence[int]) -> None:
        """As of ``ClipConfig``; frames must split into patches as well."""
        super().check_clip(shape)
        if shape[2] % self.patch_frames:
            raise UserError(f"a clip has {shape[2]} frames and patches have {self.patch_frames}; give a multiple")

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.wan.network import Wan

        return Wan(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.wan.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.wan.parity import SYSTEMS

        return SYSTEMS
