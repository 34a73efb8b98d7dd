"""Draws the figures of docs/dit-to-udit.md: ``python benchmarks/drawings.py`` writes docs/images/*.svg.

Colours are of the palette of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "udit"
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

IMAGES = Path(__file__).parents[1] / "docs" / "images"
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#888888"


def box(axes: Any, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02", fc=colour, ec="none", alpha=0.9))
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", color="white", fontsize=9)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, **({"color": GREY} | style)))


def blank(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure, axes


def shapes() -> Any:
    """DiT in a row, and its blocks in a U."""
    figure, axes = blank(9, 3.6)
    for i in range(5):
        box(axes, 0.2 + 0.9 * i, 2.6, 0.7, 0.6, "block", BLUE)
        if i:
            arrow(axes, (0.2 + 0.9 * i - 0.2, 2.9), (0.2 + 0.9 * i, 2.9))
    axes.text(2.35, 3.45, "DiT: one map, every block sees all tokens", ha="center", fontsize=10)
    places = [(5.6, 2.6, 1.0, "32 x 32"), (6.5, 1.6, 0.8, "16 x 16"), (7.3, 0.6, 0.7, "8 x 8")]
    for k, (x, y, w, text) in enumerate(places):
        box(axes, x, y, w, 0.6, text, [BLUE, ORANGE, GREEN][k])
        if k < 2:
            mirrored = 15.3 - x - w
            box(axes, mirrored, y, w, 0.6, text, [BLUE, ORANGE, GREEN][k])
            arrow(axes, (x + w, y + 0.3), (mirrored, y + 0.3), linestyle="--")
    arrow(axes, (6.1, 2.6), (6.8, 2.2))
    arrow(axes, (6.9, 1.6), (7.5, 1.2))
    arrow(axes, (7.8, 1.2), (8.4, 1.6))
    arrow(axes, (8.5, 2.2), (9.2, 2.6))
    axes.text(7.65, 3.45, "DiT-UNet, U-DiT: a U; dashed: skips", ha="center", fontsize=10)
    axes.set(xlim=(0, 10), ylim=(0.4, 3.7))
    return figure


def subgrids() -> Any:
    """An 8 x 8 map split into four interleaved sub-grids."""
    figure, axes = blank(9, 3.4)
    colours = [[BLUE, ORANGE], [GREEN, PINK]]

    def cell(x: float, y: float, colour: str, side: float = 1.0) -> None:
        axes.add_patch(Rectangle((x, y), side * 0.94, side * 0.94, fc=colour, ec="none"))

    for row in range(8):
        for column in range(8):
            cell(column, 7 - row, colours[row % 2][column % 2])
    arrow(axes, (8.4, 4), (10.2, 4), color="black")
    axes.text(9.3, 4.35, "2 x 2", ha="center", fontsize=9)
    for i in range(2):
        for j in range(2):
            for row in range(4):
                for column in range(4):
                    cell(10.6 + 5 * j + column, 4.3 - 4.6 * i + 3 - row, colours[i][j])
    arrow(axes, (20.2, 4), (22, 4), color="black")
    axes.text(21.1, 4.35, "attend", ha="center", fontsize=9)
    for row in range(8):
        for column in range(8):
            cell(22.4 + column, 7 - row, colours[row % 2][column % 2])
    axes.text(4, 8.4, "64 tokens, smoothed by a\ndepthwise filter", ha="center", fontsize=9)
    axes.text(15.1, 8.9, "four sub-grids of 16 tokens; attention within each,\nwith the same weights", ha="center", fontsize=9)
    axes.text(26.4, 8.4, "interleaved again:\nno token is dropped", ha="center", fontsize=9)
    axes.set(xlim=(-0.5, 31), ylim=(-0.8, 10.2))
    return figure


def pairs() -> Any:
    """How many pairs of tokens attention compares."""
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    names = ["global attention", "keys and values downsampled", "four sub-grids (U-DiT)"]
    shares = [1.0, 0.25, 4 * (1 / 16)]
    axes.barh(names[::-1], shares[::-1], color=[BLUE, ORANGE, GREY][: len(names)])
    for place, share in enumerate(shares[::-1]):
        axes.text(share + 0.02, place, f"{share:g}", va="center", fontsize=9)
    axes.set(xlabel="pairs of tokens that are compared, against global attention", xlim=(0, 1.15))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = {"dit-and-u": shapes, "sub-grids": subgrids, "pairs": pairs}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw().savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
