"""Sizes of our own: DiT-UNet, and U-DiT's ablations (Tian et al. 2024, Tables 1, 7 and 9), whose sizes are unpublished.

DiT-UNet is U-DiT's architecture with full attention, at a width that matches the MACs of a DiT. The ablations take one
small size and change one part at a time, as the paper does with its U-DiT-T; none of them claims to be that model.
"""

from __future__ import annotations

from typing import Any

from udit.models.udit.config import UDiTConfig
from udit.nn.specs import Attention, BridgedWindow, Downsampled, Full, KVDownsampled, Mlp, RepConv, Window

_PLAIN: dict[str, Any] = {"cosine": False, "rope": False}
_FULL = Full(**_PLAIN)


def _shell(width: int, heads: int, attention: Attention, **overrides: Any) -> UDiTConfig:
    return UDiTConfig(width=width, heads=heads, attention=attention, **{"ffn": Mlp(ratio=2), **overrides})


DIT_UNETS: dict[str, UDiTConfig] = {
    "DiT-UNet-S": _shell(80, 4, _FULL),
    "DiT-UNet-B": _shell(180, 9, _FULL),
    "DiT-UNet-L": _shell(352, 11, _FULL),
    "DiT-UNet-XL": _shell(440, 22, _FULL),
}
"""Each within 2 % of the MACs of DiT's size of that letter with patches of 2x2."""

_T: dict[str, Any] = {"width": 48, "heads": 2, "depths": (1, 2, 4, 2, 1)}
_DEPTHWISE_FFN = RepConv(branches=(5,), reparam=False)

ABLATIONS: dict[str, UDiTConfig] = {
    "DiT-UNet-T-like": _shell(**_T, attention=_FULL),
    "DiT-UNet-T-like-kv": _shell(**_T, attention=KVDownsampled(**_PLAIN)),
    "U-DiT-T-like-unshuffle": _shell(**_T, attention=Downsampled(kernel=0, shortcut=False, **_PLAIN)),
    "U-DiT-T-like-depthwise": _shell(**_T, attention=Downsampled(shortcut=False, **_PLAIN)),
    "U-DiT-T-like-ordinary": _shell(**_T, attention=Downsampled(shortcut=False, dense=True, **_PLAIN)),
    "U-DiT-T-like-vanilla": _shell(**_T, attention=Downsampled(**_PLAIN)),
    "U-DiT-T-like-cosine": _shell(**_T, attention=Downsampled(rope=False)),
    "U-DiT-T-like-rope": _shell(**_T, attention=Downsampled()),
    "U-DiT-T-like-dwconv": _shell(**_T, attention=Downsampled(), ffn=_DEPTHWISE_FFN),
    "U-DiT-T-like": _shell(**_T, attention=Downsampled(), ffn=RepConv()),
    "U-DiT-T-like-window": _shell(**_T, attention=Window(), ffn=RepConv()),
    "U-DiT-T-like-bridged": _shell(**_T, attention=BridgedWindow(), ffn=RepConv()),
}
"""Full attention, keys and values downsampled (Table 1); tokens downsampled in four ways (Table 7); then one change
after another (Table 9): cosine similarity, RoPE, depthwise FFN, re-parameterisation. The last two rows, with
windows in place of sub-grids, are in none of the tables."""
