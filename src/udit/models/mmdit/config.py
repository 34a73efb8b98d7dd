"""MMDiT (Esser et al. 2024, arXiv 2403.03206), in the form of Stable Diffusion 3 and in that of 3.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_table
from udit.nn.specs import Context, check_context

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class MMDiTConfig(IsotropicConfig):
    """MMDiT of any size; the defaults are Stable Diffusion 3 medium's on latents of 128x128.

    Its condition is a text (``context``): y is float [B, 1 + tokens, width], first the pooled text, of which
    ``pooled`` channels are read, then the text's tokens. Without ``context`` it is a label, whose embedding is
    both the pooled text and the text's only token (ours: the paper's models know texts alone).
    """

    family: Literal["MMDiT"] = "MMDiT"
    in_channels: PositiveInt = 16
    num_classes: NonNegativeInt = 0
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 128
    learn_sigma: bool = False
    width: PositiveInt = 1536
    depth: PositiveInt = 24
    heads: PositiveInt = 24
    context: Context | None = Context(tokens=154, width=4096)
    """The text's tokens; None takes labels instead."""
    pooled: PositiveInt = 2048
    """Channels of the pooled text; without ``context`` it is not used."""
    table_side: PositiveInt = 192
    """Rows and columns of the table of positions, from whose centre an image takes its own: the most patches a side."""
    base_side: PositiveInt = 64
    """Positions are counted as if the table had this many rows and columns: in steps of base_side / table_side."""
    qk_norm: bool = False
    """Queries and keys of each head are normalised by RMSNorm, as in Stable Diffusion 3.5."""
    second_attention: tuple[NonNegativeInt, ...] = ()
    """Blocks, from 0, in which the image also attends to itself alone, as in Stable Diffusion 3.5 medium."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        check_context(self.context, self.num_classes)
        if beyond := [i for i in self.second_attention if i >= self.depth]:
            raise ValueError(f"second_attention names block {beyond[0]}; there are {self.depth}, counted from 0")
        return self

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return self.depth // 4

    @property
    def texts(self) -> tuple[int, int, int]:
        """Tokens of a text, their channels, and those of the pooled text."""
        return (self.context.tokens, self.context.width, self.pooled) if self.context else (1, self.width, self.width)

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: a text's vectors, the pooled one first; () for a label."""
        if not self.context:
            return super().condition_shape
        tokens, width, pooled = self.texts
        return 1 + tokens, max(width, pooled)

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """A flow, whose t is 1000 at noise."""
        return super().native_diffusion if self.time == "sigma" else {"kind": "flow"}

    @property
    def size_step(self) -> int:
        """A patch's side."""
        return self.patch

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width splits into patches, no more than the table has."""
        super().check_size(height, width)
        most = self.patch * self.table_side
        if max(height, width) > most:
            raise ValueError(
                f"an input of {height}x{width} has more than {self.table_side} patches a side; it may be up to "
                f"{most}x{most}, or raise table_side (and base_side, which keeps the positions' steps)"
            )

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.mmdit.network import MMDiT

        return MMDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.mmdit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.mmdit.parity import SYSTEMS

        return SYSTEMS
