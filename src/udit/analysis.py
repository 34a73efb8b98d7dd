"""What a model costs: parameters and MACs, counted on the meta device."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch.utils.flop_counter import FlopCounterMode

from udit.models.build import build, fuse
from udit.models.catalog import CATALOG, Entry, find
from udit.models.config import ModelConfig
from udit.models.published import frozen_parameters
from udit.progress import progress_bar


@dataclass(frozen=True)
class Cost:
    """Counts of one config."""

    parameters: int
    """Of the unfused network. As in papers, fixed tables that a release has as parameters are counted."""
    inference_parameters: int
    """Of the fused network."""
    macs: int
    """Multiply-accumulates of one forward of the fused network at batch 1: matrix products, convolutions, attention."""


def cost(config: ModelConfig, size: tuple[int, int] | None = None) -> Cost:
    """Counts a config's parameters and MACs without allocating them.

    Args:
        config: of the model.
        size: (H, W) of the input; the config's own if None.
    """
    model = build(config, device="meta")
    fused = fuse(model)
    x = torch.empty(1, config.input_channels, *config.input_shape(size)[1:], device="meta")
    t = torch.zeros(1, device="meta")
    shape = config.condition_shape
    dtype = torch.float32 if shape else torch.long
    y = None if shape is None else torch.zeros(1, *shape, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused(x, t, y)
    frozen = frozen_parameters(config)
    parameters, inference = (sum(p.numel() for p in m.parameters()) + frozen for m in (model, fused))
    return Cost(parameters, inference, macs=counter.get_total_flops() // 2)


@dataclass(frozen=True)
class Counted:
    """A row of the catalogue with its cost."""

    name: str
    entry: Entry
    cost: Cost


def costs(names: Sequence[str] = (), progress: bool = False) -> Iterator[Counted]:
    """Rows of the catalogue with their parameters and MACs: those recorded with the library, or counted.

    Counting takes about a second a row. ``models/costs.json`` has all of them; the tests count them anew.

    Args:
        names: of the rows; all if there are none.
        progress: shows a progress bar.

    Raises:
        UserError: an unknown name.
    """
    rows = {name: find(name) for name in names or CATALOG}
    with progress_bar(len(rows), "count", "model", show=progress, leave=False) as bar:
        for name, entry in rows.items():
            yield Counted(name, entry, recorded(entry.config) or cost(entry.config))
            bar.update()


def recorded(config: ModelConfig) -> Cost | None:
    """What ``benchmarks/costs.py`` counted for a config; None if it never counted this one."""
    numbers = _records().get(config_digest(config))
    return Cost(*numbers) if numbers else None


def config_digest(config: ModelConfig) -> str:
    """What a config is known by in ``models/costs.json``."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


@functools.cache
def _records() -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((files("udit.models") / "costs.json").read_text(encoding="utf-8"))
    return found
