"""Reads the two digits of a canvas (``data.two_digits``), so that it is known which samples follow their prompts.

The reader is a judge of 8x8 crops with an eleventh class, "no digit": blank places, and what another layout has there.
It is trained on canvases of digits that neither the generator nor the test canvases have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from udit.data.config import DigitsData
from udit.data.sources import Labels, Pixels, digits, parts_of
from udit.data.two_digits import HELD_OUT, PAIRS, SIDE, Layout, Prompt, composed, layouts
from udit.evaluation.judge import Judge, train_judge

NOTHING = 10
"""The class of a place that shows no whole digit."""
CANVASES = 1500
"""That a reader is trained on."""
STEPS = 2000


class Reader:
    """Says which digits images show in a layout's places."""

    def __init__(self, judge: Judge) -> None:
        """Takes a judge of 8x8 crops, with ``NOTHING`` as its last class."""
        self.judge = judge

    def read(self, images: Pixels, layout: Layout) -> Labels:
        """The digits in the first and second place, or ``NOTHING``, [N, 2], of images [N, 1, S, S]."""
        return np.stack([self.judge.predict(crop) for crop in layout.crops(images)], axis=1)

    def follows(self, images: Pixels, prompts: Sequence[Prompt]) -> NDArray[np.bool_]:
        """Whether each of images [N, 1, S, S] shows what its prompt says, [N]."""
        found = np.zeros(len(images), bool)
        for layout in {layout for prompt in prompts for layout in prompt.layouts}:
            asked = [i for i, prompt in enumerate(prompts) if layout in prompt.layouts]
            wanted = np.array([prompts[i].digits for i in asked])
            found[asked] |= (self.read(images[asked], layout) == wanted).all(axis=1)
        return found


def train_reader(size: int, seed: int = 0, steps: int = STEPS) -> Reader:
    """A reader of canvases of a size; the same arguments give the same bits.

    Args:
        size: side of the canvas.
        seed: of canvases, weights and batches.
        steps: of training.
    """
    part = parts_of(digits(), DigitsData()).judge
    made = composed([*PAIRS, *HELD_OUT], size, CANVASES, part, (seed, "two digits, reader"))
    crops, labels = zip(*_crops(made, size), strict=True)
    return Reader(train_judge(np.concatenate(crops), np.array(labels), NOTHING + 1, steps=steps, seed=seed))


def _crops(made: Iterator[tuple[Pixels, tuple[int, int], Layout]], size: int) -> Iterator[tuple[Pixels, int]]:
    """The places of canvases with their digits, as often places of other layouts, and blank ones."""
    yield np.zeros((1, 1, SIDE, SIDE), np.uint8), NOTHING
    ways = layouts(size)
    for i, (canvas, pair, layout) in enumerate(made):
        yield from zip(layout.crops(canvas[None]), pair, strict=True)
        others = [way for way in ways if way != layout]
        for crop in others[i % len(others)].crops(canvas[None]):
            yield crop, NOTHING
