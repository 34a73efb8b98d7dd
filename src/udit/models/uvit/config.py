"""U-ViT (Bao et al. 2023, arXiv 2209.12152): time, condition and patches are all tokens; long skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_even_depth
from udit.nn.specs import Context, Mlp, check_context

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class UViTConfig(IsotropicConfig):
    """U-ViT of any size; the defaults are U-ViT-L/2 on 32x32 latents.

    Its condition is a label (``num_classes``), vectors (``context``) or nothing (``num_classes=0``).
    """

    family: Literal["U-ViT"] = "U-ViT"
    width: PositiveInt = 1024
    depth: PositiveInt = 20
    """Blocks before and after the one in the middle, which is not counted."""
    heads: PositiveInt = 16
    ffn: Mlp = Mlp(gelu="exact")
    learn_sigma: bool = False
    null_class: bool = True
    """The label table has a row for "no class"; the release's ImageNet-64 models have none."""
    context: Context | None = None
    """Takes vectors as y; ``num_classes`` must be 0."""
    final_conv: bool = True
    """A 3x3 convolution over the pixels comes last; the release's H models have none."""
    shallow: PositiveInt = 4
    """Blocks at either end that run on cached steps too, at most half of all. Full steps do not depend on it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_even_depth(self.depth)
        if self.width % 2:
            raise ValueError(f"width is {self.width}; the time token, sines and cosines, needs an even one")
        check_context(self.context, self.num_classes)
        return self

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", behind the others; None without one."""
        return self.num_classes if self.num_classes and self.null_class else None

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """DDPM, for latents with Stable Diffusion's betas."""
        native = super().native_diffusion
        return {**native, "betas": "scaled-linear"} if native["kind"] == "ddpm" and self.in_channels == 4 else native

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: (tokens, width) for vectors, () for a label, None without a condition."""
        return (self.context.tokens, self.context.width) if self.context else super().condition_shape

    @property
    def extras(self) -> int:
        """Tokens in front of the patches: the time and the condition."""
        return 1 + (self.context.tokens if self.context else int(self.num_classes > 0))

    @property
    def leading_tokens(self) -> int:
        """See ``ModelConfig``."""
        return self.extras

    @property
    def outer(self) -> int:
        """``shallow``, or half the depth where that is less."""
        return min(self.shallow, self.depth // 2)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width is the one whose positions the model has learned."""
        super().check_size(height, width)
        if (height, width) != self.size:
            raise ValueError(
                f"an input is {height}x{width} and the learned positions are those of {self.size[0]}x{self.size[1]}; "
                "resize it, or build the model with that input_size"
            )

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.uvit.network import UViT

        return UViT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.uvit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.uvit.parity import SYSTEMS

        return SYSTEMS
