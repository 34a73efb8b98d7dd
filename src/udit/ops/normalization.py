"""LayerNorm with derivatives of every kind.

torch's has a forward derivative that takes mean and deviation for constants (seen in 2.14): its value is right, but a
derivative of it is wrong, without an error. Where a forward derivative may be taken, LayerNorm is computed in parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.ops import surroundings
from udit.ops.matmul import unchanged


def normalize(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` through ``layer_norm``, x [..., D] -> [..., D].

    A layer that was put in the place of an ``nn.LayerNorm`` over the last axis, or that has hooks, is called.
    """
    if unchanged(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return layer_norm(x, layer.weight, layer.bias, layer.eps)
    out: Tensor = layer(x)
    return out


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last axis (Ba et al. 2016): x [..., D], weight and bias [D] or None -> [..., D]."""
    if not surroundings.transformed():
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = precise - precise.mean(-1, keepdim=True)
    out = (centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias
