"""What is measured: a network of this library, eager or compiled, or a baseline."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from udit.analysis import cost
from udit.errors import UserError, nearest
from udit.models.build import build, checkpoint_activations, compile_blocks, fuse
from udit.models.catalog import find
from udit.models.config import ModelConfig
from udit.models.published import export_published


@dataclass(frozen=True)
class Subject:
    """A network that can be built, unfused for training and fused for sampling."""

    name: str
    config: ModelConfig
    """Channels, classes and size of its input."""
    make: Callable[[], nn.Module]
    """Builds the unfused network on the current default device."""
    infer: Callable[[nn.Module], nn.Module]
    """Turns the unfused network into the one that samples."""
    compiled: bool = False
    recompute: bool = False
    """Whether training recomputes activations."""

    def training(self) -> nn.Module:
        """Ready to train."""
        model = self.make().train()
        if self.recompute:
            checkpoint_activations(model, "selective")
        return self._ready(model)

    def inference(self) -> nn.Module:
        """Ready to sample."""
        return self._ready(self.infer(self.make()).eval())

    def _ready(self, model: nn.Module) -> nn.Module:
        return compile_blocks(model) if self.compiled else model

    def flops(self, batch: int, size: tuple[int, int], training: bool) -> int:
        """FLOPs of a forward, or of a training step, which counts as three; on the meta device."""
        with torch.device("meta"), torch.no_grad():
            model = self.make().train() if training else self.infer(self.make()).eval()
            with FlopCounterMode(display=False) as counter:
                model(*inputs(self.config, batch, size))
        return counter.get_total_flops() * (3 if training else 1)


def inputs(config: ModelConfig, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """x, t and, of a conditional network, y, on the current default device."""
    x = torch.randn(batch, config.input_channels, *config.input_shape(size)[1:])
    t = torch.full((batch,), 0.5) if config.time == "unit" else torch.full((batch,), 500)
    if config.condition_shape:
        return x, t, torch.randn(batch, *config.condition_shape)
    return (x, t, torch.zeros(batch, dtype=torch.long)) if config.num_classes else (x, t)


def ours(name: str, config: ModelConfig, compiled: bool = False, recompute: bool = False) -> Subject:
    """A network of this library, of any config."""

    def make() -> nn.Module:
        return build(config, device=torch.get_default_device())

    title = name + ", compiled" * compiled + ", selective recomputation" * recompute
    return Subject(title, config, make, fuse, compiled, recompute)


def baseline(word: str, config: ModelConfig) -> Subject:
    """What a network of ours is compared with.

    Args:
        word: ``FILE.py:Class``, built from the config with the weights of ours under their published names;
            ``diffusers:Class`` or ``equal:DiT``, of about the same MACs; or a name of the catalogue.
        config: of ours.

    Raises:
        UserError: there is no such thing.
    """
    source, colon, name = word.rpartition(":")
    if not colon:
        return ours(word, _of_data(find(word).config, config))
    if word == "equal:DiT":
        layers, width = dit_of_equal_macs(config)
        theirs = find("DiT-S/2").config.replace(depth=layers, width=width, heads=width // 64)
        return ours(f"DiT/2, {layers} layers of {width}", _of_data(theirs, config))
    if source == "diffusers":
        from udit.benchmarking.foreign import MAKERS

        if name not in MAKERS:
            raise UserError(f"no baseline diffusers:{name}{nearest(name, MAKERS)}")
        return MAKERS[name](config)
    kind = _class_of(Path(source), name)

    def make() -> nn.Module:
        model = kind(config)
        if torch.get_default_device().type != "meta":
            model.load_state_dict(export_published(build(config)))
        return model

    return Subject(name, config, make, lambda model: model.fold() if hasattr(model, "fold") else model)  # type: ignore[operator]


def _of_data(config: ModelConfig, like: ModelConfig) -> ModelConfig:
    return config.replace(in_channels=like.in_channels, input_size=like.input_size)


def dit_of_equal_macs(config: ModelConfig) -> tuple[int, int]:
    """Depth and width of the DiT/2, in the proportions of the published ones, nearest in MACs at the input's size."""
    wanted, tokens = cost(config).macs, config.size[0] * config.size[1] // 4

    def macs(layers: int, width: int) -> int:
        return layers * (12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2)

    sizes = [(n, 64 * heads) for heads in range(1, 19) for n in range(heads, min(4 * heads, 28) + 1)]
    return min(sizes, key=lambda size: abs(macs(*size) - wanted))


def _class_of(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(
            f"no Python file {path}; a baseline is FILE.py:Class, diffusers:Class, equal:DiT or a name of the catalogue"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [key for key, value in vars(module).items() if isinstance(value, type)]
    if name not in classes:
        raise UserError(f"{path} has no class {name!r}{nearest(name, classes)}")
    return getattr(module, name)
