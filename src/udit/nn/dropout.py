"""Dropout without a generator: a mask is a function of the sample's key and the layer's name.

A resumed run, another number of ranks or of accumulated parts, and activations that are computed again in backward all
use the same keys, so they get the same masks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token

import torch
from torch import Tensor, nn

from udit import rng
from udit.errors import UserError

LEVELS = 1 << 16
"""A rate is a whole number of these parts."""
_keys: ContextVar[Tensor | None] = ContextVar("dropout keys", default=None)
"""[B] int64, one for each sample of the batch that runs."""


class Dropout(nn.Module):
    """Zeroes a share of the entries in training and scales up the others, so that means stay (Srivastava et al. 2014).

    In evaluation, at rate 0, and outside of ``dropout_keys``, it is the identity.

    Args:
        rate: share of zeros, at least 0 and below 1.
        whole: drops whole samples rather than entries: stochastic depth (Huang et al. 2016), put on a branch.
    """

    def __init__(self, rate: float, whole: bool = False) -> None:
        super().__init__()
        self.dropped = min(LEVELS - 1, round(rate * LEVELS))
        self.whole = whole
        self.own_key: Tensor | None = None
        """[] int64, a function of the layer's name; known once ``dropout_keys`` has seen the network."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...].

        Raises:
            UserError: in training, with the keys of another batch.
        """
        keys = _keys.get()
        if not self.training or not self.dropped or keys is None or self.own_key is None:
            return x
        if len(keys) != len(x):
            raise UserError(
                f"the network has dropout keys for {len(keys)} samples and was handed {len(x)}; call "
                "udit.nn.dropout.dropout_keys with this batch's positions, or the network's eval()"
            )
        shape = (len(x), *[1] * (x.ndim - 1)) if self.whole else x.shape
        bits = random_bits(keys ^ self.own_key, math.prod(shape[1:]))
        kept = bits.view(shape) >= self.dropped - LEVELS // 2
        return torch.where(kept, x * (LEVELS / (LEVELS - self.dropped)), 0)


@contextlib.contextmanager
def dropout_keys(network: nn.Module, seed: int, positions: Sequence[int]) -> Iterator[None]:
    """Decides the masks of a batch that runs within it. Its backward need not.

    Args:
        network: any; without dropout nothing happens.
        seed: the run's.
        positions: one for each sample of the batch; the same one has the same masks.
    """
    if not name_layers(network):
        yield
        return
    with using_keys(keys_of(seed, positions).to(next(network.parameters()).device)):
        yield


def name_layers(network: nn.Module) -> bool:
    """Gives every layer of dropout its own key, by its name; whether there is any that drops something."""
    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, Dropout) and part.dropped]
    for name, layer in layers:
        if layer.own_key is None:
            layer.own_key = torch.tensor(rng.key(0, f"dropout layer {name}"))
    return bool(layers)


def keys_of(seed: int, positions: Sequence[int]) -> Tensor:
    """[B] int64 keys of samples."""
    return torch.tensor([rng.key(seed, "dropout", position) for position in positions])


def using_keys(keys: Tensor) -> AbstractContextManager[None]:
    """Context of a batch with these keys, [B] int64 on the network's device, whose layers have theirs."""
    return _Using(keys)


def recomputed_with_keys() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block and of its recomputation, which autograd may run later and in another thread."""
    return contextlib.nullcontext(), _Using(_keys.get())


class _Using:
    """A context with the keys of a batch; a block whose backward runs twice is recomputed twice, each time in it."""

    def __init__(self, keys: Tensor | None) -> None:
        self.keys = keys
        self.tokens: list[Token[Tensor | None]] = []

    def __enter__(self) -> None:
        self.tokens.append(_keys.set(self.keys))

    def __exit__(self, *_: object) -> None:
        _keys.reset(self.tokens.pop())


def random_bits(keys: Tensor, count: int) -> Tensor:
    """Uniform int16 numbers, [B, count], of keys [B] int64: SplitMix64 (Steele et al. 2014), four numbers per word."""
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
