"""FiT (Lu et al. 2024, arXiv 2402.12376) and FiTv2 (Wang et al. 2024, arXiv 2410.13925)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.models.isotropic import PatchConfig
from udit.nn.specs import SwiGlu

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems


class FiTConfig(PatchConfig):
    """FiT of any size; the defaults are FiTv2's parts at DiT-S/2's size, on 32x32 latents."""

    family: Literal["FiT"] = "FiT"
    learn_sigma: bool = False
    time: Literal["index", "unit", "sigma"] = "unit"
    reversed_flow: bool = True
    ffn: SwiGlu = SwiGlu()
    qk_norm: bool = True
    """Queries and keys of each head are normalised, without weights."""
    rank: PositiveInt | None = 96
    """Channels between the two matrices of a block's modulation, beside one modulation that all blocks share (FiTv2);
    None is one matrix in each block (FiT)."""
    time_shift: Annotated[float, Field(gt=0)] = 1
    """s of t -> s t / (1 + (s - 1) t), what the network takes for t; 1 leaves it. Larger images want another."""
    theta: Annotated[float, Field(gt=1)] = 10000
    """Base of the rotary frequencies."""
    extrapolation: Literal[
        "normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"
    ] = "normal"
    """How rotary frequencies change on grids of more patches a side than ``trained_side``."""
    decoupled: bool = True
    """Each axis extrapolates by its own side; otherwise both by the larger one."""
    trained_side: PositiveInt = 16
    """Patches a side of the images of the training, for ``extrapolation``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        channels = self.width // self.heads
        if channels % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves {channels} channels per head; RoPE needs a "
                f"multiple of 4, e.g. width {4 * self.heads * max(1, round(channels / 4))}"
            )
        if self.time_shift != 1 and self.time != "unit":
            raise ValueError(f"time_shift is {self.time_shift} and time {self.time!r}; it is for times from 0 to 1")
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
        from udit.models.fit.network import FiT

        return FiT(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.fit.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.fit.parity import SYSTEMS

        return SYSTEMS
