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
BLUE, SKY, ORANGE, GREEN, PINK, GREY = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#888888"


def box(axes: Any, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02", fc=colour, ec="none"))
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", color="black", fontsize=10)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, **({"color": GREY} | style)))


def blank(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure, axes


def plain() -> Any:
    """DiT: blocks in a row, all on one map."""
    figure, axes = blank(8, 1.6)
    for i in range(5):
        box(axes, 1.6 * i, 0, 1.3, 0.9, "block\n16 x 16", SKY)
        if i:
            arrow(axes, (1.6 * i - 0.28, 0.45), (1.6 * i, 0.45))
    axes.text(3.85, 1.15, "DiT: one map; each token attends to all 256", ha="center", fontsize=11)
    axes.set(xlim=(-0.2, 7.9), ylim=(-0.1, 1.5))
    return figure


def u(title: str, attends: tuple[str, str, str]) -> Any:
    """A U of three maps; ``attends`` is what attention compares on each."""
    figure, axes = blank(8, 3.9)
    sides, colours = (32, 16, 8), (SKY, ORANGE, GREEN)
    for level, (side, colour, words) in enumerate(zip(sides, colours, attends, strict=True)):
        y, left = 2.6 - 1.3 * level, 1.25 * level
        places = (left, 7.7 - left - 2.2) if level < 2 else (2.75,)
        for x in places:
            box(axes, x, y, 2.2, 0.9, f"{side} x {side}\n{words}", colour)
        if level < 2:
            arrow(axes, (places[0] + 2.25, y + 0.45), (places[1] - 0.03, y + 0.45), linestyle="--")
            arrow(axes, (places[0] + 1.1, y - 0.03), (places[0] + (2.1 if level == 0 else 2.4), y - 0.37))
            arrow(axes, (places[1] + (0.1 if level == 0 else -0.2), y - 0.37), (places[1] + 1.1, y - 0.03))
    axes.text(3.85, 3.75, title, ha="center", fontsize=11)
    axes.text(3.85, 3.12, "skip", ha="center", fontsize=10)
    axes.text(0.3, 1.9, "half the side,\ntwice the width", ha="center", fontsize=9)
    axes.set(xlim=(-0.6, 7.9), ylim=(-0.1, 4.1))
    return figure


def dit_unet() -> Any:
    """DiT's blocks in a U: global attention on every map."""
    return u("DiT-UNet: each token attends to all of its map", ("all 1,024", "all 256", "all 64"))


def udit_shape() -> Any:
    """U-DiT: attention within sub-grids of every map."""
    grids = ("4 grids of 16 x 16", "4 grids of 8 x 8", "4 grids of 4 x 4")
    return u("U-DiT: each token attends to its sub-grid", grids)


def subgrids() -> Any:
    """An 8 x 8 map split into four interleaved sub-grids."""
    figure, axes = blank(8, 3.2)
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
    axes.text(
        15.1, 8.9, "four sub-grids of 16 tokens; attention within each,\nwith the same weights", ha="center", fontsize=9
    )
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
    axes.set(xlabel="pairs that are compared (global = 1)", xlim=(0, 1.15))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = {"dit": plain, "dit-unet": dit_unet, "u-dit": udit_shape, "sub-grids": subgrids, "pairs": pairs}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw().savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
