"""The configs that transformers of one width over patches derive from."""

from __future__ import annotations

from typing import Self

from pydantic import PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.nn.specs import Mlp


class PatchConfig(ModelConfig):
    """A transformer whose blocks all have one width and work on one grid of patches."""

    width: PositiveInt = 384
    """Channels of every block."""
    depth: PositiveInt = 12
    """Blocks, as the paper counts them."""
    heads: PositiveInt = 6
    """Attention heads of every block."""
    patch: PositiveInt = 2
    """Side of the square patch that becomes one token."""

    @model_validator(mode="after")
    def _check_boundary(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split over {self.heads} heads; choose a multiple")
        self.check_size(*self.size)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the input the model is meant for."""
        height, width = self.size
        return height // self.patch, width // self.patch

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width splits into whole patches."""
        check_multiples(height, width, self.patch, f"does not split into {self.patch}x{self.patch} patches")


class IsotropicConfig(PatchConfig):
    """One with ViT's FFN."""

    ffn: Mlp = Mlp()


def check_table(width: int) -> None:
    """Raises ValueError unless sin-cos positions, a sine and a cosine of row and of column, fill ``width``."""
    if width % 4:
        raise ValueError(f"width is {width}; sin-cos positions need a multiple of 4, e.g. {4 * round(width / 4) or 4}")


def check_even_depth(depth: int) -> None:
    """Raises ValueError unless the blocks pair up over long skips."""
    if depth % 2:
        raise ValueError(f"depth {depth} is odd; long skips pair the blocks of two halves, e.g. depth {depth + 1}")
