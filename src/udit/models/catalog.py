"""The catalogue: one row for each published size. Tests, docs and the command line take their choices from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from udit.errors import UserError, nearest
from udit.models import papers
from udit.models.ablation import ABLATIONS, DIT_UNETS
from udit.models.adm.config import ADMConfig
from udit.models.config import ModelConfig
from udit.models.dic.config import DiCConfig
from udit.models.dico.config import DiCoConfig
from udit.models.dimsum.config import DiMSUMConfig
from udit.models.dit.config import DiTConfig
from udit.models.fit.config import FiTConfig
from udit.models.hdit.config import HDiTConfig, HourglassLevel, Mapping
from udit.models.latte.config import LatteConfig
from udit.models.lightningdit.config import LightningDiTConfig
from udit.models.mmdit.config import MMDiTConfig
from udit.models.mpdit.config import MPDiTConfig
from udit.models.pde.config import PDEConfig
from udit.models.repa.config import Projectors, REPAConfig
from udit.models.skipdit.config import SkipDiTConfig
from udit.models.udit.config import UDiTConfig
from udit.models.udit_text.config import UDiTTextConfig
from udit.models.udit_video.config import UDiTVideoConfig
from udit.models.uvit.config import UViTConfig
from udit.models.wan.config import WanConfig
from udit.nn.specs import AxialNeighborhood, AxialWindow, Context, Downsampled, Full, Mlp, SwiGlu
from udit.spec.base import Spec


class Entry(Spec):
    """One row: the config behind a model name, and where it comes from."""

    config: ModelConfig = Field(repr=False)
    about: papers.About
    weights: str = "-"
    """Where weights are published and under which licence; a dash if none are."""
    unverified: str = ""
    """Which parts of ``weights`` were not checked against their source."""


def _udit(width: int, heads: int) -> Entry:
    weights = "yuchuantian/U-DiT (licence per repository; code CC BY-NC 4.0)"
    return Entry(config=UDiTConfig(width=width, heads=heads), about=papers.UDIT, weights=weights)


def _vanilla(width: int, heads: int) -> Entry:
    parts: dict[str, Any] = {"attention": Downsampled(cosine=False, rope=False), "ffn": Mlp(ratio=2)}
    return Entry(config=UDiTConfig(width=width, heads=heads, **parts), about=papers.VANILLA)


def _ours(config: UDiTConfig) -> Entry:
    plan = {
        "full": "global",
        "kv-downsampled": "global, to keys and values of a coarser map",
        "downsampled": "within 2x2 interleaved sub-grids",
        "window": "within windows, every other shifted",
        "bridged-window": "within windows, linked by high frequencies",
    }[config.attention.kind]
    likeness = "cosine" if config.attention.cosine else "scaled dot product"
    kind = papers.UDIT
    about = kind.replace(
        attention=f"{likeness}{', RoPE' if config.attention.rope else ''}, {plan}",
        ffn="GELU MLP"
        if isinstance(config.ffn, Mlp)
        else papers.UDIT.ffn
        if config.ffn.reparam
        else "GELU, depthwise 5x5",
        exact="sizes are ours: the paper prints none",
    )
    return Entry(config=config, about=about)


_ISOTROPIC: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""ViT's sizes, which DiT and the models after it use."""


def _dit(size: str, weights: str = "-", **overrides: Any) -> Entry:
    return Entry(config=DiTConfig(**_ISOTROPIC[size], **overrides), about=papers.DIT, weights=weights)


_REVERSED: dict[str, Any] = {"time": "unit", "learn_sigma": False, "spare_outputs": True, "reversed_flow": True}


def _sit(size: str, weights: str = "-") -> Entry:
    config = DiTConfig(**_ISOTROPIC[size], **_REVERSED)
    return Entry(
        config=config, about=papers.SIT, weights=weights, unverified="licence of weights" if weights != "-" else ""
    )


def _repa(size: str, weights: str = "-") -> Entry:
    unverified = "file names, licence of weights" if weights != "-" else ""
    return Entry(config=REPAConfig(**_ISOTROPIC[size]), about=papers.REPA, weights=weights, unverified=unverified)


def _lightning(size: str, weights: str = "-") -> Entry:
    config = LightningDiTConfig(**_ISOTROPIC[size])
    unverified = "file names, licence of weights" if weights != "-" else ""
    return Entry(config=config, about=papers.LIGHTNING, weights=weights, unverified=unverified)


def _fit(width: int, depth: int, heads: int, rank: int) -> Entry:
    config = FiTConfig(width=width, depth=depth, heads=heads, rank=rank)
    about = papers.FIT.replace(paper="2410.13925", attention=f"{papers.FIT.attention}, normalised queries and keys")
    return Entry(
        config=config, about=about, weights="InfImagine/FiTv2 (Apache-2.0)", unverified="file names, licence of weights"
    )


_FIT_ONE: dict[str, Any] = {
    "time": "index",
    "learn_sigma": True,
    "reversed_flow": False,
    "qk_norm": False,
    "rank": None,
}


def _mpdit(size: str, *depths: int) -> Entry:
    width, heads = _ISOTROPIC[size]["width"], _ISOTROPIC[size]["heads"]
    return Entry(config=MPDiTConfig(width=width, heads=heads, depths=depths), about=papers.MPDIT)


def _mmdit(width: int, depth: int, form: str, **overrides: Any) -> Entry:
    config = MMDiTConfig(width=width, depth=depth, heads=width // 64, **overrides)
    weights = f"stabilityai/stable-diffusion-{form} (Stability Community Licence; gated)"
    return Entry(config=config, about=papers.MMDIT, weights=weights, unverified="file names, licence of weights")


def _latte(size: str, weights: str = "-", **overrides: Any) -> Entry:
    config = LatteConfig(**_ISOTROPIC[size], **overrides)
    unverified = "file names, licence of weights" if weights != "-" else ""
    return Entry(config=config, about=papers.LATTE, weights=weights, unverified=unverified)


def _wan(size: str, width: int, depth: int, hidden: int) -> Entry:
    config = WanConfig(width=width, depth=depth, heads=width // 128, ffn=Mlp(ratio=hidden / width))
    return Entry(
        config=config,
        about=papers.WAN,
        weights=f"Wan-AI/Wan2.1-T2V-{size}-Diffusers (Apache-2.0)",
        unverified="repository name",
    )


def _uvit(width: int, depth: int, heads: int, weights: str, patch: int = 2, **overrides: Any) -> Entry:
    config = UViTConfig(width=width, depth=depth, heads=heads, patch=patch, **overrides)
    return Entry(
        config=config, about=papers.UVIT, weights=f"baofff/U-ViT, {weights} (MIT)", unverified="licence of weights"
    )


_PIXELS: dict[str, Any] = {"in_channels": 3, "input_size": 64, "patch": 4}
_TEXT: dict[str, Any] = {"num_classes": 0, "context": Context()}
_DIT_WEIGHTS = "facebookresearch/DiT, file DiT-XL-2-{0}x{0}.pt (CC BY-NC 4.0)"


def _adm(size: int, mult: tuple[float, ...], factors: tuple[int, ...], **overrides: Any) -> Entry:
    file = f"{size}x{size}_diffusion{'' if overrides.get('num_classes', 1) else '_uncond'}.pt"
    values = {"width": 256, "res_blocks": 2, "qkv_order": "legacy", "input_size": size, **overrides}
    config = ADMConfig(channel_mult=mult, attention_factors=factors, **values)
    weights = f"openai/guided-diffusion, {file} (MIT)"
    return Entry(config=config, about=papers.ADM, weights=weights, unverified="file name, licence of weights")


def _hdit(patch: int, *stages: HourglassLevel, **overrides: Any) -> Entry:
    return Entry(config=HDiTConfig(patch=patch, stages=stages, **overrides), about=papers.HDIT)


def _dimsum(width: int, depth: int, weights: str = "-", **overrides: Any) -> Entry:
    config = DiMSUMConfig(width=width, depth=depth, drop_path=0.1, **overrides)
    return Entry(
        config=config, about=papers.DIMSUM, weights=weights, unverified="licence of weights" if weights != "-" else ""
    )


_DIMSUM_WEIGHTS = "VinAIResearch/DiMSUM, {} (BSD-3-Clause)"


def _dic(width: int, *depths: int) -> Entry:
    return Entry(config=DiCConfig(width=width, depths=depths), about=papers.DIC)


def _dico(width: int, *depths: int, ratio: float = 2, hub: bool = True) -> Entry:
    config = DiCoConfig(width=width, depths=depths, ffn=Mlp(ratio=ratio, gelu="exact"))
    weights = "shallowdream204/DiCo, README (Apache-2.0)" if hub else "-"
    return Entry(config=config, about=papers.DICO, weights=weights, unverified="file names" if hub else "")


def _pde(width: int, size: str) -> Entry:
    weights = f"thuerey-group/pde-transformer, mc-{size} (Apache-2.0)"
    config = PDEConfig(width=width, heads=width // 24)
    return Entry(config=config, about=papers.PDE, weights=weights, unverified="licence of weights")


_DIGITS: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "input_size": 8}
_SMALL: dict[str, Any] = {"width": 64, "depth": 4, "heads": 4, **_DIGITS}

CATALOG: dict[str, Entry] = {
    "U-DiT-S": _udit(96, 4),
    "U-DiT-B": _udit(192, 8),
    "U-DiT-L": _udit(384, 16),
    "U-DiT-S-vanilla": _vanilla(96, 4),
    "U-DiT-B-vanilla": _vanilla(192, 8),
    "U-DiT-L-vanilla": _vanilla(384, 16),
    **{name: _ours(config) for name, config in {**DIT_UNETS, **ABLATIONS}.items()},
    **{f"DiT-{size}/{patch}": _dit(size, patch=patch) for size in _ISOTROPIC for patch in (2, 4, 8)},
    "DiT-XL/2": _dit("XL", _DIT_WEIGHTS.format(256)),
    "DiT-XL/2-512": _dit("XL", _DIT_WEIGHTS.format(512), input_size=64),
    **{f"SiT-{size}/2": _sit(size) for size in _ISOTROPIC},
    "SiT-XL/2": _sit("XL", "willisma/SiT, XL/2 at 256x256 (MIT)"),
    "REPA-B/2": _repa("B"),
    "REPA-L/2": _repa("L"),
    "REPA-XL/2": _repa("XL", "sihyun-yu/papers.REPA, README (MIT)"),
    "Skip-DiT-XL/2": Entry(
        config=SkipDiTConfig(),
        about=papers.SKIPDIT,
        weights="OpenSparseLLMs/Skip-DiT, README (Apache-2.0; code after DiT's, CC BY-NC 4.0)",
        unverified="licence of weights",
    ),
    "LightningDiT-B/1": _lightning("B"),
    "LightningDiT-XL/1": _lightning("XL", "hustvl/LightningDiT, README (MIT)"),
    "FiT-XL/2": Entry(
        config=FiTConfig(**_ISOTROPIC["XL"], ffn=SwiGlu(hidden=4608), **_FIT_ONE),
        about=papers.FIT,
        weights="InfImagine/FiT (Apache-2.0)",
        unverified="file names, licence of weights",
    ),
    "FiTv2-XL/2": _fit(1152, 36, 16, rank=288),
    "FiTv2-3B/2": _fit(2304, 40, 24, rank=576),
    "MPDiT-B": _mpdit("B", 6, 6),
    "MPDiT-L": _mpdit("L", 18, 6),
    "MPDiT-XL": _mpdit("XL", 22, 6),
    "MPDiTv2-B": _mpdit("B", 6, 4, 2),
    "MPDiTv2-L": _mpdit("L", 14, 6, 4),
    "MPDiTv2-XL": _mpdit("XL", 14, 8, 6),
    "MMDiT-SD3-medium": _mmdit(1536, 24, "3-medium"),
    "MMDiT-SD3.5-medium": _mmdit(
        1536, 24, "3.5-medium", qk_norm=True, table_side=384, second_attention=tuple(range(13))
    ),
    "MMDiT-SD3.5-large": _mmdit(2432, 38, "3.5-large", qk_norm=True),
    **{f"Latte-{size}/2": _latte(size) for size in _ISOTROPIC},
    "Latte-XL/2": _latte("XL", "maxin-cn/Latte, UCF-101 (Apache-2.0)"),
    "Latte-XL/2-uncond": _latte("XL", "maxin-cn/Latte, FaceForensics and others (Apache-2.0)", num_classes=0),
    "Wan2.1-1.3B": _wan("1.3B", 1536, 30, 8960),
    "Wan2.1-14B": _wan("14B", 5120, 40, 13824),
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
    **{
        f"U-DiT-text-{size}/2": Entry(config=UDiTTextConfig(**_ISOTROPIC[size]), about=papers.PLAYGROUND)
        for size in "SBL"
    },
    "DiC-S": _dic(96, 6, 6, 5, 6, 6),
    "DiC-B": _dic(192, 6, 6, 5, 6, 6),
    "DiC-XL": _dic(384, 7, 7, 8, 7, 7),
    "DiC-H": _dic(384, 14, 14, 10, 14, 14),
    "DiCo-S": _dico(128, 5, 4, 4, 4, 4),
    "DiCo-B": _dico(256, 5, 4, 4, 4, 4),
    "DiCo-L": _dico(352, 9, 8, 9, 8, 9),
    "DiCo-XL": _dico(416, 9, 9, 10, 9, 9),
    "DiCo-H": _dico(416, 14, 12, 10, 12, 14, ratio=4, hub=False),
    "PDE-Transformer-S": _pde(96, "s"),
    "PDE-Transformer-B": _pde(192, "b"),
    "PDE-Transformer-L": _pde(384, "l"),
    "ADM-64": _adm(64, (1, 2, 3, 4), (2, 4, 8), width=192, res_blocks=3, qkv_order="new", dropout=0.1),
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
        HourglassLevel(width=512, depth=4, dropout=0.1),
        num_classes=0,
        input_size=256,
    ),
    "HDiT-oxford-flowers-shifted-window": _hdit(
        4,
        HourglassLevel(width=128, depth=2, attention=AxialWindow()),
        HourglassLevel(width=256, depth=2, attention=AxialWindow()),
        HourglassLevel(width=512, depth=4, dropout=0.1),
        num_classes=0,
        input_size=256,
    ),
    "DiMSUM-B/2": _dimsum(768, 12),
    "DiMSUM-L/2": _dimsum(1024, 16, _DIMSUM_WEIGHTS.format("ImageNet 256 L/2")),
    "DiMSUM-L/2-celeba": _dimsum(
        1024, 16, _DIMSUM_WEIGHTS.format("CelebA-HQ 256 L/2"), num_classes=1, null_class=False
    ),
    "DiMSUM-XL/2": _dimsum(1152, 24),
    "DiT-UNet-tiny": _ours(
        UDiTConfig(width=16, heads=2, depths=(1, 1, 1), attention=Full(cosine=False, rope=False), ffn=Mlp(), **_DIGITS)
    ),
    "DiMSUM-tiny": Entry(config=DiMSUMConfig(**_SMALL, patch=1, fusion_heads=4), about=papers.DIMSUM),
    "U-DiT-tiny": Entry(config=UDiTConfig(width=16, heads=2, depths=(1, 1, 1), **_DIGITS), about=papers.UDIT),
    "U-DiT-video-tiny": Entry(
        config=UDiTVideoConfig(width=16, heads=2, depths=(1, 1, 1), frames=4, **_DIGITS, learn_sigma=False),
        about=papers.UDIT_VIDEO,
    ),
    "DiT-tiny": Entry(config=DiTConfig(**_SMALL), about=papers.DIT),
    "SiT-tiny": Entry(config=DiTConfig(**_SMALL, **_REVERSED), about=papers.SIT),
    "REPA-tiny": Entry(
        config=REPAConfig(**_SMALL, projectors=Projectors(after_block=2, hidden=64, widths=(32,))), about=papers.REPA
    ),
    "Skip-DiT-tiny": Entry(config=SkipDiTConfig(**_SMALL, shallow=1), about=papers.SKIPDIT),
    "LightningDiT-tiny": Entry(config=LightningDiTConfig(**_SMALL, patch=2), about=papers.LIGHTNING),
    "FiT-tiny": Entry(config=FiTConfig(**_SMALL, patch=1, rank=16), about=papers.FIT),
    "MPDiT-tiny": Entry(
        config=MPDiTConfig(width=64, heads=4, depths=(2, 2), patch=1, label_tokens=4, **_DIGITS), about=papers.MPDIT
    ),
    "MMDiT-tiny": Entry(
        config=MMDiTConfig(**_SMALL, context=None, table_side=16, base_side=16, qk_norm=True, second_attention=(0, 1)),
        about=papers.MMDIT,
    ),
    "Latte-tiny": Entry(
        config=LatteConfig(width=96, depth=6, heads=4, patch=1, frames=4, **_DIGITS), about=papers.LATTE
    ),
    "Wan-tiny": Entry(
        config=WanConfig(**_SMALL, frames=4, patch_frames=2, context=None, ffn=Mlp(ratio=2)), about=papers.WAN
    ),
    "U-ViT-tiny": Entry(config=UViTConfig(**_SMALL, shallow=1), about=papers.UVIT),
    "U-DiT-text-tiny": Entry(
        config=UDiTTextConfig(
            width=64, depth=4, heads=4, patch=1, in_channels=1, input_size=8, context=Context(tokens=16, width=32)
        ),
        about=papers.PLAYGROUND,
    ),
    "DiC-tiny": Entry(config=DiCConfig(width=16, depths=(2, 2, 2), **_DIGITS), about=papers.DIC),
    "DiCo-tiny": Entry(config=DiCoConfig(width=16, depths=(2, 2, 2), **_DIGITS), about=papers.DICO),
    "PDE-Transformer-tiny": Entry(
        config=PDEConfig(width=16, heads=2, depths=(2, 2, 2), patch=2, window=2, **_DIGITS), about=papers.PDE
    ),
    "ADM-tiny": Entry(
        config=ADMConfig(
            width=32,
            channel_mult=(1, 2),
            res_blocks=1,
            attention_factors=(2,),
            head_channels=16,
            null_class=True,
            **_DIGITS,
        ),
        about=papers.ADM,
    ),
    "HDiT-tiny": _hdit(
        1,
        HourglassLevel(width=32, depth=1, head_channels=8, attention=AxialWindow(size=4)),
        HourglassLevel(width=64, depth=2, head_channels=16),
        mapping=Mapping(depth=1, width=64),
        **_DIGITS,
    ),
}
"""Rows whose names end in -tiny are ours: each family at the size of the digits, for recipes (``model=NAME-tiny``) and
the contract tests. One row is enough to add a family."""


def families() -> dict[str, type[ModelConfig]]:
    """The config class of every family that has a row."""
    return {entry.config.family: type(entry.config) for entry in CATALOG.values()}


def list_models() -> list[str]:
    """The names ``udit.build`` knows."""
    return list(CATALOG)


def find(name: str) -> Entry:
    """The catalogue's row of ``name``.

    Raises:
        UserError: no such name; the message has the nearest one.
    """
    if name not in CATALOG:
        raise UserError(f"no model {name!r}{nearest(name, CATALOG)} (`udit models` lists all)")
    return CATALOG[name]
