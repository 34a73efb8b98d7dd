"""What the configs of networks of clips share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import PositiveInt

from udit.errors import UserError
from udit.models.config import ModelConfig


class ClipConfig(ModelConfig):
    """A network of clips: x [B, in_channels, F, H, W] -> [B, out_channels, F, H, W]."""

    has_graph: ClassVar[bool] = False  # exported graphs are of images

    frames: PositiveInt = 16
    """F of the clips the model is meant for; others run, as positions in time are computed."""

    @property
    def clip_frames(self) -> int:
        """``frames``."""
        return self.frames

    def check_clip(self, shape: Sequence[int]) -> None:
        """Raises UserError unless an input of this shape is a batch of clips that the network takes."""
        if len(shape) != 5:
            raise UserError(f"x is {list(shape)}; {self.family} takes clips, [B, C, F, H, W]")
        self.check_size(shape[3], shape[4])
