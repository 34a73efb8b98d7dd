"""DiC (Tian et al. 2025, arXiv 2501.00603): a U of 3x3 convolutions under the conditions of a diffusion transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.models.config import HalvingConfig
from udit.spec.words import shown

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class DiCConfig(HalvingConfig):
    """DiC of any size; the defaults are DiC-S on 32x32 latents."""

    family: Literal["DiC"] = "DiC"
    width: PositiveInt = 96
    """Channels at full resolution, a multiple of 4; every level down doubles them."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (6, 6, 5, 6, 6)
    """Blocks per stage, encoder to bottleneck to decoder."""
    skip_stride: PositiveInt = 3
    """Every ``skip_stride``-th block of an encoder stage, counted from its end, has a skip to the decoder."""

    @model_validator(mode="after")
    def _check(self) -> DiCConfig:
        depths = self.depths
        if len(depths) % 2 == 0:
            raise ValueError(f"depths has {len(depths)} entries; a U needs an odd number, e.g. [6, 6, 5, 6, 6]")
        for encoder, decoder in zip(depths, depths[: len(depths) // 2 : -1], strict=False):
            if -(-encoder // self.skip_stride) != -(-decoder // self.skip_stride):
                raise ValueError(
                    f"depths is {shown(depths)}: with a skip every {self.skip_stride} blocks, {encoder} blocks leave "
                    f"other skips than the {decoder} across the U take; mirror the encoder's depths"
                )
        for width in self.widths:
            if width % 4 or width % min(32, width // 4) or 2 * width % min(32, width // 2):
                raise ValueError(
                    f"width {self.width} makes a level of {width} channels, which do not split into groups "
                    "to normalise; choose a power of two from 4, or a multiple of 32"
                )
        self.check_size(*self.size)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(self.width * 2**level for level in range((len(self.depths) + 1) // 2))

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.dic.network import DiC

        return DiC(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.dic.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.dic.parity import SYSTEMS

        return SYSTEMS
