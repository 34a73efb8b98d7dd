"""Plots of a comparison, as SVG for the page and as PNG, told apart without colour by marker and line."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udit.comparison.config import short_amount
from udit.comparison.evaluator import LOWER_IS_BETTER
from udit.comparison.summary import Panel
from udit.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
"""Those of Okabe & Ito (2008), which differ for every kind of colour vision, without their yellow; then a grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)), (0, (8, 3, 2, 3)))
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
SIZE = 10.0, 4.2
"""Inches."""
ASIDE = 1.02
"""By which factor a system is drawn beside the next one on the axis of MACs."""


def svg(panel: Panel, title: str) -> str:
    """A panel's plot as an ``svg`` element; equal panels give equal text."""
    stream = io.StringIO()
    _save(panel, title, stream, "svg")
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    told = escape(f"{title}. {panel.verdict}", quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{told}" ', 1).strip()


def save_png(panel: Panel, title: str, path: Path) -> None:
    """Writes a panel's plot as a PNG."""
    with whole_file(path) as temporary:
        _save(panel, title, temporary, "png")


def _save(panel: Panel, title: str, target: Any, kind: str) -> None:
    import matplotlib

    salt = f"{panel.amount}-{panel.score}"  # ids within the page differ between plots and not between days
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = _figure(panel, title)
        figure.savefig(target, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def _figure(panel: Panel, title: str) -> Figure:
    from matplotlib.figure import Figure  # not pyplot: a notebook's figures stay as they are
    from matplotlib.ticker import LogFormatter, NullLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    handles = []
    for place, (system, curve) in enumerate(panel.curves.items()):
        values = [one.value for one in curve.estimates]
        errors = [
            [max(0.0, one.value - one.low) for one in curve.estimates],
            [max(0.0, one.high - one.value) for one in curve.estimates],
        ]
        style = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": DASHES[place % len(DASHES)],
            "capsize": 3,
            "markersize": 6,
        }
        aside = ASIDE ** (place - (len(panel.curves) - 1) / 2)  # else equal MACs would hide intervals behind others
        macs = [aside * one for one in curve.macs]
        handles.append(left.errorbar(macs, values, yerr=errors, label=system, **style))
        right.errorbar(curve.seconds, values, yerr=errors, **style)
    for axes, label in ((left, "multiply-accumulates of the training"), (right, "seconds of the training")):
        axes.set_xlabel(label)
        axes.set_xscale("log")
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    _limit(left, panel)
    steps = next(iter(panel.curves.values())).macs
    left.set_xticks(steps, labels=[short_amount(one) for one in steps])
    left.xaxis.set_minor_locator(NullLocator())
    for axis in (left.yaxis, right.xaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    left.set_ylabel(panel.score)
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    return figure


def _limit(axes: Any, panel: Panel) -> None:
    """The vertical axis around the values: an interval of two seeds may be so long that nothing else is seen."""
    values = [one.value for curve in panel.curves.values() for one in curve.estimates]
    ends = [end for curve in panel.curves.values() for one in curve.estimates for end in (one.low, one.high)]
    if panel.score in LOWER_IS_BETTER and min(values) > 0:
        axes.set_yscale("log")
        spread = max(max(values) / min(values), 1.2)
        low = max(min([*values, *(end for end in ends if end > 0)]), min(values) / spread)
        axes.set_ylim(low / 1.05, min(max(ends), max(values) * spread) * 1.05)
    else:
        spread = max(max(values) - min(values), 0.02)
        low, high = max(min(ends), min(values) - spread), min(max(ends), max(values) + spread)
        axes.set_ylim(low - 0.05 * spread, high + 0.05 * spread)
    if panel.real is not None:
        bottom, top = axes.get_ylim()
        if bottom < panel.real < top:
            axes.axhline(panel.real, color="#555555", linewidth=0.8, linestyle=":")
            axes.annotate(
                "real images", (0.01, panel.real), xycoords=("axes fraction", "data"), fontsize=8, va="bottom"
            )
