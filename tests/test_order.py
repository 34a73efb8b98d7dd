"""Order and mirroring are functions of (seed, position)."""

from __future__ import annotations

import pytest

from udit.data.order import Order, flips, indices
from udit.errors import UserError


def test_every_epoch_has_every_image_once() -> None:
    for epoch in range(3):
        assert sorted(indices(11, 0, range(11 * epoch, 11 * epoch + 11))) == list(range(11))


def test_epochs_and_seeds_differ() -> None:
    first = indices(50, 0, range(50))
    assert first != indices(50, 0, range(50, 100))
    assert first != indices(50, 1, range(50))
    assert first != list(range(50))


def test_a_position_is_the_same_however_it_is_reached() -> None:
    straight = indices(7, 3, range(70))
    order = Order(7, 3)
    assert [order[p] for p in reversed(range(70))] == straight[::-1]
    assert indices(7, 3, range(33, 40)) == straight[33:40]


def test_fewer_images_than_a_batch_wrap_into_later_epochs() -> None:
    assert sorted(indices(3, 0, range(9))) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"no images.*judge_share"):
        Order(0, 0)


def test_half_are_mirrored_by_position_and_seed() -> None:
    mirrored = flips(0, range(1000))
    assert 440 < sum(mirrored) < 560
    assert flips(0, range(500, 600)) == mirrored[500:600]
    assert flips(1, range(1000)) != mirrored
