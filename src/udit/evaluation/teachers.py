"""Vision models whose features a network's are aligned with (``training.align``); ``udit encode`` writes them once.

Each is called with uint8 images [B, C, H, W] and returns a map of features, float32 [B, Z, h, w]. Grey images are
repeated to three channels, and images are scaled to the side that the model was trained at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from udit.data.cache_config import TeacherFacts
from udit.data.sources import parts_of
from udit.errors import UserError, nearest
from udit.evaluation import vision
from udit.evaluation.vision import Vision, sha256_of
from udit.run.config import Run


@dataclass(frozen=True)
class MapOf:
    """A network with what its input and output are made of and into; see ``udit.data.encode.Teacher``."""

    facts: TeacherFacts
    prepare: Callable[[Tensor], Tensor]
    """uint8 [B, C, H, W] on the network's device -> its input."""
    network: Callable[[Tensor], Tensor]
    """-> [B, Z, h, w]"""
    device: torch.device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """The features of images."""
        return self.network(self.prepare(pixels.to(self.device))).float()


def load_teacher(words: str, run: Run, device: torch.device | str = "cpu") -> MapOf:
    """The vision model of a name.

    Args:
        words: one of ``TEACHERS``, with ``:SOURCE`` behind it where it takes one: a folder or a hub id.
        run: whose images it will see; of these is its judge.
        device: where it runs.

    Raises:
        UserError: there is no such model, a package is missing, or its weights cannot be read.
    """
    name, _, source = words.partition(":")
    if name not in TEACHERS:
        raise UserError(f"--teacher is {words!r}; it is one of {', '.join(TEACHERS)}{nearest(name, TEACHERS)}")
    takes_source = name in ("dinov2", "timm")
    if takes_source != bool(source) and (takes_source or name != "inception"):
        hint = f"give {name}:SOURCE, a folder or a hub id" if takes_source else f"give {name} alone"
        raise UserError(f"--teacher is {words!r}; {hint}")
    return TEACHERS[name](source, run, torch.device(device))


def efficientnet_lite0(_source: str, _run: Run, device: torch.device) -> MapOf:
    """``vision.efficientnet_lite0``."""
    return _of(vision.efficientnet_lite0(), device)


def judge(_source: str, run: Run, _device: torch.device) -> MapOf:
    """The judge of the run's data, whose training images the generator never sees: its last map, on the CPU."""
    from udit.evaluation.judges import judge_of

    source, data = run.data.build(), run.data
    found = judge_of(source, parts_of(source, data), run.evaluation.judge_steps, None, mirrored=data.mirrored)
    channels, height, width = found.shape
    side, on = max(height, width), torch.device("cpu")
    return _made("judge", found.net, side, lambda pixels: pixels, found.maps, on, channels)


def inception(source: str, _run: Run, device: torch.device) -> MapOf:
    """FID's Inception through torch-fidelity: its last map, 2048 channels at 8x8; the source is a file of weights."""
    from udit.evaluation.extractors import load_extractor
    from udit.evaluation.fidelity import Fidelity

    found = load_extractor("inception", Path(source) if source else None, str(device))
    assert isinstance(found, Fidelity), "torch-fidelity's"
    maps = _hooked(found.module, found.module.Mixed_7c)
    return _made("inception", found.module, 299, _three, maps, device, sha256=found.sha256)


def dinov2(source: str, _run: Run, device: torch.device) -> MapOf:
    """``vision.dinov2``: patch tokens after the last norm."""
    return _of(vision.dinov2(source), device)


def timm(source: str, _run: Run, device: torch.device) -> MapOf:
    """``vision.timm``: features before pooling."""
    return _of(vision.timm(source), device)


TEACHERS: Mapping[str, Callable[[str, Run, torch.device], MapOf]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "judge": judge,
    "inception": inception,
    "dinov2": dinov2,
    "timm": timm,
}
"""By the name that a cache records."""


def _of(model: Vision, device: torch.device) -> MapOf:
    return _made(model.name, model.net, model.side, model.prepare, model.maps, device)


def _made(
    name: str,
    net: nn.Module,
    side: int,
    prepare: Callable[[Tensor], Tensor],
    network: Callable[[Tensor], Tensor],
    device: torch.device,
    channels: int = 3,
    sha256: str | None = None,
) -> MapOf:
    """The teacher, with the shape of what it makes of an image of ``side`` pixels."""
    net.to(device).eval().requires_grad_(False)
    with torch.no_grad():
        shape = network(prepare(torch.zeros(1, channels, side, side, dtype=torch.uint8, device=device))).shape[1:]
    facts = {"name": name, "sha256": sha256 or sha256_of(net.state_dict()), "side": side, "shape": tuple(shape)}
    return MapOf(TeacherFacts.model_validate(facts), prepare, network, device)


def _three(pixels: Tensor) -> Tensor:
    """Grey images repeated to three channels."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def _hooked(net: nn.Module, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network as what one of its layers returns."""
    kept: list[Tensor] = []
    layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))

    def run(x: Tensor) -> Tensor:
        kept.clear()
        net(x)
        return kept.pop()

    return run
