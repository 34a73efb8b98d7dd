"""The catalogue: one row a published size. Tests, documentation and the command line read their choices from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from udit.config.ablation import ABLATIONS, DIT_UNETS
from udit.config.adm import ADMConfig
from udit.config.base import Spec
from udit.config.dic import DiCConfig
from udit.config.dimsum import DiMSUMConfig
from udit.config.dit import DiTConfig
from udit.config.hdit import AxialNeighborhood, AxialWindow, HDiTConfig, HourglassLevel
from udit.config.model import ModelConfig
from udit.config.parts import Context, Downsampled, Mlp
from udit.config.skipdit import SkipDiTConfig
from udit.config.udit import UDiTConfig
from udit.config.uvit import UViTConfig
from udit.errors import UserError, nearest


class Entry(Spec):
    """One row: a config under the name users know, with its papers' facts."""

    config: ModelConfig = Field(repr=False)
    paper: str
    """arXiv identifier."""
    weights: str
    """Where weights are published and under which licence; a dash where none are."""


_UDIT_WEIGHTS = "yuchuantian/U-DiT (licence per repository; code CC BY-NC 4.0)"


def _udit(width: int, heads: int, **overrides: Any) -> Entry:
    config = UDiTConfig(width=width, heads=heads, **overrides)
    return Entry(config=config, paper="2405.02730", weights="-" if overrides else _UDIT_WEIGHTS)


_VANILLA: dict[str, Any] = {"attention": Downsampled(cosine=False, rope=False), "ffn": Mlp(ratio=2)}


def _ours(config: UDiTConfig) -> Entry:
    return Entry(config=config, paper="2405.02730", weights="-")


_ISOTROPIC: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""Sizes that DiT took from ViT, and all its descendants from DiT."""


def _dit(size: str, weights: str = "-", **overrides: Any) -> Entry:
    return Entry(config=DiTConfig(**_ISOTROPIC[size], **overrides), paper="2212.09748", weights=weights)


def _sit(size: str, weights: str = "-") -> Entry:
    sit = DiTConfig(**_ISOTROPIC[size], time="unit", learn_sigma=False, spare_outputs=True, reversed_flow=True)
    return Entry(config=sit, paper="2401.08740", weights=weights)


def _uvit(width: int, depth: int, heads: int, weights: str, patch: int = 2, **overrides: Any) -> Entry:
    config = UViTConfig(width=width, depth=depth, heads=heads, patch=patch, **overrides)
    return Entry(config=config, paper="2209.12152", weights=f"baofff/U-ViT, {weights} (MIT)")


_PIXELS: dict[str, Any] = {"in_channels": 3, "input_size": 64, "patch": 4}
_TEXT: dict[str, Any] = {"num_classes": 0, "context": Context()}
_DIT_WEIGHTS = "facebookresearch/DiT, file DiT-XL-2-{0}x{0}.pt (CC BY-NC 4.0)"


def _adm(size: int, mult: tuple[float, ...], factors: tuple[int, ...], **overrides: Any) -> Entry:
    file = f"{size}x{size}_diffusion{'' if overrides.get('num_classes', 1) else '_uncond'}.pt"
    values = {"width": 256, "res_blocks": 2, "qkv_order": "legacy", "input_size": size, **overrides}
    config = ADMConfig(channel_mult=mult, attention_factors=factors, **values)
    return Entry(config=config, paper="2105.05233", weights=f"openai/guided-diffusion, {file} (MIT)")


def _hdit(patch: int, *stages: HourglassLevel, **overrides: Any) -> Entry:
    config = HDiTConfig(patch=patch, stages=stages, **overrides)
    return Entry(config=config, paper="2401.11605", weights="-")


def _dimsum(width: int, depth: int, weights: str = "-", **overrides: Any) -> Entry:
    return Entry(config=DiMSUMConfig(width=width, depth=depth, **overrides), paper="2411.04168", weights=weights)


_DIMSUM_WEIGHTS = "VinAIResearch/DiMSUM, {} (BSD-3-Clause)"


def _dic(width: int, *depths: int) -> Entry:
    return Entry(config=DiCConfig(width=width, depths=depths), paper="2501.00603", weights="-")


CATALOG: dict[str, Entry] = {
    "U-DiT-S": _udit(96, 4),
    "U-DiT-B": _udit(192, 8),
    "U-DiT-L": _udit(384, 16),
    "U-DiT-S-vanilla": _udit(96, 4, **_VANILLA),
    "U-DiT-B-vanilla": _udit(192, 8, **_VANILLA),
    "U-DiT-L-vanilla": _udit(384, 16, **_VANILLA),
    **{name: _ours(config) for name, config in {**DIT_UNETS, **ABLATIONS}.items()},
    **{f"DiT-{size}/{patch}": _dit(size, patch=patch) for size in _ISOTROPIC for patch in (2, 4, 8)},
    "DiT-XL/2": _dit("XL", _DIT_WEIGHTS.format(256)),
    "DiT-XL/2-512": _dit("XL", _DIT_WEIGHTS.format(512), input_size=64),
    **{f"SiT-{size}/2": _sit(size) for size in _ISOTROPIC},
    "SiT-XL/2": _sit("XL", "willisma/SiT, XL/2 at 256x256 (MIT)"),
    "Skip-DiT-XL/2": Entry(
        config=SkipDiTConfig(),
        paper="2411.17616",
        weights="OpenSparseLLMs/Skip-DiT, README (Apache-2.0; code after DiT's, CC BY-NC 4.0)",
    ),
    "U-ViT-S/2": _uvit(512, 12, 8, "CIFAR-10 S/2", in_channels=3, num_classes=0),
    "U-ViT-S/4": _uvit(512, 12, 8, "CelebA 64 S/4", num_classes=0, **_PIXELS),
    "U-ViT-M/4": _uvit(768, 16, 12, "ImageNet 64 M/4", null_class=False, **_PIXELS),
    "U-ViT-L/4": _uvit(1024, 20, 16, "ImageNet 64 L/4", null_class=False, **_PIXELS),
    "U-ViT-L/2": _uvit(1024, 20, 16, "ImageNet 256 L/2"),
    "U-ViT-H/2": _uvit(1152, 28, 16, "ImageNet 256 H/2", final_conv=False),
    "U-ViT-L/4-512": _uvit(1024, 20, 16, "ImageNet 512 L/4", patch=4, input_size=64),
    "U-ViT-H/4-512": _uvit(1152, 28, 16, "ImageNet 512 H/4", patch=4, input_size=64, final_conv=False),
    "U-ViT-S/2-text": _uvit(512, 12, 8, "MS-COCO S/2", **_TEXT),
    "U-ViT-S/2-text-deep": _uvit(512, 16, 8, "MS-COCO S/2 deep", **_TEXT),
    "DiC-S": _dic(96, 6, 6, 5, 6, 6),
    "DiC-B": _dic(192, 6, 6, 5, 6, 6),
    "DiC-XL": _dic(384, 7, 7, 8, 7, 7),
    "DiC-H": _dic(384, 14, 14, 10, 14, 14),
    "ADM-64": _adm(64, (1, 2, 3, 4), (2, 4, 8), width=192, res_blocks=3, qkv_order="new"),
    "ADM-128": _adm(128, (1, 1, 2, 3, 4), (4, 8, 16), heads=4, head_channels=None),
    "ADM-256": _adm(256, (1, 1, 2, 2, 4, 4), (8, 16, 32)),
    "ADM-256-uncond": _adm(256, (1, 1, 2, 2, 4, 4), (8, 16, 32), num_classes=0),
    "ADM-512": _adm(512, (0.5, 1, 1, 2, 2, 4, 4), (16, 32, 64)),
    "HDiT-mnist": _hdit(4, HourglassLevel(width=256, depth=8), in_channels=1, input_size=28),
    "HDiT-cifar10": _hdit(2, HourglassLevel(width=256, depth=2), HourglassLevel(width=512, depth=4)),
    "HDiT-oxford-flowers": _hdit(
        4,
        HourglassLevel(width=128, depth=2, attention=AxialNeighborhood()),
        HourglassLevel(width=256, depth=2, attention=AxialNeighborhood()),
        HourglassLevel(width=512, depth=4),
        num_classes=0,
        input_size=256,
    ),
    "HDiT-oxford-flowers-shifted-window": _hdit(
        4,
        HourglassLevel(width=128, depth=2, attention=AxialWindow()),
        HourglassLevel(width=256, depth=2, attention=AxialWindow()),
        HourglassLevel(width=512, depth=4),
        num_classes=0,
        input_size=256,
    ),
    "DiMSUM-B/2": _dimsum(768, 12),
    "DiMSUM-L/2": _dimsum(1024, 16, _DIMSUM_WEIGHTS.format("ImageNet 256 L/2")),
    "DiMSUM-L/2-celeba": _dimsum(
        1024, 16, _DIMSUM_WEIGHTS.format("CelebA-HQ 256 L/2"), num_classes=1, null_class=False
    ),
    "DiMSUM-XL/2": _dimsum(1152, 24),
}

FAMILIES: dict[str, type[ModelConfig]] = {
    "U-DiT": UDiTConfig,
    "DiT": DiTConfig,
    "Skip-DiT": SkipDiTConfig,
    "U-ViT": UViTConfig,
    "DiC": DiCConfig,
    "ADM": ADMConfig,
    "HDiT": HDiTConfig,
    "DiMSUM": DiMSUMConfig,
}


def list_models() -> list[str]:
    """The names ``udit.build`` knows."""
    return list(CATALOG)


def find(name: str) -> Entry:
    """The catalogue's row of ``name``.

    Raises:
        UserError: no such name; the nearest one is told.
    """
    if name not in CATALOG:
        raise UserError(f"no model {name!r}{nearest(name, CATALOG)} (`udit models` lists all)")
    return CATALOG[name]
