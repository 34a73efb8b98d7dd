"""Operators: functions of networks, computed by compiled kernels where there are some, and by torch otherwise.

One folder each: the public function, its reference in torch, and a module for each device with a kernel. Networks
call the functions; ``operator.py`` chooses the implementation.
"""

from udit.ops.attention import attend, dot_product_attention, grid_attention, rotate
from udit.ops.convolution import convolve, convolve_image
from udit.ops.depthwise_convolution import depthwise
from udit.ops.gating import gated_sum
from udit.ops.layout import merge_pixels, split_pixels, to_first, to_last
from udit.ops.matmul import apply, apply_chain, linear
from udit.ops.modulation import modulated_norm
from udit.ops.normalization import layer_norm, normalize
from udit.ops.operator import OPERATORS, describe, kernels
from udit.ops.recompute import lowered, recomputable, recomputed_in_graphs, recomputing
from udit.ops.scan import selective_scan

__all__ = [
    "OPERATORS",
    "apply",
    "apply_chain",
    "attend",
    "convolve",
    "convolve_image",
    "depthwise",
    "describe",
    "dot_product_attention",
    "gated_sum",
    "grid_attention",
    "kernels",
    "layer_norm",
    "linear",
    "lowered",
    "merge_pixels",
    "modulated_norm",
    "normalize",
    "recomputable",
    "recomputed_in_graphs",
    "recomputing",
    "rotate",
    "selective_scan",
    "split_pixels",
    "to_first",
    "to_last",
]
