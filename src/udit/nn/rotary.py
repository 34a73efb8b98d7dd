"""Rotary positions whose first half turns with the row and second with the column, within and beyond trained sizes.

Of FiT and FiTv2 (Lu et al. 2024, arXiv 2402.12376; Wang et al. 2024, arXiv 2410.13925), and LightningDiT's.

Axes: N tokens, R channels per head, d = R / 2 channels per axis of the grid.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from udit.ops.transfer import sent

Extrapolation = Literal["normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"]
"""How frequencies change on grids larger than those of the training; "normal" leaves them alone."""
MODES = get_args(Extrapolation)


def split_rotary_table(frequencies: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor, factor: float = 1) -> Tensor:
    """Cosines and sines for the tokens at given positions.

    Adjacent channels (2m, 2m + 1) are one pair, as in ``udit.nn.tokens.rotary_table``; the first d channels turn with
    the row, the others with the column.

    Args:
        frequencies: [d / 2] of rows, and of columns, float32.
        rows: [..., N] position of each token, integers.
        columns: as rows.
        factor: of all cosines and sines, which scales attention's logits by its square.

    Returns:
        [2, ..., N, R] float32: the cosines, and the sines with the signs that ``udit.ops.attention.rotate`` expects.
    """
    angles = torch.cat([rows[..., None] * frequencies[0], columns[..., None] * frequencies[1]], dim=-1)
    cos, sin = factor * angles.cos(), factor * angles.sin()
    return torch.stack([cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)])


def split_rotary_grid(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """The table of a grid of height x width, row by row: [2, N, R] for R channels, without extrapolation."""
    rows = torch.arange(height, device=device)[:, None].expand(height, width).reshape(-1)
    columns = torch.arange(width, device=device)[None].expand(height, width).reshape(-1)
    frequency = base_frequencies(channels // 2, device=device)
    return split_rotary_table((frequency, frequency), rows, columns)


def base_frequencies(dim: int, theta: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """theta ** (-2 i / d) for i below d / 2, [d / 2] float32, computed as the releases do."""
    return 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


def extrapolated(
    mode: Extrapolation, dim: int, side: tuple[int, int], trained: int, decoupled: bool, theta: float = 10000.0
) -> tuple[tuple[Tensor, Tensor], float]:
    """Frequencies for a grid larger than the trained one (FiT, Sec. 3.3; FiTv2).

    Args:
        mode: see ``Extrapolation``.
        dim: d, even.
        side: rows and columns of the grid.
        trained: side of the grid of the training.
        decoupled: each axis is scaled by its own side; otherwise both by the larger one.
        theta: the base.

    Returns:
        Frequencies of rows and of columns, [d / 2] each, and the factor of all cosines and sines.
    """
    largest = max(side)
    sides = side if decoupled else (largest, largest)
    rows, columns = (_frequencies(mode, dim, max(length / trained, 1.0), trained, theta) for length in sides)
    return (rows, columns), _factor(mode, side, trained)


def _frequencies(mode: Extrapolation, dim: int, scale: float, trained: int, theta: float) -> Tensor:
    base = base_frequencies(dim, theta)
    if mode == "normal":
        return base
    linear = base / scale
    if mode == "linear":
        return linear
    if mode == "yarn":
        kept = _kept(dim, trained, theta, 32, 1)
        return linear * (1 - kept) + base * kept
    ntk = base_frequencies(dim, theta * scale ** (dim / (dim - 2)))
    if mode != "ntk-by-parts":
        return ntk
    kept = _kept(dim, trained, theta, 1.25, 0.75)
    mixed = linear * (1 - kept) + ntk * kept
    kept = _kept(dim, trained, theta, 16, 2)
    return mixed * (1 - kept) + base * kept


def _kept(dim: int, trained: int, theta: float, fast: float, slow: float) -> Tensor:
    """1 for frequencies that turn ``fast`` times within the trained side, 0 below ``slow`` times, a ramp between."""

    def place(turns: float) -> float:
        return dim * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = float(max(math.floor(place(fast)), 0)), float(min(math.ceil(place(slow)), dim - 1))
    high += 0.001 if low == high else 0
    return 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def _factor(mode: Extrapolation, side: tuple[int, int], trained: int) -> float:
    if mode == "yarn":
        scale = max(max(side) / trained, 1.0)
        return 0.1 * math.log(scale) + 1
    ratios = {"ntk-aware-pro1": (max(side), trained), "ntk-aware-pro2": (side[0] * side[1], trained**2)}
    if mode not in ratios:
        return 1.0
    grown, before = ratios[mode]
    return math.sqrt(math.log(2 * grown) / math.log(before)) if 2 * grown > before else 1.0


def axial_rotary_grid(
    sides: tuple[int, ...], channels: tuple[int, ...], device: torch.device | None = None, theta: float = 10000.0
) -> Tensor:
    """The table of a grid of any number of axes, each of which turns channels of its own (Wan 2.1's is of three).

    Angles are made in float64 on the CPU, as the release's are.

    Args:
        sides: of the grid; tokens come with the last axis fastest.
        channels: of a head that turn with each axis, even; R in all.
        device: of the result.
        theta: the base.

    Returns:
        [2, N, R] float32: the cosines, and the sines with the signs that ``udit.ops.attention.rotate`` expects.
    """
    parts = []
    for axis, (side, dim) in enumerate(zip(sides, channels, strict=True)):
        frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
        angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies
        shape = [side if i == axis else 1 for i in range(len(sides))]
        parts.append(angles.view(*shape, -1).expand(*sides, -1))
    angles = torch.cat(parts, dim=-1).flatten(0, -2)
    cos, sin = sent(angles.cos().float(), device), sent(angles.sin().float(), device)
    return torch.stack([cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)])
