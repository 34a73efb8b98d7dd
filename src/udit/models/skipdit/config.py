"""Skip-DiT (Chen et al. 2024, arXiv 2411.17616): DiT with long skips, made to be cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_even_depth, check_table

if TYPE_CHECKING:
    from torch import nn


class SkipDiTConfig(IsotropicConfig):
    """Skip-DiT of any size; the defaults are Skip-DiT-XL/2 on 32x32 latents."""

    family: Literal["Skip-DiT"] = "Skip-DiT"
    width: PositiveInt = 1152
    depth: PositiveInt = 28
    heads: PositiveInt = 16
    shallow: PositiveInt = 4
    """Blocks at either end that a cached step still runs, at most half of all. It changes no full step."""

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
        """The network, uninitialised."""
        from udit.models.skipdit.network import SkipDiT

        return SkipDiT(self)
