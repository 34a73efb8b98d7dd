"""SIGKILL to ranks whose weights are split: one kill of each kind. ``make test-kills`` does ten, on 2 and 4 ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kills import KINDS, Unbroken, killed, unbroken
from pages import DOCS
from runs import image_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the images."""
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> Unbroken:
    """The run that nobody kills."""
    return unbroken(tmp_path_factory.mktemp("unbroken") / "out", data, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_ranks_resume_to_the_same_bits(tmp_path: Path, data: list[str], wanted: Unbroken, kind: str) -> None:
    found = killed(tmp_path, data, 2, kind, 1, wanted)
    assert (found.kills, found.equal) == (1, 1)
    assert found.lost_peers == 1 or not kind.startswith("a write")


@pytest.mark.slow
def test_writes_of_a_save_are_known(wanted: Unbroken) -> None:
    """Of both ranks: folder, file, half of it written, fsync; of rank 0 the manifest and renaming as well."""
    first, other = (
        [point.split(" ", 1)[0] for point in points if "step-00000006" in point] for points in wanted.points
    )
    assert set(other) == {"os.mkdir", "open", "write", "fsync"}
    assert set(first) >= {"os.mkdir", "open", "write", "fsync", "os.rename"}
    assert any("manifest.json" in point for point in wanted.points[0])


def test_recorded_kills_all_ended_with_the_same_bits() -> None:
    """What ``make test-kills`` has written: ten kills of each kind."""
    rows = json.loads((DOCS / "results" / "kills.json").read_text())["runs"]
    assert {row["kind"] for row in rows if row["ranks"] == 2} == set(KINDS)
    assert all(row["equal"] == row["kills"] == 10 for row in rows)
