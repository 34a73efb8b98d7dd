"""What a network makes of time and label, for all steps of a sampling at once: adaLN's products need (t, y) alone.

Pictures of one label share them, and so do all batches of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udit.diffusion.cache import Seamed, rewrap
from udit.diffusion.denoise import Backbone
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import Denoise, Sampler

MAX_ROWS = 1024
"""Pairs of time and label; of more, every step makes its own."""


class Conditioned:
    """A network in parts that looks up what it makes of (t, y), all rows of a batch being at one time."""

    def __init__(self, network: Seamed, times: Tensor, labels: Sequence[int] | None) -> None:
        """Takes the times [n] and the labels, different and sorted, that will be asked for; None is no labels."""
        self.network = network
        self.enter, self.deep, self.leave = network.enter, network.deep, network.leave
        self.starts = {float(time): i * len(labels or [0]) for i, time in enumerate(times)}
        self.labels = None if labels is None else torch.tensor(labels, device=times.device)
        each = times.repeat_interleave(len(labels or [0]))
        self.rows = network.condition(each, None if self.labels is None else self.labels.repeat(len(times)))

    def condition(self, t: Tensor, y: Tensor | None = None) -> Any:
        """As the network's, of times and labels that were told; of others, made anew."""
        start = self.starts.get(float(t[0]))
        if start is None or (y is None) != (self.labels is None):
            return self.network.condition(t, y)
        if y is None or self.labels is None:
            return gather(self.rows, torch.full_like(t, start, dtype=torch.long))
        return gather(self.rows, torch.searchsorted(self.labels, y) + start)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network."""
        cond = self.condition(t, y)
        entered, skips = self.enter(x, cond)
        return self.leave(self.deep(entered, cond), skips, cond)


def prepared(
    denoise: Denoise, sampler: Sampler, steps: int | str, labels: Sequence[int] | None, device: torch.device
) -> Denoise:
    """The denoiser around a ``Conditioned`` network for all that one call will ask for, where that is not too much.

    Args:
        denoise: whose network is looked at; one without parts stays as it is.
        sampler: walked once with a network that says nothing, to learn its times.
        steps: as of ``sample``.
        labels: of all pictures, or None.
        device: of the network.
    """
    plain = denoise.denoiser if isinstance(denoise, Guided) else denoise
    heard = _Hearing(1 + plain.learn_sigma)
    nothing = torch.zeros(1, 1, 1, 1, device=device)
    for _ in sampler(rewrap(plain, lambda _: heard), nothing, steps, None, lambda _: nothing):
        pass
    asked = None if labels is None else set(labels)
    if asked is not None and isinstance(denoise, Guided) and plain.null_label is not None:
        asked.add(plain.null_label)
    times = torch.cat(heard.times).unique()
    if len(times) * len(asked or [0]) > MAX_ROWS:
        return denoise

    def known(backbone: Backbone) -> Backbone:
        labels = None if asked is None else sorted(asked)
        return Conditioned(backbone, times, labels) if isinstance(backbone, Seamed) else backbone

    with torch.no_grad():
        return rewrap(denoise, known)


class _Hearing:
    """A network that notes the times it is told and says nothing."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.times: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Zeros [1, channels, 1, 1]."""
        self.times.append(t)
        return x.new_zeros(1, self.channels, 1, 1)


def gather(tree: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested tuples and lists."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    parts = [gather(part, rows) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
