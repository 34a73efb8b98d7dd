"""DiMSUM (Phung et al. 2024, arXiv 2411.04168): Mamba over space and over Haar wavelets, one shared attention block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.models.isotropic import IsotropicConfig, check_table

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class DiMSUMConfig(IsotropicConfig):
    """DiMSUM of any size; the defaults are DiMSUM-L/2 on 32x32 latents.

    Half of the channels are scanned in space, half in the wavelet domain. The release trains on SiT's flow, whose time
    is 0 at noise and 1 at data, along sines and cosines (``diffusion.path=gvp``).
    """

    has_graph: ClassVar[bool] = False
    family: Literal["DiMSUM"] = "DiMSUM"
    width: PositiveInt = 1024
    depth: PositiveInt = 16
    heads: PositiveInt = 16
    """Attention heads of the shared block."""
    attention_every: PositiveInt = 4
    """The shared attention block (one set of weights) follows every ``attention_every``-th block."""
    fusion_heads: PositiveInt = 8
    """Heads of the attention that joins the two halves of the channels."""
    states: PositiveInt = 16
    """State variables per channel of a scan."""
    kernel: PositiveInt = 4
    """Length of the causal convolution in front of a scan."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of samples for which, in training, a block's output is left out of the residual sum (stochastic depth); it
    rises linearly from 0 at the second block. The release has 0.1."""
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "unit"
    reversed_flow: bool = True
    null_class: bool = True
    """A null class behind the others, for guidance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table(self.width)
        if self.width % 2 or self.half % self.fusion_heads:
            raise ValueError(
                f"width {self.width} in two halves does not split over {self.fusion_heads} fusion_heads; choose a "
                f"multiple of {2 * self.fusion_heads}"
            )
        if self.depth < self.attention_every:
            raise ValueError(
                f"depth {self.depth} ends before the shared attention, which follows every {self.attention_every} "
                "blocks; choose more depth or a smaller attention_every"
            )
        return self

    @property
    def half(self) -> int:
        """Channels of either scan's input."""
        return self.width // 2

    @property
    def step_rank(self) -> int:
        """Rank of the projection that gives a scan its step sizes."""
        return -(-self.half // 16)

    def drop_rate(self, block: int) -> float:
        """Share of samples for which a block's input is left out of the residual sum."""
        return self.drop_path * max(0, block - 1) / max(1, self.depth - 1)

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """The flow along a cosine and a sine."""
        return {**super().native_diffusion, "path": "gvp"} if self.reversed_flow else super().native_diffusion

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", behind the others; None without one."""
        return self.num_classes if self.num_classes and self.null_class else None

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless an input of height x width is the model's own and its patches pass two wavelets."""
        super().check_size(height, width)
        factor = 4 * self.patch
        if height % factor or width % factor:
            near = [max(factor, factor * round(side / factor)) for side in (height, width)]
            raise ValueError(
                f"an input of {height}x{width} makes {height // self.patch}x{width // self.patch} patches, which two "
                f"wavelet levels cannot halve; H and W must be multiples of {factor}, e.g. {near[0]}x{near[1]}"
            )
        if (height, width) != self.size:
            raise ValueError(
                f"an input is {height}x{width} and the learned positions are those of {self.size[0]}x{self.size[1]}; "
                "resize it, or build the model with that input_size"
            )

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.dimsum.network import DiMSUM

        return DiMSUM(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.dimsum.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.dimsum.parity import SYSTEMS

        return SYSTEMS
