"""Files and folders are complete or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from udit.files import TEMPORARY, meant, seal, sweep, unseal, whole_file, whole_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"new")
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_before_it(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with whole_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "model"
    with whole_folder(place) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        assert not place.exists()
    assert names(place.parent) == ["model"]
    assert (place / "inner" / "a").read_text() == "1"


def test_a_folder_replaces_one_only_if_asked(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "old").touch()
    with pytest.raises(OSError), whole_folder(place) as temporary:
        (temporary / "new").touch()
    assert names(place) == ["old"]
    with whole_folder(place, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(place) == ["new"]
    assert names(tmp_path) == ["model"]


def test_an_error_leaves_the_folder_before_it(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with whole_folder(place) as temporary:
        (temporary / "old").touch()
    with pytest.raises(OSError), whole_folder(place, replace=True):
        raise OSError("no space")
    assert names(place) == ["old"]
    assert names(tmp_path) == ["model"]


def test_sweeping_removes_what_killed_writers_left(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}1-a").touch()
    (tmp_path / f"{TEMPORARY}2-b").mkdir()
    (tmp_path / f"{TEMPORARY}2-b" / "c").touch()
    (tmp_path / "kept").touch()
    (tmp_path / ".tmpAb3xYz").write_bytes(b"of safetensors")
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmpfolder").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == [".tmp", ".tmpfolder", "kept"]


def test_a_sealed_text_tells_a_change() -> None:
    text = seal({"step": 3})
    assert unseal(text) == {"step": 3}
    with pytest.raises(ValueError, match="digest"):
        unseal(text.replace("3", "4", 1))
    with pytest.raises(ValueError, match="JSON object"):
        unseal(json.dumps([1]))


def test_run_or_model_of_nearly_the_same_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, mark in (("runs/digits", "run.yaml"), ("runs/notes", "text.txt"), ("models/cats", "config.json")):
        Path(name).mkdir(parents=True)
        Path(name, mark).touch()
    assert meant("runs/digit") == "; did you mean 'runs/digits'?"
    assert meant("digits") == "; did you mean 'runs/digits'?"
    assert meant("models/cat") == "; did you mean 'models/cats'?"
    assert meant(tmp_path / "runs" / "digist") == f"; did you mean '{tmp_path}/runs/digits'?"
    assert meant("runs/note") == meant("nowhere/at/all") == meant("runs/digits") == ""
