"""Every draw is a pure function of (seed, purpose, indices)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udit import rng
from udit.errors import UserError

SEEDS = st.integers(0, 2**63 - 1)
PURPOSES = st.sampled_from(["train", "sample", "init/out.weight", "order"])
INDICES = st.lists(st.integers(0, 2**31), max_size=3)


@given(SEEDS, PURPOSES, INDICES)
def test_same_key_gives_the_same_bits(seed: int, purpose: str, index: list[int]) -> None:
    assert torch.equal(rng.normal((2, 3), seed, purpose, *index), rng.normal((2, 3), seed, purpose, *index))


def test_numbers_stay_what_they_were_in_every_release() -> None:
    """Resume, seeds of published images and initial weights rest on these numbers."""
    assert rng.key(0, "train", 1, 2) == 6532432334001506813
    assert rng.normal((3,), 7, "sample", 0).tolist() == pytest.approx([0.0577, -0.3054, 0.1052], abs=5e-5)


@given(SEEDS, PURPOSES, INDICES)
def test_key_fits_a_signed_64_bit_integer(seed: int, purpose: str, index: list[int]) -> None:
    assert 0 <= rng.key(seed, purpose, *index) < 2**63


def test_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), rng.normal((4,), 3, "sample", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(rng.normal((4,), 3, "sample", 0), first)


def test_any_change_of_the_key_changes_the_numbers() -> None:
    keys = {
        rng.key(seed, purpose, *index)
        for seed in range(10)
        for purpose in ("train", "sample", "init/a.weight", "init/b.weight")
        for index in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (10,), (1, 0, 0))
    }
    assert len(keys) == 10 * 4 * 8


def test_number_types_do_not_change_the_key() -> None:
    assert rng.key(3, "train", 5) == rng.key(np.int64(3), "train", np.int32(5)) == rng.key(True + 2, "train", 5)


def test_noise_of_many_keys_is_standard_normal_and_uncorrelated() -> None:
    noise = torch.stack([rng.normal((64,), 0, "sample", i) for i in range(1000)]).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((noise[:-1] * noise[1:]).mean()) < 5 / n**0.5


def test_seeds_are_whole_numbers_that_the_command_line_takes_too() -> None:
    assert rng.seeds_of([0, np.int64(3), 2**63 - 1]) == [0, 3, 2**63 - 1]
    for wrong in (-1, 1.5, True, "3", 2**63):
        with pytest.raises(UserError, match=r"^seeds has .*; seeds are whole numbers from 0 to 9223372036854775807, "):
            rng.seeds_of([0, wrong])  # type: ignore[list-item]
