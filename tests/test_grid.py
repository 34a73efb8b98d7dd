"""Grids: a column is a class, and titles can be told apart whatever their letters and length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from udit.images import ELLIPSIS, columns_of, fitted, grid, title_font

WIDTH = 63
"""Of a title in pixels above an image of 64."""


@pytest.mark.parametrize(
    ("classes", "count", "columns"),
    [(5, 16, 5), (10, 16, 10), (10, 100, 10), (12, 24, 12), (2, 16, 4), (3, 16, 3), (1, 16, 4), (5, 4, 2), (99, 16, 4)],
)
def test_a_column_is_a_class_where_classes_are_drawn_in_turn(classes: int, count: int, columns: int) -> None:
    labels = [i % classes for i in range(count)]
    assert columns_of(labels, count) == columns
    if 1 < classes < count:
        assert all(len(set(labels[i::columns])) == 1 for i in range(columns))


def test_other_orders_are_shown_about_square() -> None:
    assert columns_of([3, 0, 0, 1, 2, 3, 1, 1, 0], 9) == 3
    assert columns_of((), 16) == 4


def test_long_titles_end_in_an_ellipsis_and_begin_with_their_number() -> None:
    font = title_font()
    one, two = (fitted(f"a long class name, {word}", font, WIDTH, i) for i, word in enumerate(("first", "second")))
    assert one.startswith("0 a l")
    assert two.startswith("1 a l")
    for text in (one, two, fitted("a long class name", font, WIDTH, None)):
        assert text.endswith(ELLIPSIS)
        assert font.getlength(text) <= WIDTH
    assert fitted("short", font, WIDTH, 7) == "short"
    assert fitted("U\u0308ber", font, WIDTH, 7) == "Über", "as one letter, which the font has"


def test_foreign_letters_are_drawn_and_a_class_in_unknown_ones_is_a_number() -> None:
    pytest.importorskip("matplotlib", reason="its font is DejaVu Sans")
    font = title_font()
    assert [fitted(word, font, WIDTH, 3) for word in ("кошка", "αβγ", "Ünï", "été")] == ["кошка", "αβγ", "Ünï", "été"]
    boxes = bytes(font.getmask("\U0010fffe"))
    assert all(bytes(font.getmask(letter)) != boxes for letter in "Üïкα")
    assert fitted("猫", font, WIDTH, 3) == "3"


def test_titles_of_all_classes_differ_on_the_sheet() -> None:
    names = ["Orte Ünïcode", "Orte Ünïformen", "a long class name", "a long class", "猫", "犬"]
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    sheet = np.array(grid(images, names, columns=6, numbers=range(6)))
    titles = [sheet[4:18, 4 + i * 68 : 4 + i * 68 + 64].tobytes() for i in range(6)]
    assert len(set(titles)) == 6
