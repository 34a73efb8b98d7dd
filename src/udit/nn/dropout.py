"""Dropout without a generator: a mask is a function of the sample's key and the layer's name.

A resumed run, another number of ranks or of accumulated parts, and activations that are made again in backward all ask
with the same keys, so they get the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from udit import rng
from udit.errors import UserError

LEVELS = 1 << 16
"""A rate is a whole number of these parts."""


class Dropout(nn.Module):
    """Zeroes a share of the entries in training and scales up the others, so that means stay (Srivastava et al. 2014).

    In evaluation, at rate 0, and until ``key_dropout`` has handed it keys, it is the identity.

    Args:
        rate: share of zeros, at least 0 and below 1.
        whole: drops whole samples rather than entries: stochastic depth (Huang et al. 2016), put on a branch.
    """

    def __init__(self, rate: float, whole: bool = False) -> None:
        super().__init__()
        self.dropped = min(LEVELS - 1, round(rate * LEVELS))
        self.whole = whole
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...].

        Raises:
            UserError: in training, with the keys of another batch.
        """
        if not self.training or not self.dropped or self.keys is None:
            return x
        if len(self.keys) != len(x):
            raise UserError(
                f"the network has keys to drop out by for {len(self.keys)} samples and was handed {len(x)}; call "
                "udit.nn.dropout.key_dropout before each forward, or the network's eval()"
            )
        shape = (len(x), *[1] * (x.ndim - 1)) if self.whole else x.shape
        kept = random_bits(self.keys, math.prod(shape[1:])).view(shape) >= self.dropped - LEVELS // 2
        return torch.where(kept, x * (LEVELS / (LEVELS - self.dropped)), 0)


def key_dropout(network: nn.Module, seed: int, positions: Sequence[int]) -> None:
    """Decides the masks of the next forward, and of its backward.

    Args:
        network: any; without dropout nothing happens.
        seed: the run's.
        positions: one a sample of the batch; the same one has the same masks.
    """
    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, Dropout) and part.dropped]
    if not layers:
        return
    device = next(network.parameters()).device
    keys = torch.tensor([rng.key(seed, "dropout", position) for position in positions]).to(device)
    for name, layer in layers:
        layer.keys = keys ^ rng.key(0, f"dropout layer {name}")


def random_bits(keys: Tensor, count: int) -> Tensor:
    """Uniform int16 numbers, [B, count], of keys [B] int64: SplitMix64 (Steele et al. 2014), four numbers a word."""
    words = torch.arange(1, -(-count // 4) + 1, device=keys.device)
    z = keys[:, None] + words * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _right(z, 31)).view(torch.int16)[:, :count]


def _right(z: Tensor, by: int) -> Tensor:
    """Shifted right, with zeros from the left."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """The int64 of a word's bits."""
    return word - (1 << 64)
