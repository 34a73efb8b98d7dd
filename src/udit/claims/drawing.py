"""Images of what was measured: spectra, growth, caching.

Colours are of the palette of Okabe and Ito, which colour-blind readers can tell apart; markers differ too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from udit.claims.caching import Caching
from udit.claims.claim import Kind
from udit.claims.comparisons import FASHION_MNIST, Members
from udit.claims.growth import Growths
from udit.claims.spectra import Spectra
from udit.files import whole_file

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "x")


def spectra(record: Spectra, path: Path) -> None:
    """A panel for each network: a line for each place, averaged over times; at the bottom low shares over time."""
    networks = list(dict.fromkeys(one.network for one in record.places))
    figure = _figure(4 * len(networks), 6.4)
    panels = figure.subplots(2, len(networks), squeeze=False)
    for column, network in enumerate(networks):
        top, bottom = panels[0][column], panels[1][column]
        for place, colour, marker in zip(
            (one for one in record.places if one.network == network), COLOURS, MARKERS, strict=False
        ):
            bands = list(zip(*(one.spectrum for one in place.moments), strict=True))
            radius = [2 * (i + 1) / place.side for i in range(len(bands))]
            mean = [sum(band) / len(band) for band in bands]
            look = {"color": colour, "marker": marker, "markersize": 4, "label": place.place}
            if place.place == "x_t":
                look |= {"linestyle": "--"}
            top.plot(radius, mean, **look)
            bottom.plot([one.time for one in place.moments], [one.low.value for one in place.moments], **look)
        top.set(title=network, xlabel="radial frequency, 1 = Nyquist", yscale="log", xlim=(0, 1.05))
        bottom.set(xlabel="time, 0 data to 1 noise", xlim=(0, 1), ylim=(0, 1))
        top.legend(fontsize=7, loc="lower left")
    panels[0][0].set_ylabel("power of a frequency, share of all")
    panels[1][0].set_ylabel("share of power at low frequencies")
    _save(figure, path)


def growth(record: Growths, path: Path) -> None:
    """Time and memory, on logarithmic axes."""
    figure = _figure(9, 3.6)
    panels = figure.subplots(1, 2)
    for one, colour, marker in zip(record.growths, COLOURS, MARKERS, strict=False):
        tokens = [cost.tokens for cost in one.costs]
        for axes, values, exponent in (
            (panels[0], [1e3 * min(cost.seconds) for cost in one.costs], one.time(last=True).value),
            (panels[1], [cost.memory / 1e6 for cost in one.costs], one.memory(last=True)),
        ):
            axes.plot(tokens, values, color=colour, marker=marker, label=f"{one.subject}: {exponent:.2f}")
    for axes, title in zip(panels, ("ms of a forward", "MB beyond the weights"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=f"{title}; exponent of the last two")
        axes.legend(fontsize=8)
    _save(figure, path)


def caching(record: Caching, path: Path) -> None:
    """Changes over time, and distances against the interval."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for one, colour, marker in zip(record.models, COLOURS, MARKERS, strict=False):
        look = {"color": colour, "marker": marker, "markersize": 4, "label": one.name}
        left.plot([change.time for change in one.changes], [change.relative.value for change in one.changes], **look)
        ratios = [at.ratio for at in one.cached]
        ends = [[at.value - at.low for at in ratios], [at.high - at.value for at in ratios]]
        right.errorbar([at.interval for at in one.cached], [at.value for at in ratios], ends, capsize=2, **look)
    left.set(xlabel="time, 0 data to 1 noise", title="change of what is cached, step to step", ylim=(0, None))
    right.set(xlabel="the deep part runs at every N-th step", title="distance over that without a cache")
    for axes in (left, right):
        axes.legend(fontsize=8)
    _save(figure, path)


def trained(members: Members, path: Path) -> None:
    """Distance at the end of the training against MACs, of all systems on Fashion-MNIST."""
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    curves = members.curves(FASHION_MNIST)
    for (system, curve), colour, marker in zip(curves.items(), itertools.cycle(COLOURS), itertools.cycle(MARKERS)):
        amounts = [amount / 1e6 for amount in curve]
        mean = [one.value for one in curve.values()]
        ends = [[one.value - one.low for one in curve.values()], [one.high - one.value for one in curve.values()]]
        axes.errorbar(amounts, mean, ends, color=colour, marker=marker, markersize=5, capsize=2, label=system)
    axes.set(xscale="log", yscale="log", xlabel="M MACs per sample", ylabel="Fréchet distance (judge)")
    axes.legend(fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: a notebook's figures stay as they are

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    with whole_file(path, durable=False) as temporary:
        figure.savefig(temporary, format="png")


FIGURES: dict[Kind, Callable[[Any, Path], None]] = {"spectra": spectra, "growth": growth, "caching": caching}
