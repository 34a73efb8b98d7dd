"""Whether a canvas of two digits follows its prompt."""

from __future__ import annotations

import numpy as np
import pytest

from udit.data.config import DigitsData
from udit.data.sources import digits, parts_of
from udit.data.two_digits import HELD_OUT, Layout, composed, layouts, prompts
from udit.evaluation.reader import NOTHING, STEPS, Reader, train_reader


class Known:
    """A judge of crops of one brightness, which says the class."""

    def predict(self, crops: np.ndarray) -> np.ndarray:
        lowest, highest = crops.min(axis=(1, 2, 3)), crops.max(axis=(1, 2, 3))
        return np.where(lowest == highest, lowest // 10, NOTHING)


def canvas(layout: Layout, first: int, second: int) -> np.ndarray:
    return layout.canvas(*(np.full((8, 8), 10 * digit, np.uint8) for digit in (first, second)))


def test_a_sample_follows_its_prompt_where_both_places_show_the_digits() -> None:
    reader = Reader(Known())  # type: ignore[arg-type]
    upright, beside = layouts(16)
    above, below = prompts((3, 7), upright)
    *_, two = prompts((8, 8), upright)
    images = [canvas(upright, 3, 7), canvas(upright, 3, 7), canvas(upright, 7, 3), canvas(beside, 3, 7)]
    assert reader.follows(np.stack(images), [above, below, above, above]).tolist() == [True, True, False, False]
    either = [canvas(upright, 8, 8), canvas(beside, 8, 8), canvas(upright, 8, 7)]
    assert reader.follows(np.stack(either), [two, two, two]).tolist() == [True, True, False]


def test_sizes_that_are_named_are_looked_for() -> None:
    reader = Reader(Known())  # type: ignore[arg-type]
    small, large = Layout(24, vertical=False, first_small=True), Layout(24, vertical=False, first_small=False)
    [prompt] = [p for p in prompts((1, 9), small) if p.text == "a small one left of a nine"]
    images = np.stack([canvas(small, 1, 9), canvas(large, 1, 9), canvas(small, 9, 1)])
    assert reader.follows(images, [prompt] * 3).tolist() == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 24])
def test_a_trained_reader_knows_real_canvases(size: int) -> None:
    """A quarter of its training is enough; the limits are far below what it reaches, and far above chance, 1 of 100."""
    reader = train_reader(size, steps=STEPS // 4)
    part = parts_of(digits(), DigitsData()).test
    made = list(composed(HELD_OUT, size, 300, part, (0, "a test")))
    images = np.stack([image for image, _, _ in made])
    asked = [prompts(pair, layout)[0] for _, pair, layout in made]
    assert reader.follows(images, asked).mean() > 0.85
    swapped = [prompts(pair[::-1], layout)[0] for _, pair, layout in made]  # type: ignore[arg-type]
    differs = np.array([pair[0] != pair[1] for _, pair, _ in made])
    assert reader.follows(images, swapped)[differs].mean() < 0.02
