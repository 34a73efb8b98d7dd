"""Loss curves as SVG within the page: no library, no script, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34


def loss_chart(training: Points, held_out: Points = ()) -> str:
    """Losses over steps, the losses on a logarithmic axis.

    Args:
        training: step and loss.
        held_out: step and validation loss, drawn as dots on a line.

    Returns:
        An ``svg`` element with a text of its own for those who do not see it; without points, nothing.
    """
    shown = [(step, loss) for step, loss in [*training, *held_out] if loss > 0]
    if not shown:
        return ""
    last = max(step for step, _ in shown)
    low, high = (math.log10(bound(loss for _, loss in shown)) for bound in (min, max))
    margin = max(0.05 * (high - low), 0.01)
    low, high = low - margin, high + margin

    def place(point: tuple[float, float]) -> tuple[float, float]:
        step, loss = point
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(loss)) / (high - low)

    parts = []
    for loss in _losses(low, high):
        y = place((0, loss))[1]
        parts.append(f"<line class='rule' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{loss:.3g}</text>")
    for step in _steps(last):
        x = place((step, 1))[0]
        anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - 12}' text-anchor='{anchor}'>{_short(step)}</text>")
    for name, points in (("training", training), ("held-out", held_out)):
        at = [place(point) for point in points if point[1] > 0]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f"<polyline class='{name}' points='{line}'/>" if at else "")
        if name == "held-out":
            parts += [f"<circle class='{name}' cx='{x:.1f}' cy='{y:.1f}' r='3'/>" for x, y in at]
    told = f"Training loss over {last:,.0f} steps, now {training[-1][1]:.4g}" if training else "Validation loss"
    told += f"; held out {held_out[-1][1]:.4g}" if held_out else ""
    return (
        f"<svg class='chart' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(told, quote=True)}'>"
        f"<title>{escape(told)}</title>{''.join(parts)}</svg>"
    )


def _losses(low: float, high: float) -> list[float]:
    """Round losses between two powers of ten, about five: equally spaced ones within a decade, else powers."""
    least, most = 10**low, 10**high
    if high - low < 1:
        every = round_length((most - least) / 5)
        return [i * every for i in range(math.ceil(least / every), math.floor(most / every) + 1)]
    powers = range(math.ceil(low), math.floor(high) + 1)
    return [10.0**power for power in powers[:: max(1, len(powers) // 5)]]


def round_length(length: float) -> float:
    """The next of 1, 2 and 5 times a power of ten from ``length`` on."""
    size = 10.0 ** math.floor(math.log10(length))
    return next(size * digit for digit in (1, 2, 5, 10) if size * digit >= length * (1 - 1e-9))


def _steps(last: float) -> list[float]:
    """Round steps from 0 on, about five."""
    every = max(1, round_length(max(last, 1) / 6))
    return [i * every for i in range(int(last / every) + 1)]


def _short(step: float) -> str:
    if step >= 10_000:
        return f"{step / 1000:g}k"
    return f"{step:g}"
