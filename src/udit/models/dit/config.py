"""DiT (Peebles & Xie 2023, arXiv 2212.09748), and SiT (Ma et al. 2024, arXiv 2401.08740), which is the same network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from udit.models.isotropic import IsotropicConfig, check_table
from udit.nn.specs import Attention, Full

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems
    from udit.models.published import Layout


class DiTConfig(IsotropicConfig):
    """DiT of any size; the defaults are DiT-S/2 on 32x32 latents.

    SiT is this with ``time="unit"``, ``learn_sigma=False``, ``spare_outputs=True`` and ``reversed_flow=True``.
    """

    family: Literal["DiT"] = "DiT"
    attention: Attention = Full(cosine=False, rope=False)
    """The papers' attention by default; any other of U-DiT's, on the map of patches, makes an ablation."""
    spare_outputs: bool = False
    """The head has twice the channels and the network returns the first half: the form of SiT's published weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        self.attention.check_heads(self.width, self.heads)
        if self.spare_outputs and self.learn_sigma:
            raise ValueError("spare_outputs drops what learn_sigma returns; set one of them to false")
        return self

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return self.depth // 4

    @property
    def head_channels(self) -> int:
        """Channels that the head computes: ``out_channels``, then the unused ones."""
        return self.out_channels * (2 if self.spare_outputs else 1)

    @property
    def size_step(self) -> int | None:
        """A patch's side times the attention's step; None with windows."""
        return self.patch * self.attention.step if self.attention.any_map else None

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width splits into whole patches that the attention takes."""
        super().check_size(height, width)
        rows, columns, step = height // self.patch, width // self.patch, self.attention.step
        if rows % step or columns % step:
            raise ValueError(
                f"an input of {height}x{width} makes {rows}x{columns} patches, which do not split into {step}x{step} "
                f"sub-grids; H and W must be multiples of {self.patch * step}"
            )
        self.attention.check_map(rows, columns)

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.dit.network import DiT

        return DiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.dit.published import key_map

        return key_map(self)

    @classmethod
    def diffusers_layouts(cls) -> dict[str, Layout]:
        """See ``ModelConfig``."""
        from udit.models.dit.published import LAYOUTS

        return LAYOUTS

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.dit.parity import SYSTEMS

        return SYSTEMS

    def folded(self) -> Self:
        """The fused form: the attention's shortcut is folded into its filter."""
        return self.replace(attention=self.attention.folded())
