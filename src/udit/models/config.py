"""Base class of every family's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt

from udit.errors import UserError
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from udit.models.fixed import Keys
    from udit.models.parity import Systems
    from udit.models.published import Layout


def check_multiples(height: int, width: int, factor: int, failure: str, alternative: str = "") -> None:
    """Raises ValueError unless ``factor`` divides an input's height and width.

    Args:
        height: H of the input.
        width: W of the input.
        factor: what divides them.
        failure: what such an input cannot do, as the message tells it.
        alternative: another remedy than a nearby size.
    """
    if height % factor or width % factor:
        near = [max(factor, factor * round(side / factor)) for side in (height, width)]
        raise ValueError(
            f"an input of {height}x{width} {failure}; H and W must be multiples of {factor}, e.g. "
            f"{near[0]}x{near[1]}{alternative}"
        )


class ModelConfig(Spec):
    """The boundary of a backbone: x [B, in_channels, H, W] -> [B, out_channels, H, W], of clips [B, C, F, H, W].

    A subclass is one architecture family: its own fields and ``build``; the other methods have defaults.
    """

    family: str
    """Name of the family; a subclass gives it as a Literal with a default."""
    in_channels: PositiveInt = 4
    """Channels of the noisy input: 4 for the latents of SD's VAE, 1 or 3 for pixels."""
    num_classes: NonNegativeInt = 1000
    """Classes without the null class; 0 is unconditional."""
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32
    """H = W, or (H, W), of the input the model is meant for; others run where ``check_size`` allows them."""
    learn_sigma: bool = True
    """Also predicts the variance (Nichol & Dhariwal 2021): twice the output channels."""
    time: Literal["index", "unit", "sigma"] = "index"
    """The network's own unit of t: 0..999, 0..1, or the noise level sigma."""
    reversed_flow: bool = False
    """The network's flow runs the other way, as SiT's does: its t is 0 at noise and 1 at data, its output x0 - eps."""
    condition_channels: NonNegativeInt = 0
    """Channels of what it sees beside the noisy input (``data.condition``), behind those of the input."""

    @property
    def input_channels(self) -> int:
        """Channels that the network takes: those of the noisy input, then those of the condition."""
        return self.in_channels + self.condition_channels

    second_time: bool = False
    """Also takes the time at which an average velocity ends, t [B, 2], by an embedding of its own (MeanFlow)."""

    @property
    def out_channels(self) -> int:
        """Channels of the output: the prediction, then the variance where it is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    has_graph: ClassVar[bool] = True
    """Whether ONNX and OpenVINO are known to have all its operators."""

    @property
    def null_label(self) -> int | None:
        """The label that means "no class"; None for a model without one."""
        return self.num_classes if self.num_classes else None

    @property
    def label_levels(self) -> int | None:
        """Levels of the network that embed the label each by itself; None where it is embedded once."""
        return None

    @property
    def leading_tokens(self) -> int:
        """Tokens in front of those of patches in what the network's blocks return."""
        return 0

    @property
    def aligned_widths(self) -> tuple[int, ...] | None:
        """Channels of each vision model's features that the network itself predicts (``aligned``), as REPA does."""
        return None

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's y: () for a label, that of the float vectors of a model that takes them; or None."""
        return () if self.num_classes else None

    @property
    def readers(self) -> int:
        """Layers of a language model that the network reads, one of them any number of times; 1 is the last layer."""
        return 1

    @property
    def native_diffusion(self) -> dict[str, Any]:
        """The noising process of the release's weights, as the keys of a run's ``diffusion`` section."""
        if self.reversed_flow:
            return {"kind": "flow"}
        return {"kind": "edm" if self.time == "sigma" else "ddpm"}

    @property
    def size_step(self) -> int | None:
        """H and W may be any multiples of it; None if positions or windows allow one size only."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input the model is meant for."""
        return (self.input_size, self.input_size) if isinstance(self.input_size, int) else self.input_size

    @property
    def clip_frames(self) -> int | None:
        """Frames of the clips that the model is meant for; None where it takes images."""
        return None

    def input_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """(C, H, W) of one input, or (C, F, H, W) of a clip; H and W are the model's own where no size is given."""
        frames = () if self.clip_frames is None else (self.clip_frames,)
        return (self.in_channels, *frames, *(size or self.size))

    def refuse_clips(self, what: str) -> None:
        """Raises UserError where the model is one of clips, which ``what`` cannot handle."""
        if self.clip_frames is not None:
            raise UserError(f"{what} is for images and {self.family} draws clips; draw them with `udit sample`")

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless the network takes an input of height x width."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, by the name under which peft and others ask a network's config for them."""
        return self.model_dump(mode="json")

    def build(self) -> nn.Module:
        """The network with uninitialised weights on the current default device; ``udit.build`` fills them."""
        raise NotImplementedError(f"{type(self).__name__} names no network")

    def folded(self) -> Self:
        """The config of the fused network that ``udit.fuse`` returns."""
        return self

    def published_keys(self) -> Keys:
        """The release's key names in its order, each with our key (or the table we compute) and the release's shape.

        Raises:
            UserError: the model has no published form (it is fused, or an ablation, or there is no release).
        """
        raise UserError(f"{self.family} has no published key names")

    def current_key(self, key: str) -> str:
        """The release's present name of a key that its older checkpoints call by another."""
        return key

    def check_published(self, state: dict[str, Tensor], repair: bool) -> None:
        """Looks for damage that the release's own code may have done to a state dict.

        Args:
            state: the release's state dict; with ``repair``, repaired in place (new tensors).
            repair: undo what is certain instead of refusing it.

        Raises:
            UserError: the damage is certain, and ``repair`` is off.
        """

    @classmethod
    def diffusers_layouts(cls) -> dict[str, Layout]:
        """Forms of the family's weights in diffusers, by the name of the class there."""
        return {}

    @classmethod
    def parity_systems(cls) -> Systems:
        """Builders of the networks that reference files (``udit parity``) describe, by their name there."""
        return {}


class HalvingConfig(ModelConfig):
    """A U whose levels halve the map, each with as many channels as ``widths`` says."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        raise NotImplementedError(f"{type(self).__name__} names no widths")

    @property
    def size_step(self) -> int:
        """What every level can halve."""
        return 2 ** (len(self.widths) - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless every level can halve an input of height x width."""
        failure = f"cannot pass {len(self.widths)} levels"
        check_multiples(height, width, self.size_step, failure, ", or take fewer levels")
