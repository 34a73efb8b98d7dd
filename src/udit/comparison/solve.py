"""Sizes that meet a budget: depth and width scaled together, then heads and the FFN's ratio where they must help.

Published sizes of one architecture differ in depth and width at once. So does a system here: its depth is scaled with
its width, which leaves the proportions of the size it is made from, and the width is then any that heads and RoPE
allow. Widths come in steps of several per cent of the cost; what is missing is made up by the ratio of the FFN, which
is a real number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from udit.analysis import cost
from udit.comparison.config import TOLERANCE, UNITS, System, Yardstick
from udit.comparison.records import Sized
from udit.errors import UserError
from udit.models.config import ModelConfig

Measure = Callable[[ModelConfig], float]
"""What the budget counts, of a model."""
NEAR = 0.5
"""How far, as a share of the budget, a width may miss it for the FFN's ratio to make up."""
HEAD_CHANNELS = 2.0
"""By which factor the channels of a head may differ from the system's own."""
MAX_SCALE, MIN_SCALE = 64.0, 1 / 64
BISECTIONS = 10
FITTED = 6
"""Widths of one depth, the nearest to the budget, whose FFN's ratio is solved for."""
SCALES = (1.0, 0.9, 1.1, 0.8, 1.25, 0.65, 1.5)
"""Of the depth, against the one in proportion, until a width is found."""
TIMED = 5
"""Training steps whose fastest counts, for a budget of seconds."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a config that a budget may change; None where it has none."""

    width: int
    heads: int | None
    depths: tuple[int, ...] | None
    depth: int | None
    ratio: float | None

    @classmethod
    def of(cls, config: ModelConfig, system: str) -> Shape:
        """Those of a config.

        Raises:
            UserError: it has no single width.
        """
        width = getattr(config, "width", None)
        if not isinstance(width, int):
            raise UserError(f"{system} is of family {config.family}, which has no single width to scale; leave it out")
        ffn, heads = getattr(config, "ffn", None), getattr(config, "heads", None)
        ratio, depths, depth = (
            getattr(ffn, "ratio", None),
            getattr(config, "depths", None),
            getattr(config, "depth", None),
        )
        return cls(
            width,
            heads if isinstance(heads, int) else None,
            depths if isinstance(depths, tuple) else None,
            depth if isinstance(depth, int) else None,
            ratio if isinstance(ratio, float | int) else None,
        )

    def blocks(self, scale: float) -> dict[str, Any]:
        """``depth`` or ``depths`` times a factor, each at least 1."""
        if self.depths is not None:
            return {"depths": tuple(max(1, round(scale * depth)) for depth in self.depths)}
        return {} if self.depth is None else {"depth": max(1, round(scale * self.depth))}

    def words(self, other: Shape) -> str:
        """These numbers in words, with those of another that differ."""
        parts = []
        for name in ("width", "heads", "depths", "depth", "ratio"):
            own, was = getattr(self, name), getattr(other, name)
            if own is None:
                continue
            title = "FFN ratio" if name == "ratio" else name
            shown, before = (_shown(value) for value in (own, was))
            parts.append(f"{title} {shown}" + (f" (of {before})" if shown != before else ""))
        return ", ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def solve(
    system: System, config: ModelConfig, budget: Yardstick, amount: float, measure: Measure | None = None
) -> Sized:
    """The system at the size that meets a budget within ``TOLERANCE``.

    Args:
        system: what is scaled, and whether its depth stays.
        config: its model at the data's channels, classes and size.
        budget: what counts.
        amount: how much of it.
        measure: counts it; of ``macs`` and ``parameters`` known, of ``seconds`` to be given (``training_seconds``).

    Raises:
        UserError: no size of the system meets it; the message has the nearest.
    """
    counted = _remembered(measure or MEASURES[budget])
    shape = Shape.of(config, system.name)
    best: tuple[float, ModelConfig] | None = None
    nearest: tuple[float, ModelConfig] | None = None
    for group in _candidates(shape, config, amount, counted, fixed=system.fixed_depth):
        for candidate in group:
            found = _fitted(shape, candidate, amount, counted)
            error = abs(counted(found) / amount - 1)
            if nearest is None or error < nearest[0]:
                nearest = error, found
            penalty = _penalty(shape, Shape.of(found, system.name))
            if error <= TOLERANCE and (best is None or penalty < best[0]):
                best = penalty, found
        if best is not None:
            break
    if best is None:
        raise UserError(
            f"{system.name} cannot meet a budget of {amount:,.4g} {UNITS[budget]} within {TOLERANCE:.0%}"
            + (f"; the nearest has {counted(nearest[1]):,.4g}" if nearest else "")
            + "; take another budget, or give the system other depths"
        )
    found = best[1]
    counts = cost(found)
    return Sized(
        system=system.name,
        budget=budget,
        amount=amount,
        model=found.model_dump(mode="json"),
        measured=counted(found),
        macs=counts.macs,
        parameters=counts.inference_parameters,
        changed=Shape.of(found, system.name).words(shape),
    )


def training_seconds(steps: int, batch_size: int, threads: int) -> Measure:
    """What a budget of seconds counts: a training of so many steps, by the fastest of a few steps timed here.

    On a CPU with one thread it is processor time, which other programs do not disturb, elsewhere wall time.
    """
    import torch

    from udit.benchmarking.measure import Work, prepare
    from udit.benchmarking.subjects import ours
    from udit.comparison.clock import clock_of

    def measure(config: ModelConfig) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            clock = clock_of("cpu")[0]
            case = prepare(ours(config.family, config), Work("train", batch_size, config.size))
            seconds = []
            for _ in range(TIMED + 1):
                start = clock()
                case.call()
                seconds.append(clock() - start)
        finally:
            torch.set_num_threads(before)
        return min(seconds[1:]) * steps

    return measure


MEASURES: dict[Yardstick, Measure] = {
    "macs": lambda config: cost(config).macs,
    "parameters": lambda config: cost(config).inference_parameters,
}


def _candidates(
    shape: Shape, config: ModelConfig, amount: float, counted: Measure, *, fixed: bool
) -> Iterator[list[ModelConfig]]:
    """Valid configs that come close to a budget, with their own FFN ratio: those of the proportions, then others."""
    low, high = math.log(MIN_SCALE), math.log(MAX_SCALE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = _at(shape, config, math.exp(middle), fixed=fixed)
        if found is None or counted(found) < amount:
            low = middle
        else:
            high = middle
    depths: list[dict[str, Any]] = []
    for factor in SCALES:
        scale = math.exp((low + high) / 2) * factor
        for blocks in _depths(shape, config, scale, fixed=fixed):
            if blocks in depths:
                continue
            depths.append(blocks)
            middle = _width(shape, config, blocks, scale, amount, counted)
            valid = _valid_from(shape, config, blocks, math.floor(0.8 * middle), math.ceil(1.25 * middle) + 4)
            valid.sort(key=lambda found: abs(counted(found) / amount - 1))
            yield [found for found in valid if abs(counted(found) / amount - 1) <= NEAR][:FITTED] or valid[:1]


def _valid_from(shape: Shape, config: ModelConfig, blocks: dict[str, Any], first: int, last: int) -> list[ModelConfig]:
    """The valid configs of a range of widths; where it has none, that of the next width beyond."""
    found = [one for width in range(first, last + 1) if (one := _valid(shape, config, width, blocks)) is not None]
    if found:
        return found
    beyond = (_valid(shape, config, width, blocks) for width in range(last, last + 2 * shape.width))
    return [one for one in [next((one for one in beyond if one is not None), None)] if one is not None]


def _depths(shape: Shape, config: ModelConfig, scale: float, *, fixed: bool) -> list[dict[str, Any]]:
    """The blocks at a scale; of a network that takes even numbers only, the even ones beside it."""
    if fixed:
        return [{}]
    blocks = shape.blocks(scale)
    if "depth" not in blocks or _replaced(config, blocks) is not None:
        return [blocks]
    return [{"depth": depth} for depth in (blocks["depth"] + 1, blocks["depth"] - 1) if depth >= 1]


def _at(shape: Shape, config: ModelConfig, scale: float, *, fixed: bool) -> ModelConfig | None:
    """A valid config near a scale; None where there is none, which happens only at small ones."""
    width = max(1, round(scale * shape.width))
    for blocks in _depths(shape, config, scale, fixed=fixed):
        for wider in range(width, 2 * width + 16):
            if (found := _valid(shape, config, wider, blocks)) is not None:
                return found
    return None


def _width(
    shape: Shape, config: ModelConfig, blocks: dict[str, Any], scale: float, amount: float, counted: Measure
) -> int:
    """The width, up to four times off the scale's, at which so many blocks come nearest to a budget."""
    low, high = max(1, math.floor(scale * shape.width / 4)), math.ceil(4 * scale * shape.width) + 1
    while high - low > 2:
        middle = (low + high) // 2
        found = next((one for w in range(middle, high) if (one := _valid(shape, config, w, blocks)) is not None), None)
        if found is not None and counted(found) < amount:
            low = middle
        else:
            high = middle
    return low


def _valid(shape: Shape, config: ModelConfig, width: int, blocks: dict[str, Any]) -> ModelConfig | None:
    """The config of a width, with the heads whose channels are nearest to the system's own; None if there are none."""
    if shape.heads is None:
        return _replaced(config, blocks | {"width": width})
    wanted = shape.width / shape.heads
    allowed = [
        heads
        for heads in range(1, width + 1)
        if width % heads == 0 and 1 / HEAD_CHANNELS <= width / heads / wanted <= HEAD_CHANNELS
    ]
    for heads in sorted(allowed, key=lambda heads: abs(math.log(width / heads / wanted))):
        if (found := _replaced(config, blocks | {"width": width, "heads": heads})) is not None:
            return found
    return None


def _replaced(config: ModelConfig, changes: dict[str, Any]) -> ModelConfig | None:
    try:
        return config.replace(**changes)
    except UserError:
        return None


def _fitted(shape: Shape, config: ModelConfig, amount: float, counted: Measure) -> ModelConfig:
    """The config with the FFN ratio that comes nearest to a budget; the cost is linear in it but for rounding."""
    if shape.ratio is None or abs(counted(config) / amount - 1) <= TOLERANCE / 2:
        return config
    ratio, found = shape.ratio, config
    for _ in range(3):
        other = _with_ratio(config, 1.25 * ratio)
        slope = (counted(other) - counted(found)) / (0.25 * ratio)
        if slope <= 0:
            break
        ratio = round(ratio + (amount - counted(found)) / slope, 3)
        if not shape.ratio / 2 <= ratio <= 2 * shape.ratio:
            break
        tuned = _with_ratio(config, ratio)
        if abs(counted(tuned) - amount) < abs(counted(found) - amount):
            found = tuned
        if abs(counted(found) / amount - 1) <= TOLERANCE / 2:
            break
    return found


def _with_ratio(config: ModelConfig, ratio: float) -> ModelConfig:
    ffn: Any = config.ffn  # type: ignore[attr-defined]
    return config.replace(ffn=ffn.replace(ratio=ratio))


def _penalty(shape: Shape, found: Shape) -> float:
    """How far a config is from the system's proportions: of its FFN's ratio, and half as much of a head's channels."""
    penalty = 0.0
    if shape.ratio is not None and found.ratio is not None:
        penalty += abs(math.log(found.ratio / shape.ratio))
    if shape.heads is not None and found.heads is not None:
        penalty += 0.5 * abs(math.log(found.width / found.heads / (shape.width / shape.heads)))
    return penalty


def _remembered(measure: Measure) -> Measure:
    """A measure that counts each config once."""
    known: dict[ModelConfig, float] = {}

    def counted(config: ModelConfig) -> float:
        if config not in known:
            known[config] = measure(config)
        return known[config]

    return counted
