"""Limits for float32 results that hold on any processor: from float64, and not from what one machine's float32 does.

The reference runs in float64, and the result of every operation is moved by one rounding of float32, up or down by
chance. How far that moves the end is what rounding does to this function of these inputs, cancellation included. A sum
of n terms is one operation here, and n roundings of partial sums on a processor. In the worst order, one long chain,
they come to sqrt(n) of one, if they are independent, as those of terms of random sign are (Higham and Mary, "A new
approach to probabilistic rounding error analysis", 2019); in tiles, in vectors or in pairs they come to less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import gradients

UNIT = 2.0**-24
"""Of float32: the largest relative error of one rounding."""
FEW = 4
"""Roundings that a program may have more than its reference has operations."""
DRAWS = 4


class Rounded(TorchDispatchMode):
    """Moves the float64 result of every operation by one rounding of float32, up or down as a generator says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.is_mutable:
            return out
        return torch.utils._pytree.tree_map_only(Tensor, self.off, out)

    def off(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(generator=self.generator)
        up = words.view(torch.uint8)[: x.numel()].view(x.shape) & 1  # a bit of each byte
        return up.to(torch.float64).mul_(2 * UNIT).add_(1 - UNIT).mul_(x)


def limits(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], length: int) -> list[float]:
    """The largest error that each result may have when it is computed in float32.

    Args:
        function: inputs -> results, in operations of torch; runs in float64.
        inputs: as they are handed to the float32 program.
        length: terms of the longest sum on the way.
    """
    exact = [tensor.double() for tensor in inputs]
    results = function(*exact)
    squares = [0.0] * len(results)
    for draw in range(DRAWS):
        with Rounded(draw):
            shaken = function(*exact)
        for i, (near, true) in enumerate(zip(shaken, results, strict=True)):
            squares[i] += largest(near - true) ** 2 / DRAWS
    moved = (max(math.sqrt(square), UNIT * largest(true)) for square, true in zip(squares, results, strict=True))
    return [(FEW + math.sqrt(length)) * movement for movement in moved]


def largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def assert_near_float64(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    weights: Tensor,
    length: int,
) -> None:
    """Asserts that output and gradients in float32 are within ``limits`` of those of the reference in float64.

    Args:
        ours: inputs -> output, in float32.
        reference: the same function in operations of torch, in the precision of its inputs.
        inputs: float32.
        weights: of the output's elements, in the sum that gradients are taken of; of random sign.
        length: terms of the longest sum, forwards or backwards.
    """

    def exactly(*given: Tensor) -> list[Tensor]:
        return gradients(reference, *given[:-1], weights=given[-1])

    found = gradients(ours, *inputs, weights=weights)
    truth = exactly(*(x.double() for x in (*inputs, weights)))
    for i, (mine, true, limit) in enumerate(
        zip(found, truth, limits(exactly, (*inputs, weights), length), strict=True)
    ):
        what = f"the gradient of input {i - 1}" if i else "the output"
        assert mine.shape == true.shape, what
        assert mine.dtype == torch.float32, what
        error = largest(mine - true)
        assert error <= limit, f"{what} is {error:.3g} off, {limit:.3g} are rounding"
