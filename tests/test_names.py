"""Names stored in arrays are read back unchanged."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udit.data.names import Names


@given(st.lists(st.binary(max_size=9).map(os.fsdecode)))
def test_names_come_back_as_they_were(words: list[str]) -> None:
    names = Names(words)
    assert list(names) == words
    assert len(names) == len(words)
    assert [names[i] for i in range(-len(words), len(words))] == words + words
    assert names[1:4] == words[1:4]
    assert names[::-1] == words[::-1]


@pytest.mark.parametrize("i", [2, -3])
def test_name_beyond_the_end_is_an_index_error(i: int) -> None:
    with pytest.raises(IndexError):
        Names(["a", "b"])[i]
