"""REPA (Yu et al. 2025, arXiv 2410.06940): SiT with projectors from a block's features to a vision model's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_table
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class Projectors(Spec):
    """Three matrices with SiLUs between, from the features of one block, for each vision model."""

    after_block: PositiveInt = 8
    """How many blocks come before."""
    hidden: PositiveInt = 2048
    """Channels between the matrices."""
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (768,)
    """Channels of each vision model's features: 768 for DINOv2-B."""


class REPAConfig(IsotropicConfig):
    """REPA of any size; the defaults are REPA-B/2 on 32x32 latents."""

    family: Literal["REPA"] = "REPA"
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "unit"
    width: PositiveInt = 768
    heads: PositiveInt = 12
    projectors: Projectors = Projectors()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        if self.projectors.after_block > self.depth:
            raise ValueError(
                f"projectors.after_block is {self.projectors.after_block} and there are {self.depth} blocks; it is at "
                "most their number"
            )
        return self

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return self.depth // 4

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """A flow, whose t is 1 at noise."""
        return {"kind": "flow"} if self.time == "unit" else super().native_diffusion

    @property
    def size_step(self) -> int:
        """A patch's side."""
        return self.patch

    @property
    def aligned_widths(self) -> tuple[int, ...]:
        """See ``ModelConfig``."""
        return self.projectors.widths

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.repa.network import REPA

        return REPA(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.repa.published import key_map

        return key_map(self)

    def current_key(self, key: str) -> str:
        """See ``ModelConfig``: old checkpoints count the blocks behind the projectors anew, as ``decoder_blocks``."""
        old = re.fullmatch(r"decoder_blocks\.(\d+)\.(.+)", key)
        return f"blocks.{int(old[1]) + self.projectors.after_block}.{old[2]}" if old else key

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.repa.parity import SYSTEMS

        return SYSTEMS
