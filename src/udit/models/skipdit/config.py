"""Skip-DiT (Chen et al. 2024, arXiv 2411.17616): DiT with long skips, designed for step caching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_even_depth, check_table

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class SkipDiTConfig(IsotropicConfig):
    """Skip-DiT of any size; the defaults are Skip-DiT-XL/2 on 32x32 latents."""

    family: Literal["Skip-DiT"] = "Skip-DiT"
    width: PositiveInt = 1152
    depth: PositiveInt = 28
    heads: PositiveInt = 16
    shallow: PositiveInt = 4
    """Blocks at either end that run on cached steps too, at most half of all. Full steps do not depend on it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        check_even_depth(self.depth)
        return self

    @property
    def size_step(self) -> int:
        """A patch's side."""
        return self.patch

    @property
    def outer(self) -> int:
        """``shallow``, or half the depth where that is less."""
        return min(self.shallow, self.depth // 2)

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.skipdit.network import SkipDiT

        return SkipDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.skipdit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.skipdit.parity import SYSTEMS

        return SYSTEMS
