"""LightningDiT (Yao et al. 2025, arXiv 2501.01423): DiT with rotary positions, RMSNorm and SwiGLU, on finer latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import PositiveInt, model_validator

from udit.models.isotropic import PatchConfig, check_table
from udit.nn.specs import SwiGlu

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class LightningDiTConfig(PatchConfig):
    """LightningDiT of any size; the defaults are LightningDiT-B/1 on the 32x16x16 latents of VA-VAE."""

    family: Literal["LightningDiT"] = "LightningDiT"
    in_channels: PositiveInt = 32
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 16
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "unit"
    reversed_flow: bool = True
    width: PositiveInt = 768
    heads: PositiveInt = 12
    patch: PositiveInt = 1
    ffn: SwiGlu = SwiGlu()
    rope: bool = True
    """Rotary positions, besides the fixed sin-cos table."""
    qk_norm: bool = False
    """Queries and keys of each head are normalised, by RMSNorm."""
    shift: bool = True
    """The condition shifts the blocks' norms too; off, it only scales them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        channels = self.width // self.heads
        if self.rope and channels % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves {channels} channels per head; RoPE needs a "
                f"multiple of 4, e.g. width {4 * self.heads * max(1, round(channels / 4))}"
            )
        return self

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return self.depth // 4

    @property
    def size_step(self) -> int:
        """A patch's side."""
        return self.patch

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.lightningdit.network import LightningDiT

        return LightningDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.lightningdit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.lightningdit.parity import SYSTEMS

        return SYSTEMS
