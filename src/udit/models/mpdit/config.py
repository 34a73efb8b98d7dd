"""MPDiT (arXiv 2603.26357): most blocks work on coarse patches, the last ones on fine patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.models.isotropic import check_table
from udit.nn.specs import Mlp

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class MPDiTConfig(ModelConfig):
    """MPDiT of any size; the defaults are MPDiT-B on 32x32 latents."""

    has_graph: ClassVar[bool] = False  # rounding grows: on the digits a graph differs by 1.3e-4 of the output

    family: Literal["MPDiT"] = "MPDiT"
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "unit"
    width: PositiveInt = 768
    """Channels of every block."""
    heads: PositiveInt = 12
    """Attention heads of every block."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (6, 6)
    """Blocks per level, the coarsest first; each level has patches of half the side of the one before."""
    patch: PositiveInt = 2
    """Side of the finest level's patches."""
    label_tokens: PositiveInt = 16
    """Tokens in front of the patches that a label becomes; it modulates nothing."""
    time_embedding: Literal["fno", "mlp"] = "fno"
    """A small Fourier neural operator around t, or DiT's MLP on sinusoids."""
    ffn: Mlp = Mlp()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split over {self.heads} heads; choose a multiple")
        self.check_size(*self.size)
        return self

    @property
    def leading_tokens(self) -> int:
        """See ``ModelConfig``."""
        return self.label_tokens if self.num_classes else 0

    @property
    def patches(self) -> tuple[int, ...]:
        """Side of every level's patches, the coarsest first."""
        return tuple(self.patch * 2**level for level in reversed(range(len(self.depths))))

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """A flow, whose t is 1 at noise."""
        return {"kind": "flow"} if self.time == "unit" else super().native_diffusion

    @property
    def size_step(self) -> int:
        """The side of the coarsest patches."""
        return self.patches[0]

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width splits into whole patches of the coarsest level."""
        side = self.patches[0]
        check_multiples(height, width, side, f"does not split into {side}x{side} patches", ", or take fewer levels")

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.mpdit.network import MPDiT

        return MPDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.mpdit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.mpdit.parity import SYSTEMS

        return SYSTEMS
