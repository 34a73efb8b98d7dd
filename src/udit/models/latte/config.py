"""Latte (Ma et al. 2024, arXiv 2401.03048): DiT on clips; attention within each frame and along time, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from udit.models.clips import ClipConfig
from udit.models.isotropic import IsotropicConfig, check_table

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class LatteConfig(ClipConfig, IsotropicConfig):
    """Latte of any size; the defaults are Latte-S/2 on clips of UCF-101 as 16 latents of 32x32."""

    family: Literal["Latte"] = "Latte"
    num_classes: NonNegativeInt = 101
    width: PositiveInt = 384
    depth: PositiveInt = 12
    """Blocks; the even ones, from 0, attend within frames, the odd ones along time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        if self.depth % 2:
            raise ValueError(f"depth {self.depth} is odd; blocks of space and of time pair up, e.g. {self.depth + 1}")
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
        from udit.models.latte.network import Latte

        return Latte(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.latte.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.latte.parity import SYSTEMS

        return SYSTEMS
