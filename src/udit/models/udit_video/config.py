"""U-DiT on clips (ours): U-DiT's network on each frame, and attention along time after every stage of the U."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from udit.errors import UserError
from udit.models.clips import ClipConfig
from udit.models.udit.config import UDiTConfig

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class UDiTVideoConfig(ClipConfig, UDiTConfig):
    """U-DiT on clips of any size; the defaults are U-DiT-S's on 16 latents of 32x32."""

    family: Literal["U-DiT-video"] = "U-DiT-video"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        if self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves {self.width // self.heads} channels per head; "
                f"positions in time need an even number, e.g. width {2 * self.heads}"
            )
        return self

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.udit_video.network import UDiTVideo

        return UDiTVideo(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        raise UserError("U-DiT-video is ours and has no published key names")

    @classmethod
    def parity_systems(cls) -> Systems:
        """None: no program writes reference files of it."""
        return {}
