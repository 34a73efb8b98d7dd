"""Depthwise convolutions on NVIDIA GPUs.

A map is read once a pass, GELU is computed once a pixel (and where strips adjoin twice), and the weights' gradients are
sums of one part per group of strips, added in order. Weights and sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udit.ops import nvidia

SIDES = (3, 5, 7)
"""Kernel sides whose taps and sums fit into registers; others take torch's own operators."""
COLUMNS = {3: 8, 5: 8, 7: 4}
"""Columns of a strip by the kernel's side."""
LANES = 4
"""Strips of a program, one a warp."""
PIXELS = 1024
"""Of a program that sums over pixels, at least: its sums are written."""


def available() -> bool:
    """See ``Kernel``."""
    return nvidia.available()


loaded = available


def accepts(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> bool:
    """Element types and sides, as above; maps of any size and width."""
    return x.dtype in nvidia.DTYPES and kernel.shape[-1] in SIDES


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """As the operator."""
    return _convolve(x, kernel, bias, None, TURNED=False, GELU=gelu)


def depthwise_input(grad: Tensor, kernel: Tensor, activated: Tensor | None) -> Tensor:
    """The input's gradient; ``activated`` is the input where its GELU was filtered."""
    slopes = None if activated is None else activated.contiguous()
    return _convolve(grad if slopes is None else grad.to(slopes.dtype), kernel, None, slopes, TURNED=True, GELU=False)


def depthwise_weights(x: Tensor, grad: Tensor, side: int, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of kernel and bias, float32."""
    from udit.ops.depthwise_convolution import kernels

    x = x.contiguous()
    grad = nvidia.plain(grad, x)
    b, height, width, channels = x.shape
    options = _options(x, side)
    strips, groups = b * -(-width // options["BW"]), -(-channels // options["BD"])
    rounds = max(1, PIXELS // (LANES * height * options["BW"]))
    parts = -(-strips // (LANES * rounds))
    sums = x.new_empty(parts, side**2 + 1, channels, dtype=torch.float32)
    sizes = strips, height, width, channels, groups, rounds
    nvidia.launch(kernels.of_weights, parts * groups, x, grad, sums, *sizes, GELU=gelu, **options)
    kernel, bias = sums.new_empty(channels, 1, side, side), sums.new_empty(channels)
    programs = (side**2 + 1) * -(-channels // 128)
    nvidia.launch(kernels.total, programs, sums, kernel, bias, parts, channels, SIDE=side, BD=128, warps=4)
    return kernel, bias


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, slopes: Tensor | None, **flags: bool) -> Tensor:
    from udit.ops.depthwise_convolution import kernels

    x, kernel = x.contiguous(), kernel.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    b, height, width, channels = x.shape
    options = _options(x, kernel.shape[-1])
    strips, groups = b * -(-width // options["BW"]), -(-channels // options["BD"])
    out = torch.empty_like(x)
    sizes = strips, height, width, channels, groups
    programs = -(-strips // LANES) * groups
    nvidia.launch(kernels.convolve, programs, x, kernel, bias, slopes, out, *sizes, **flags, **options)
    return out


def _options(x: Tensor, side: int) -> dict[str, Any]:
    """How a program works: a warp has 128 bytes of channels, or what there are."""
    wide = min(128 // x.element_size(), nvidia.power(x.shape[-1], 16))
    return {"SIDE": side, "BW": COLUMNS[side], "LANES": LANES, "BD": wide, "warps": LANES}
