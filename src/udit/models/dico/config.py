"""DiCo (Ai et al. 2025, arXiv 2505.11196): U-DiT's shell around convolutional blocks with channel attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.nn.specs import Mlp

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class DiCoConfig(ModelConfig):
    """DiCo of any size; the defaults are DiCo-S on 32x32 latents."""

    family: Literal["DiCo"] = "DiCo"
    width: PositiveInt = 128
    """Channels at full resolution; every level down doubles them."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (5, 4, 4, 4, 4)
    """Blocks per stage, encoder to bottleneck to decoder."""
    ffn: Mlp = Mlp(ratio=2, gelu="exact")

    @model_validator(mode="after")
    def _check(self) -> DiCoConfig:
        if len(self.depths) % 2 == 0:
            raise ValueError(f"depths has {len(self.depths)} entries; a U needs an odd number, e.g. [5, 4, 4, 4, 4]")
        if self.levels > 1 and self.width % 2:
            raise ValueError(f"width {self.width} is odd; merging 2x2 pixels needs an even width")
        if round(self.ffn.ratio * self.width) < 1:
            raise ValueError(
                f"ffn.ratio {self.ffn.ratio:g} leaves no hidden channel of {self.width}; choose a larger one"
            )
        self.check_size(*self.size)
        return self

    @property
    def levels(self) -> int:
        """Resolutions of the U, the bottleneck's included."""
        return (len(self.depths) + 1) // 2

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(self.width * 2**level for level in range(self.levels))

    @property
    def top(self) -> int:
        """Channels of the decoder at full resolution and of the head: those of the level below."""
        return self.widths[min(1, self.levels - 1)]

    @property
    def size_step(self) -> int:
        """What every level can halve."""
        return 2 ** (self.levels - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width."""
        failure = f"cannot pass {self.levels} levels"
        check_multiples(height, width, self.size_step, failure, ", or take fewer levels")

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.dico.network import DiCo

        return DiCo(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.dico.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.dico.parity import SYSTEMS

        return SYSTEMS
