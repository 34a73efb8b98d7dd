"""A judge is trained once for a data set, and never taken for the judge of another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from conftest import DATA
from udit.data.sources import InMemory, Parts, digits, split
from udit.evaluation import judges
from udit.evaluation.judge import Judge
from udit.evaluation.judges import judge_of, steps_for
from udit.evaluation.trust import Trust

SOURCE = digits()
PARTS = split(SOURCE.labels, SOURCE.names, 0.35, 0.15)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with mock.patch("udit.evaluation.judges.cache_folder", return_value=tmp_path / "cache"):
        yield tmp_path / "cache" / "judges"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps of the judges that are trained."""
    seen: list[int] = []
    train = judges.train_judge

    def counted(*args: object, steps: int, **settings: object) -> Judge:
        seen.append(steps)
        return train(*args, steps=steps, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(judges, "train_judge", counted)
    return seen


def find(path: Path | None, source: InMemory = SOURCE, parts: Parts = PARTS, steps: int = 2, **more: bool) -> Judge:
    return judge_of(source, parts, steps, path, **more)


def contents(path: Path) -> tuple[object, ...]:
    """Of a judge's file; safetensors writes the metadata in any order."""
    judge = Judge.load(path)
    return judge.fingerprint, judge.name, judge.origin, judge.shape, judge.num_classes, judge.trust


def test_runs_on_the_same_data_share_one_training(tmp_path: Path, cache: Path, trainings: list[int]) -> None:
    first, second = tmp_path / "a" / "judge.safetensors", tmp_path / "b" / "judge.safetensors"
    judge = find(first)
    assert find(second).fingerprint == find(None).fingerprint == find(first).fingerprint == judge.fingerprint
    assert len(trainings) == 1
    [kept] = cache.iterdir()
    assert contents(first) == contents(second) == contents(kept)


def test_other_data_part_steps_or_mirroring_have_another_judge(cache: Path, trainings: list[int]) -> None:
    find(None)
    find(None, InMemory(255 - SOURCE.pixels, SOURCE.labels, SOURCE.names))
    find(None, parts=replace(PARTS, judge=PARTS.judge[::2]))
    find(None, steps=4)
    find(None, mirrored=True)
    assert len(trainings) == len(list(cache.iterdir())) == 5


def test_a_file_under_the_name_of_other_data_is_not_used(cache: Path, trainings: list[int]) -> None:
    find(None)
    [one] = cache.iterdir()
    other = InMemory(255 - SOURCE.pixels, SOURCE.labels, SOURCE.names)
    find(None, other)
    [two] = set(cache.iterdir()) - {one}
    shutil.copy(one, two)
    assert find(None, other).origin != find(None).origin
    assert len(trainings) == 3


@pytest.mark.parametrize("damage", ["torn", "changed"])
def test_a_damaged_file_in_the_cache_is_replaced(
    damage: str, cache: Path, trainings: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    find(None)
    [kept] = cache.iterdir()
    whole, before = kept.read_bytes(), contents(kept)
    kept.write_bytes(whole[:1000] if damage == "torn" else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    find(None)
    assert "training a new judge" in caplog.text
    assert len(trainings) == 2
    assert contents(kept) == before


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_bytes(b"a file where the folder would be")
    find(tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.safetensors").is_file()


def test_the_run_s_own_file_is_enough(tmp_path: Path, cache: Path, trainings: list[int]) -> None:
    path = tmp_path / "judge.safetensors"
    find(path)
    shutil.rmtree(cache)
    before = path.stat().st_mtime_ns
    find(path)
    assert len(trainings) == 1
    assert path.stat().st_mtime_ns == before


@pytest.mark.usefixtures("cache")
def test_accuracy_on_test_images_is_asked_once_for_each_test_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "judge.safetensors", []
    of = Trust.of
    monkeypatch.setattr(Trust, "of", lambda *answers: asked.append(len(answers[0])) or of(*answers))
    judge = find(path)
    right = int((judge.predict(SOURCE.pixels[PARTS.test]) == SOURCE.labels[PARTS.test]).sum())
    assert judge.trust is not None
    assert (judge.trust.right, judge.trust.count) == (right, len(PARTS.test))
    assert Judge.load(path).trust == find(path).trust == find(None).trust == judge.trust
    assert asked == [len(PARTS.test)]
    fewer = replace(PARTS, test=PARTS.test[:50])
    assert find(path, parts=fewer).trust == Judge.load(path).trust != judge.trust
    assert asked == [len(PARTS.test), 50]


@pytest.mark.usefixtures("cache")
def test_a_judge_of_the_former_version_stays_beside_the_new_one(tmp_path: Path, trainings: list[int]) -> None:
    path = tmp_path / "judge.safetensors"
    shutil.copy(DATA / "judge-2.safetensors", path)
    assert find(path).name == Judge.load(path).name == "udit-judge-3"
    assert len(trainings) == 1
    assert contents(tmp_path / "udit-judge-2.safetensors") == contents(DATA / "judge-2.safetensors")
    find(path)
    assert len(trainings) == 1


def test_steps_grow_with_the_images_within_limits() -> None:
    counts = (2, 629, 1000, 6000, 12_000, 10**6)
    assert [steps_for(600, count) for count in counts] == [400, 400, 600, 3600, 4800, 4800]
    assert steps_for(1, 2) == 1
    assert np.diff([steps_for(7, count) for count in range(1, 20_000, 100)]).min() >= 0
