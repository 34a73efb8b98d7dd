"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233): a convolutional U-Net, the baseline of DiT's paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from udit.models.config import HalvingConfig

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class ADMConfig(HalvingConfig):
    """ADM of any size; the defaults are the class-conditional model of 64x64 pixels."""

    family: Literal["ADM"] = "ADM"
    in_channels: PositiveInt = 3
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 64
    width: PositiveInt = 192
    """Channels that ``channel_mult`` multiplies, and features of the timestep."""
    channel_mult: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1, 2, 3, 4)
    """Channels of every level over ``width``, full resolution first; each product must be a multiple of 32."""
    res_blocks: PositiveInt = 3
    """Residual blocks of an encoder stage; a decoder stage has one more."""
    attention_factors: tuple[PositiveInt, ...] = (2, 4, 8)
    """Levels with attention, by how much smaller their map is than the input: the release's resolutions 32, 16, 8."""
    head_channels: PositiveInt | None = 64
    """Channels of an attention head at any width; None if ``heads`` gives the number of heads."""
    heads: PositiveInt | None = None
    """Attention heads, the same number at every level."""
    decoder_heads: PositiveInt | None = None
    """Attention heads of the decoder, if not ``heads``."""
    qkv_order: Literal["new", "legacy"] = "new"
    """Layout of the attention's projection: queries, keys and values, each by head; or heads, each with its three."""
    scale_shift_norm: bool = True
    """The condition scales and shifts a normalised map; off, it is added before the norm."""
    resblock_updown: bool = True
    """Residual blocks change the resolution; off, a convolution does."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share dropped in training, before the last convolution of every residual block; the release's 64x64 has 0.1."""
    null_class: bool = False
    """A label for "no class", which guidance needs; the released models have none."""

    @model_validator(mode="after")
    def _check(self) -> ADMConfig:
        if (self.head_channels is None) == (self.heads is None):
            raise ValueError(
                f"head_channels is {self.head_channels} and heads is {self.heads}; give one, and null for the other"
            )
        if self.decoder_heads is not None and self.heads is None:
            raise ValueError(
                f"decoder_heads is {self.decoder_heads} and head_channels decides; set decoder_heads to null"
            )
        if self.width % 2:
            raise ValueError(
                f"width {self.width} is odd; half of the timestep's features are sines, e.g. {self.width + 1}"
            )
        if self.null_class and not self.num_classes:
            raise ValueError("null_class needs classes, and num_classes is 0; set null_class to false")
        for level, width in enumerate(self.widths):
            if width == 0 or width % 32:
                raise ValueError(
                    f"channel_mult {self.channel_mult[level]:g} of width {self.width} makes {width} channels; the "
                    "norms need a multiple of 32"
                )
        factors = [2**level for level in range(len(self.widths))]
        if unknown := sorted(set(self.attention_factors) - set(factors)):
            raise ValueError(f"attention_factors has {unknown[0]}; the levels' are {', '.join(map(str, factors))}")
        attended = [
            width for factor, width in zip(factors, self.widths, strict=True) if factor in self.attention_factors
        ]
        for width in (*attended, self.widths[-1]):
            for split in (self.head_channels, self.heads, self.decoder_heads):
                if split is not None and width % split:
                    kind = "heads" if self.head_channels is None else "channels per head"
                    raise ValueError(f"a level of {width} channels does not split by {split} {kind}; choose a divisor")
        self.check_size(*self.size)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(int(mult * self.width) for mult in self.channel_mult)

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", where the model has one."""
        return self.num_classes if self.null_class else None

    def decoder_inputs(self, level: int) -> list[int]:
        """Input channels of each block of a decoder stage: those of the map plus those of a skip."""
        below = [*self.widths, self.widths[-1]][level + 1]
        entry = self.widths[max(0, level - 1)]
        maps = [below, *[self.widths[level]] * self.res_blocks]
        skips = [*[self.widths[level]] * self.res_blocks, entry]
        return [x + skip for x, skip in zip(maps, skips, strict=True)]

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level, 0 at full resolution, are followed by attention."""
        return 2**level in self.attention_factors

    def level_heads(self, level: int, decoder: bool = False) -> int:
        """Attention heads of a level's encoder (and the middle), or decoder."""
        if self.head_channels is not None:
            return self.widths[level] // self.head_channels
        assert self.heads is not None
        return self.decoder_heads or self.heads if decoder else self.heads

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.adm.network import ADM

        return ADM(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.adm.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.adm.parity import SYSTEMS

        return SYSTEMS
