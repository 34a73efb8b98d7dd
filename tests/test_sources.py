"""Data sets match their description, and are split the same way every time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udit.data.config import IdxData
from udit.data.sources import InMemory, digits, parts_of, split
from udit.errors import UserError


def test_import_is_free_of_torch() -> None:
    code = "import sys, udit.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits_are_the_whole_set_over_the_whole_range() -> None:
    source = digits()
    assert source.pixels.shape == (1797, 1, 8, 8)
    assert (source.pixels.min(), source.pixels.max()) == (0, 255)
    assert len(np.unique(source.pixels)) == 17
    assert source.labels.dtype == np.int64
    assert list(source.labels[:4]) == [0, 1, 2, 3]
    assert source.names[17] == "digit 17"
    assert source.fingerprint == digits().fingerprint


def items(*counts: int) -> tuple[np.ndarray, list[str]]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, [f"{label}/{i}" for label, n in enumerate(counts) for i in range(n)]


def test_split_divides_every_class_by_the_shares() -> None:
    labels, names = items(100, 50, 7)
    parts = split(labels, names, 0.29, 0.1)
    assert np.bincount(labels[parts.judge]).tolist() == [29, 14, 2]
    assert np.bincount(labels[parts.test]).tolist() == [10, 5]
    everything = np.concatenate([parts.train, parts.judge, parts.test])
    assert np.array_equal(np.sort(everything), np.arange(157))
    assert parts.train.dtype == np.int64


@given(st.integers(1, 40), st.floats(0, 0.99), st.floats(0, 0.99))
def test_split_leaves_every_class_something_to_train_on(count: int, judge: float, test: float) -> None:
    if judge + test < 1:
        assert len(split(*items(count), judge, test).train) >= 1


def test_new_images_do_not_shuffle_the_old() -> None:
    labels, names = items(200)
    more_labels, more_names = items(210)
    old, new = split(labels, names, 0.3, 0.1), split(more_labels, more_names, 0.3, 0.1)
    kept = (
        len(set(old.train) & set(new.train)) + len(set(old.judge) & set(new.judge)) + len(set(old.test) & set(new.test))
    )
    assert kept >= 185  # only the borders between parts move


def test_split_does_not_depend_on_the_order_of_listing() -> None:
    labels, names = items(60)
    backwards = split(labels, names[::-1], 0.3, 0.1)
    assert {names[::-1][i] for i in backwards.judge} == {names[i] for i in split(labels, names, 0.3, 0.1).judge}


def numbered(count: int, held_out: list[int]) -> InMemory:
    names = [f"picture {i}" for i in range(count)]
    return InMemory(np.zeros((count, 1, 2, 2), np.uint8), np.arange(count) % 2, names, held_out)


def test_images_kept_for_testing_are_the_test_part_and_nothing_else_is() -> None:
    source, data = numbered(30, [3, 4, 20]), IdxData(root="x", judge_share=0.3)
    parts = parts_of(source, data)
    assert parts.test.tolist() == [3, 4, 20]
    assert len(parts.judge) == 3 + 4  # of 13 and 14
    assert sorted([*parts.train, *parts.judge, *parts.test]) == list(range(30))


def test_share_for_testing_pools_all_images() -> None:
    data = IdxData(root="x", judge_share=0.3, test_share=0.2)
    ours, plain = parts_of(numbered(30, [3]), data), parts_of(numbered(30, []), data)
    assert all(np.array_equal(a, b) for a, b in zip(vars(ours).values(), vars(plain).values(), strict=True))
    assert len(ours.test) == 6


def test_testing_on_nothing_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"test_share is null.*set data.test_share=0.1"):
        parts_of(numbered(30, []), IdxData(root="x"))


def test_fingerprint_follows_pixels_labels_and_what_is_kept_for_testing() -> None:
    first = numbered(6, [1])
    pixels = first.pixels.copy()
    pixels[3, 0, 1, 1] = 1
    others = [
        InMemory(pixels, first.labels, first.names, [1]),
        InMemory(first.pixels, first.labels[::-1], first.names, [1]),
        InMemory(first.pixels, first.labels, first.names, [2]),
    ]
    assert len({source.fingerprint for source in [first, *others]}) == 4
    assert first.fingerprint == numbered(6, [1]).fingerprint
