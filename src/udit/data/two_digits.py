"""Canvases of two of scikit-learn's digits, each with captions that say which lies where; made from a seed.

Whether a sample follows its prompt can be read from the places that the prompt names (``evaluation.reader``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from udit import rng
from udit.data.captions import Captions
from udit.data.config import DigitsData, TwoDigitsData
from udit.data.sources import InMemory, Labels, Pixels, digits, parts_of

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
SIDE = 8
"""Of a digit as scikit-learn has it."""
DOUBLES = (2, 5, 8)
HELD_OUT = tuple((digit, (digit + step) % 10) for digit in range(10) for step in (3, 0 if digit in DOUBLES else 4))
"""Ordered pairs that no training canvas shows: 17 of different digits and 3 of one. Each digit comes first in two of
them, and second in one to three. Those of different digits are shown in the other order, so that a model that ignores
which digit comes first does not follow these."""
PAIRS = tuple((a, b) for a in range(10) for b in range(10) if (a, b) not in HELD_OUT)
"""All others."""


@dataclass(frozen=True)
class Layout:
    """Where two digits lie on a square canvas."""

    size: int
    """16 or 24, the canvas's side."""
    vertical: bool
    """The first is above the second; otherwise left of it."""
    first_small: bool = True
    """On 24x24, of the two the first is the small one."""

    @property
    def places(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(row, column, side) of the first and the second digit."""
        first = SIDE if self.size == 2 * SIDE or self.first_small else 2 * SIDE
        second = self.size - first
        if self.vertical:
            return (0, (self.size - first) // 2, first), (first, (self.size - second) // 2, second)
        return ((self.size - first) // 2, 0, first), ((self.size - second) // 2, first, second)

    def canvas(self, first: Pixels, second: Pixels) -> Pixels:
        """Two digits [8, 8] on black, [1, size, size]; a large one has each pixel four times."""
        out = np.zeros((1, self.size, self.size), np.uint8)
        for digit, (row, column, side) in zip((first, second), self.places, strict=True):
            out[0, row : row + side, column : column + side] = np.kron(digit, np.ones((side // SIDE,) * 2, np.uint8))
        return out

    def crops(self, images: Pixels) -> tuple[Pixels, Pixels]:
        """What is in the two places of images [N, 1, size, size], each [N, 1, 8, 8]; large ones are averaged."""
        cut = []
        for row, column, side in self.places:
            part, scale = images[:, :, row : row + side, column : column + side], side // SIDE
            squares = part.reshape(*part.shape[:2], SIDE, scale, SIDE, scale)
            cut.append(np.round(squares.mean(axis=(3, 5))).astype(np.uint8))
        return cut[0], cut[1]


def layouts(size: int) -> list[Layout]:
    """All layouts of a canvas's side."""
    return [
        Layout(size, vertical, small) for vertical in (True, False) for small in ((True, False)[: size // SIDE - 1])
    ]


@dataclass(frozen=True)
class Prompt:
    """A caption, and what a canvas must show to follow it."""

    text: str
    kind: str
    """above, below, left, right, or two."""
    digits: tuple[int, int]
    """In the first place and in the second."""
    layouts: tuple[Layout, ...]
    """Those of which one must be found."""


def prompts(pair: tuple[int, int], layout: Layout) -> list[Prompt]:
    """All captions of a canvas with a pair of digits in a layout."""
    (a, b), sizes = pair, ("", "")
    if layout.size == 2 * SIDE:
        named = [sizes]
    else:
        sizes = ("small", "large") if layout.first_small else ("large", "small")
        named = [sizes, (sizes[0], ""), ("", sizes[1])]
    forward, back = ("above", "below") if layout.vertical else ("left", "right")
    found = []
    for one, other in named:
        first, second = _called(a, one), _called(b, other)
        found.append(Prompt(f"{first} {_relation(forward)} {second}", forward, pair, (layout,)))
        found.append(Prompt(f"{second} {_relation(back)} {first}", back, pair, (layout,)))
    if a == b and layout.size == 2 * SIDE:
        found.append(Prompt(f"two {PLURALS[a]}", "two", pair, tuple(layouts(layout.size))))
    return found


def _relation(kind: str) -> str:
    return f"{kind} of" if kind in ("left", "right") else kind


def _called(digit: int, size: str) -> str:
    words = f"{size} {WORDS[digit]}".strip()
    return f"an {words}" if words.startswith("eight") else f"a {words}"


def composed(
    pairs: Sequence[tuple[int, int]], size: int, count: int, part: Labels, key: tuple[int, str]
) -> Iterator[tuple[Pixels, tuple[int, int], Layout]]:
    """Canvases of real digits.

    Args:
        pairs: which come together, each as often as the others but for chance.
        size: side of the canvas.
        count: of the canvases.
        part: indices of scikit-learn's digits to take.
        key: (seed, purpose) of all choices.
    """
    source, ways = digits(), layouts(size)
    of = [part[source.labels[part] == digit] for digit in range(10)]
    drawn = torch.randint(2**31, (count, 4), generator=rng.generator(*key)).tolist()
    for which, way, first, second in drawn:
        a, b = pair = pairs[which % len(pairs)]
        images = (source.pixels[of[digit][pick % len(of[digit])], 0] for digit, pick in ((a, first), (b, second)))
        layout = ways[way % len(ways)]
        yield layout.canvas(*images), pair, layout


class TwoDigits(InMemory):
    """The canvases with their captions; those of held-out pairs come last and are the test images."""

    def __init__(self, pixels: Pixels, captions: Captions, num_test: int) -> None:
        """Takes [N, 1, S, S] canvases, their captions, and how many of the last are test images."""
        count = len(pixels)
        names = [f"canvas {i}" for i in range(count)]
        super().__init__(pixels, np.zeros(count, np.int64), names, np.arange(count - num_test, count))
        self.captions = captions
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {captions.digest()}".encode()).hexdigest()


def load(data: TwoDigitsData) -> TwoDigits:
    """The data set of a config.

    Raises:
        UserError: scikit-learn is missing.
    """
    parts = parts_of(digits(), DigitsData())
    tests = max(1, data.count // 10)
    made = [
        *composed(PAIRS, data.size, data.count, parts.train, (data.seed, "two digits")),
        *composed(HELD_OUT, data.size, tests, parts.test, (data.seed, "two digits, held out")),
    ]
    captions = Captions.of([prompt.text for prompt in prompts(pair, layout)] for _, pair, layout in made)
    return TwoDigits(np.stack([canvas for canvas, _, _ in made]), captions, tests)
