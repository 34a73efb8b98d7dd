"""The comparison with recorded numbers: bits where they were recorded, a limit elsewhere."""

from __future__ import annotations

import pytest
import torch

from conftest import needs_compiler
from processor import same_bits_or_close, this_processor

RECORDED = {"x": torch.ones(3), "losses": [1.0, 2.0]}
ELSEWHERE = {**this_processor(), "processor": "another"}


def off_by(relative: float) -> dict[str, object]:
    return {"x": torch.ones(3), "losses": [1.0, 2.0 * (1 + relative)]}


def test_bits_are_asked_where_they_were_recorded() -> None:
    same_bits_or_close(off_by(0), RECORDED, this_processor(), rtol=1e-5)
    with pytest.raises(AssertionError):
        same_bits_or_close(off_by(1e-15), RECORDED, this_processor(), rtol=1e-5)


def test_rounding_is_allowed_elsewhere() -> None:
    same_bits_or_close(off_by(1e-6), RECORDED, ELSEWHERE, rtol=1e-5)
    with pytest.raises(AssertionError):
        same_bits_or_close(off_by(1e-4), RECORDED, ELSEWHERE, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", pytest.param("UDIT_MARCH", marks=needs_compiler)]
)
def test_instruction_sets_asked_for_are_part_of_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    this_processor.cache_clear()
    plain = this_processor()
    monkeypatch.setenv(name, "another")
    this_processor.cache_clear()
    assert this_processor() != plain
    this_processor.cache_clear()
