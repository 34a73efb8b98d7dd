"""U-DiT (Tian et al. 2024, arXiv 2405.02730): a U of transformer blocks with downsampled self-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.nn.specs import Attention, Context, Downsampled, Ffn, RepConv, check_context

if TYPE_CHECKING:
    from torch import Tensor, nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class UDiTConfig(ModelConfig):
    """U-DiT of any size; the defaults are U-DiT-S on 32x32 latents (Table 1 of the appendix)."""

    family: Literal["U-DiT"] = "U-DiT"
    width: PositiveInt = 96
    """Channels at full resolution; every level down doubles them."""
    heads: PositiveInt = 4
    """Attention heads, the same number at every level."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 5, 8, 5, 2)
    """Blocks per stage, encoder to bottleneck to decoder. A block, as the paper counts, is two attention-FFN pairs."""
    attention: Attention = Downsampled()
    ffn: Ffn = RepConv()
    context: Context | None = None
    """Takes vectors as y, e.g. those of a text; ``num_classes`` must be 0."""

    @model_validator(mode="after")
    def _check(self) -> UDiTConfig:
        if len(self.depths) % 2 == 0:
            raise ValueError(f"depths has {len(self.depths)} entries; a U needs an odd number, e.g. [2, 5, 8, 5, 2]")
        self.attention.check_heads(self.width, self.heads)
        if self.levels > 1 and self.width % 2:
            raise ValueError(f"width {self.width} is odd; merging 2x2 pixels needs an even width")
        if round(self.ffn.ratio * self.width) < 1:
            raise ValueError(
                f"ffn.ratio {self.ffn.ratio:g} leaves no hidden channel of {self.width}; choose a larger one"
            )
        check_context(self.context, self.num_classes)
        self.check_size(*self.size)
        return self

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: (tokens, width) for vectors, () for a label, None without a condition."""
        return (self.context.tokens, self.context.width) if self.context else super().condition_shape

    @property
    def levels(self) -> int:
        """Resolutions of the U, the bottleneck's included."""
        return (len(self.depths) + 1) // 2

    @property
    def label_levels(self) -> int:
        """All of them."""
        return self.levels

    @property
    def size_step(self) -> int | None:
        """What every level can halve and the attention can split; None with windows."""
        return 2 ** (self.levels - 1) * self.attention.step if self.attention.any_map else None

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width and attend to what it gets."""
        factor = 2 ** (self.levels - 1) * self.attention.step
        check_multiples(height, width, factor, f"cannot pass {self.levels} levels", ", or take fewer levels")
        for level in range(self.levels):
            self.attention.check_map(height >> level, width >> level)

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.udit.network import UDiT

        return UDiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.udit.published import key_map

        return key_map(self)

    def check_published(self, state: dict[str, Tensor], repair: bool) -> None:
        """Looks for what the release's ``eval()`` does to the weights; see ``ModelConfig``."""
        from udit.models.udit.published import check_eval

        check_eval(state, repair)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.udit.parity import SYSTEMS

        return SYSTEMS

    def folded(self) -> UDiTConfig:
        """The fused form: depthwise branches, products and shortcuts are folded into single weights."""
        return self.replace(attention=self.attention.folded(), ffn=self.ffn.folded())
