"""PDE-Transformer (Holzschuh et al. 2025, arXiv 2505.24717), its form in which channels are mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.models.config import ModelConfig, check_multiples
from udit.nn.specs import Mlp

if TYPE_CHECKING:
    from torch import nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems

MAX_WIDTH = 2048
"""The release's levels are no wider; how it halves and doubles maps of that width is not built here."""


class PDEConfig(ModelConfig):
    """PDE-Transformer of any size; the defaults are MC-S on two fields of 256x256."""

    has_graph: ClassVar[bool] = False  # torch's exporter fixes the width of some maps, and says nothing

    family: Literal["PDE-Transformer"] = "PDE-Transformer"
    in_channels: PositiveInt = 2
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    time: Literal["index", "unit", "sigma"] = "unit"
    learn_sigma: bool = False
    width: PositiveInt = 96
    """Channels of the patches; every level down doubles them."""
    heads: PositiveInt = 4
    """Attention heads of every level."""
    depths: tuple[PositiveInt, ...] = (2, 5, 8, 2, 5)
    """Blocks per stage, encoder to bottleneck to decoder, in the order in which they run."""
    patch: PositiveInt = 4
    """Side of the square patch that becomes one token."""
    window: Annotated[int, Field(ge=2)] = 8
    """Side of the windows within which pixels attend to each other; every other block's are shifted by half of it."""
    periodic: bool = True
    """Whether the domain has no edge: shifted windows then reach across it."""
    ffn: Mlp = Mlp(gelu="exact")

    @model_validator(mode="after")
    def _check(self) -> PDEConfig:
        if len(self.depths) % 2 == 0 or len(self.depths) < 3:
            raise ValueError(
                f"depths has {len(self.depths)} entries; this U needs an odd number from 3 on, e.g. [2, 5, 8, 2, 5]"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} does not split over {self.heads} heads and into halves; choose a multiple of "
                f"{2 * self.heads}"
            )
        if self.widths[-1] > MAX_WIDTH:
            raise ValueError(
                f"the lowest level would have {self.widths[-1]} channels; at most {MAX_WIDTH} are built, take a "
                "smaller width or fewer levels"
            )
        self.check_size(*self.size)
        return self

    @property
    def levels(self) -> int:
        """Resolutions of the U, the bottleneck's included."""
        return (len(self.depths) + 1) // 2

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(self.width * 2**level for level in range(self.levels))

    @property
    def size_step(self) -> int | None:
        """What every level can halve; None with edges, where maps must split into windows as well."""
        return self.patch * 2 ** (self.levels - 1) if self.periodic else None

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width; with edges, into whole windows."""
        step = self.patch * 2 ** (self.levels - 1)
        check_multiples(height, width, step, f"cannot pass {self.levels} levels of {self.patch}x{self.patch} patches")
        for level in range(self.levels) if not self.periodic else ():
            sides = [side // self.patch // 2**level for side in (height, width)]
            if min(sides) >= self.window and any(side % self.window for side in sides):
                raise ValueError(
                    f"level {level + 1} of an input of {height}x{width} is {sides[0]}x{sides[1]}, which does not split "
                    f"into windows of {self.window}; with periodic=false take another size or window"
                )

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """See ``ModelConfig``; x is pure noise at time 1."""
        return {"kind": "flow"}

    def build(self) -> nn.Module:
        """See ``ModelConfig``."""
        from udit.models.pde.network import PDETransformer

        return PDETransformer(self)

    def published_keys(self) -> Keys:
        """See ``ModelConfig``."""
        from udit.models.pde.published import key_map

        return key_map(self)

    @classmethod
    def parity_systems(cls) -> Systems:
        """See ``ModelConfig``."""
        from udit.models.pde.parity import SYSTEMS

        return SYSTEMS
