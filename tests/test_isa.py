"""`make test-isa`: every numerical test is on its list, and every setting is run or left out with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import isa

HERE = Path(__file__).parent
COMPARES = re.compile(r"assert_close|assert_near|same_bits_or_close|torch\.allclose|\.abs\(\)\.max\(\) <")
"""Text by which a test that rounding could fail is recognised."""
NOT_OF_ROUNDING = {
    "bench": "times and memory",
    "export": "slow, and by other programs",
    "isa": "this file",
    "jobs": "whole jobs take long; images are compared to one level of 255, which their parts' tests do as well",
}


def test_every_test_that_compares_numbers_is_run_under_every_instruction_set() -> None:
    names = {path.stem.removeprefix("test_"): path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py")}
    compares = {name for name, text in names.items() if COMPARES.search(text)}
    assert sorted(compares - set(isa.NUMERICAL) - NOT_OF_ROUNDING.keys()) == [], "to be added to tests/isa.py"
    assert sorted({*isa.NUMERICAL, *NOT_OF_ROUNDING} - names.keys()) == []


def test_a_setting_runs_or_is_left_out_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[isa.Setting] = []
    monkeypatch.setattr(isa, "run", lambda setting: ran.append(setting) or len(ran) - 1)
    monkeypatch.setattr(isa, "flags", lambda: {"avx2", "fma", "bmi2"})
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    assert isa.main([]) == 0
    *_, one, two, three = capsys.readouterr().out.splitlines()
    assert one.startswith("x86-64: passed in")
    assert two == "AVX2: left out, it is this processor's own, and `make test` runs it"
    assert isa.main(["AVX2"]) == 1
    assert ran == [isa.SETTINGS["x86-64"], isa.SETTINGS["AVX2"]]
    assert "AVX2: failed in" in capsys.readouterr().out
    assert three == "AVX-512: left out, the processor has no avx512bw, avx512cd, avx512dq, avx512f, avx512vl"
    assert isa.main(["AVX-512"]) == 0
    assert isa.main(["SVE"]) == 2
    assert "no setting SVE; there are x86-64, AVX2, AVX-512" in capsys.readouterr().err
