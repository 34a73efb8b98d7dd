"""Conditions of all steps computed at once: what a network derives from (t, y) alone, adaLN's products above all.

Images of one label share them, and so do all batches of a sampling call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udit.diffusion.cache import SplitBackbone
from udit.diffusion.denoiser import Backbone
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.sample import Sampler
from udit.diffusion.schedule import known
from udit.interpolation import Between

MAX_ROWS = 1024
"""Pairs of time and label; with more, every step computes its own."""


class PrecomputedConditions:
    """A network in parts that looks up its condition of (t, y); all images of a batch are at one time."""

    def __init__(self, network: SplitBackbone, times: Tensor, labels: Sequence[int] | None) -> None:
        """Computes the conditions of all pairs.

        Args:
            network: in parts.
            times: [n] different times in the network's unit, or [n, 2] pairs of them.
            labels: different and sorted; None is no labels.
        """
        self.network = network
        self.enter, self.deep, self.leave = network.enter, network.deep, network.leave
        self.starts = {_key(time): i * len(labels or [0]) for i, time in enumerate(times.cpu())}
        self.labels = None if labels is None else torch.tensor(labels, device=times.device)
        each = times.repeat_interleave(len(labels or [0]), dim=0)
        self.rows = network.condition(each, None if self.labels is None else self.labels.repeat(len(times)))

    def condition(self, t: Tensor, y: Tensor | None = None) -> Any:
        """As the network's: looked up for the times and labels of the table, computed for others."""
        start = self.starts.get(_key(known(t)[0]))
        if start is None or (y is None) != (self.labels is None) or (y is not None and y.is_floating_point()):
            return self.network.condition(t, y)
        if y is None or self.labels is None:
            return gather(self.rows, torch.full((len(t),), start, device=t.device))
        return gather(self.rows, torch.searchsorted(self.labels, y) + start)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network."""
        cond = self.condition(t, y)
        entered, skips = self.enter(x, cond)
        return self.leave(self.deep(entered, cond), skips, cond)


def _key(time: Tensor) -> tuple[float, ...]:
    """A time, or two, as a dictionary takes it."""
    return tuple(time.flatten().tolist())


def prepared(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    steps: int | str,
    labels: Sequence[int] | None,
    device: torch.device,
    strength: float = 1.0,
) -> AnyDenoiser:
    """The denoiser around ``PrecomputedConditions`` of all times and labels of one sampling call.

    Args:
        denoiser: stays as it is if its network does not come in parts, or asks for more than ``MAX_ROWS`` pairs; a
            weaker model that guides it is prepared for itself.
        sampler: offers the times.
        steps: as of ``sample``.
        labels: of all images, or None.
        device: of the network.
        strength: as of ``Origin``.
    """
    if isinstance(denoiser, Guided) and denoiser.weak is not None:
        strong, weak = (
            prepared(each, sampler, steps, labels, device, strength) for each in (denoiser.denoiser, denoiser.weak)
        )
        assert not isinstance(strong, Guided)
        assert not isinstance(weak, Guided)
        return dataclasses.replace(denoiser, denoiser=strong, weak=weak)
    asked = None if labels is None else set(labels)
    if asked is not None and isinstance(denoiser, Guided) and denoiser.denoiser.null_label is not None:
        asked.add(denoiser.denoiser.null_label)
    start = {} if strength == 1 else {"strength": strength}
    times = sampler.times(denoiser, steps, **start).unique(dim=0).to(device)
    if len(times) * len(asked or [0]) > MAX_ROWS:
        return denoiser

    def known(backbone: Backbone) -> Backbone:
        labels = None if asked is None else sorted(asked)
        return PrecomputedConditions(backbone, times, labels) if isinstance(backbone, SplitBackbone) else backbone

    with torch.no_grad():
        return denoiser.with_network(known)


def label_tensor(labels: Sequence[int | Between[int]], rows: int) -> Tensor:
    """Labels as networks take them: [N] int64, or shares [N, K] where any lies between two.

    Args:
        labels: one per image.
        rows: K, classes with the null class if there is one.
    """
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels)
    shares = torch.zeros(len(labels), rows)
    for row, label in zip(shares, labels, strict=True):
        if isinstance(label, Between):
            row[label.first] += 1 - label.share
            row[label.second] += label.share
        else:
            row[label] = 1
    return shares


def gather(tree: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested tuples and lists."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    parts = [gather(part, rows) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
