"""U-DiT-text, a text-to-image U after Playground v3 (Liu et al. 2024, arXiv 2409.10695), of which no code is public."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from udit.models.config import check_multiples
from udit.models.isotropic import IsotropicConfig, check_table
from udit.nn.specs import Context

if TYPE_CHECKING:
    from torch import nn


class UDiTTextConfig(IsotropicConfig):
    """U-DiT-text of any size; the defaults are U-DiT-text-S/2 on 32x32 latents.

    Public of Playground v3 are: image block i reads hidden layer i of a frozen decoder language model, one joint
    attention, skips between image blocks as in a U, fewer keys and values in the middle, 2-D rotary positions. How keys
    and values are reduced, and how skips join, was never published; both are ours.
    """

    family: Literal["U-DiT-text"] = "U-DiT-text"
    has_graph: ClassVar[bool] = False
    """An exported graph would have no language model for its prompts."""
    num_classes: NonNegativeInt = 0
    context: Context = Context(tokens=77, width=576)
    """Most tokens of a text, and channels of the language model's hidden states."""
    reduced: NonNegativeInt | None = None
    """Blocks in the middle whose keys and values of the image are means over ``reduction`` x ``reduction`` tokens; half
    of all if null. Queries keep their resolution."""
    reduction: PositiveInt = 2
    """Side of the squares that are averaged: 2 leaves a quarter of the keys and values."""
    skips: Literal["concatenated", "attended"] = "concatenated"
    """How a block joins its skip: both side by side, mixed to one width; or attention from the one to the other, the
    idea of XUT (HDM's network), whose operator here is ours."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes} and the model takes texts; leave it out")
        if (self.reduced or 0) > self.depth:
            raise ValueError(
                f"reduced is {self.reduced} and there are {self.depth} blocks; set it to {self.depth // 2}"
            )
        check_table(self.width)
        channels = self.width // self.heads
        if channels % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves {channels} channels per head; RoPE needs a "
                f"multiple of 4, e.g. width {4 * self.heads * max(1, round(channels / 4))}"
            )
        return self

    @property
    def readers(self) -> int:
        """Every block reads a layer of the language model."""
        return self.depth

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one text: (blocks, tokens, channels); rows of zeros are padding."""
        return (self.depth, self.context.tokens, self.context.width)

    @property
    def middle(self) -> range:
        """The blocks with reduced keys and values."""
        count = self.depth // 2 if self.reduced is None else self.reduced
        first = (self.depth - count) // 2
        return range(first, first + count)

    @property
    def outer(self) -> int:
        """Blocks at either end that run on cached steps too: a quarter, so that a cached step does half of the work."""
        return max(1, self.depth // 4) if self.depth > 1 else 0

    @property
    def size_step(self) -> int:
        """A patch's side, times that of the squares of tokens that are averaged."""
        return self.patch * (self.reduction if self.middle else 1)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width splits into whole squares of patches."""
        failure = f"does not split into {self.patch}x{self.patch} patches"
        if self.size_step > self.patch:
            failure += f", averaged over {self.reduction}x{self.reduction}"
        check_multiples(height, width, self.size_step, failure)

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.udit_text.network import UDiTText

        return UDiTText(self)
