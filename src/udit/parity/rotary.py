"""Parity of FiT's rotary tables, within and beyond the sizes of the training."""

from __future__ import annotations

import re

import numpy as np
import torch

from udit.nn.rotary import MODES, extrapolated, split_rotary_table
from udit.parity import Check, Disagreement, close, number, whole

INPUTS = ("rope_grid", "rope_side", "rope_trained_side", "rope_head_dim", "rope_theta")


def check(arrays: dict[str, np.ndarray]) -> list[Check]:
    """Compares every array of a file of rotary tables.

    Args:
        arrays: the file's.

    Returns:
        One check an array.
    """
    if missing := [name for name in INPUTS if name not in arrays]:
        raise Disagreement(f"{missing[0]} (is missing)")
    (height, width), side = (_pair(name, arrays[name]) for name in ("rope_grid", "rope_side"))
    trained, channels = (int(number(name, arrays[name])) for name in ("rope_trained_side", "rope_head_dim"))
    theta = number("rope_theta", arrays["rope_theta"])
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    checks: list[Check] = []
    for name, stored in arrays.items():
        match = re.fullmatch(r"rope_(.+)_(joint|decoupled)_(cos|sin)", name)
        mode = next((mode for mode in MODES if match and mode == match[1]), None)
        if match and mode:
            frequencies, factor = extrapolated(mode, channels // 2, side, trained, match[2] == "decoupled", theta)
            cos, sin = split_rotary_table(frequencies, rows, columns, factor)
            sin[:, ::2] *= -1  # ours has the signs of the rotation
            checks.append(close(name, cos if match[3] == "cos" else sin, stored))
        elif name not in INPUTS:
            checks.append(Check(f"{name} (unknown array)", np.inf, 0.0))
    return checks


def _pair(name: str, array: np.ndarray) -> tuple[int, int]:
    values = whole(name, array).ravel().tolist()
    if len(values) != 2 or min(values) < 1:
        raise Disagreement(f"{name} (holds {values}, not two sides)")
    return values[0], values[1]
