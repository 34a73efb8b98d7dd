"""What every backbone's config says, whatever its architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt

from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import nn


class ModelConfig(Spec):
    """The boundary of a backbone: x [B, in_channels, H, W] -> [B, out_channels, H, W].

    A subclass is one architecture family: its own fields, ``build`` and ``folded``.
    """

    family: str
    """Names the architecture; a subclass says it with a Literal and a default."""
    in_channels: PositiveInt = 4
    """Channels of the noisy input: 4 for the latents of SD's VAE, 1 or 3 for pixels."""
    num_classes: NonNegativeInt = 1000
    """Classes without the null class; 0 is unconditional."""
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32
    """H = W, or (H, W), of the input the model is meant for; other sizes run where the levels can halve them."""
    learn_sigma: bool = True
    """Predicts the variance beside eps (Nichol & Dhariwal 2021): twice the output channels."""
    time: Literal["index", "unit", "sigma"] = "index"
    """The network's own unit of t: 0..999, 0..1, or the noise level sigma."""
    reversed_flow: bool = False
    """The network's flow runs the other way, as SiT's does: its t is 0 at noise and 1 at data, its output x0 - eps."""

    @property
    def out_channels(self) -> int:
        """Channels of the output: the prediction, then the variance where it is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    has_graph: ClassVar[bool] = True
    """Whether it has been shown that ONNX and OpenVINO have counterparts of all its operators."""

    @property
    def null_label(self) -> int | None:
        """The label that means "no class"; None for a model without one."""
        return self.num_classes if self.num_classes else None

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: () of a label, that of float vectors where the model takes them, None without y."""
        return () if self.num_classes else None

    @property
    def size_step(self) -> int | None:
        """H and W may be any multiples of it; None where positions or windows bind the network to one size."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input the model is meant for."""
        return (self.input_size, self.input_size) if isinstance(self.input_size, int) else self.input_size

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless the network takes an input of height x width."""

    def build(self) -> nn.Module:
        """The network with uninitialised weights on the current default device; ``udit.build`` fills them."""
        raise NotImplementedError(f"{type(self).__name__} names no network")

    def folded(self) -> Self:
        """The config of the inference form that ``udit.fuse`` returns."""
        return self
