"""Folders of images are listed in one order, and damaged files are named before training starts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from conftest import succeeds
from image_files import folder, noise
from udit.data import encoded, verify
from udit.data.config import FolderData
from udit.data.folder import class_names
from udit.errors import UserError
from udit.run.recipes import load_run


def test_class_names_are_sorted_and_skip_the_hidden(tmp_path: Path) -> None:
    folder(tmp_path, dog=1, cat=1)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("no class")
    assert class_names(tmp_path) == ["cat", "dog"]


def test_class_names_refuse_what_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.*no folder"):
        class_names(tmp_path / "absent")
    with pytest.raises(UserError, match="no class folders"):
        class_names(tmp_path)
    folder(tmp_path, cat=1, dog=0)
    (tmp_path / "dog" / "notes.txt").write_text("")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"a picture")
    with pytest.raises(UserError, match=r"dog' holds no PNG.*remove it"):
        class_names(tmp_path)


def test_folder_lists_images_of_any_depth_with_labels(tmp_path: Path) -> None:
    folder(tmp_path, b=2, a=1)
    (tmp_path / "a" / "more").mkdir()
    noise(9, 9).save(tmp_path / "a" / "more" / "x.JPEG")
    source = FolderData(root=tmp_path, size=8).build()
    assert list(source.names) == ["a/0.png", "a/more/x.JPEG", "b/0.png", "b/1.png"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.image(1).shape == (3, 8, 8)


def test_files_of_other_kinds_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, a=1)
    noise(9, 9).save(tmp_path / "a" / "x.bmp")
    FolderData(root=tmp_path, size=8).build()
    assert "1 file," in caplog.text
    assert "skipped: unsupported extension" in caplog.text
    assert "x.bmp" in caplog.text


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    first = FolderData(root=folder(tmp_path, a=2), size=8).build().fingerprint
    assert FolderData(root=tmp_path, size=8).build().fingerprint == first
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    second = FolderData(root=tmp_path, size=8).build().fingerprint
    noise(30, 30).save(tmp_path / "a" / "2.png")
    assert len({first, second, FolderData(root=tmp_path, size=8).build().fingerprint}) == 3


def test_verify_finds_every_bad_image_and_names_the_first(tmp_path: Path) -> None:
    folder(tmp_path, a=3, b=3)
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a/2.png' cannot be read .*2 of 6 images are unusable"):
        FolderData(root=tmp_path, size=8).build().verify()


def test_verified_images_stay_in_memory_as_they_were(tmp_path: Path) -> None:
    source = FolderData(root=folder(tmp_path, a=3), size=8).build()
    before = [source.image(i).copy() for i in range(3)]
    source.verify()
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    assert all(np.array_equal(source.image(i), before[i]) for i in range(3))


def test_verify_keeps_nothing_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_MEMORY", 3 * 3 * 8 * 8 - 1)
    source = FolderData(root=folder(tmp_path, a=3), size=8).build()
    source.verify()
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1.png"):
        source.image(1)


@pytest.fixture
def too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three images, none of which may be kept in memory."""
    monkeypatch.setattr(verify, "MAX_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder(tmp_path / "data", a=3)


def test_what_was_verified_is_not_decoded_again_until_it_is_touched(
    too_large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda path, *a, **k: (decoded.append(path.name), decode(path, *a, **k))[1])
    FolderData(root=too_large, size=8).build().verify()
    assert sorted(decoded) == ["0.png", "1.png", "2.png"]
    FolderData(root=too_large, size=8).build().verify()
    assert len(decoded) == 3
    (too_large / "a" / "1.png").touch()
    FolderData(root=too_large, size=8).build().verify()
    assert len(decoded) == 6


def test_what_failed_is_decoded_again(too_large: Path) -> None:
    (too_large / "a" / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(UserError, match=r"a/1.png"):
            FolderData(root=too_large, size=8).build().verify()


def test_headers_alone_are_read_where_that_is_asked_for(too_large: Path) -> None:
    path = too_large / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:-100])
    source = FolderData(root=too_large, size=8, verify="headers").build()
    source.verify()
    with pytest.raises(UserError, match=r"1.png' cannot be read"):
        source.image(1)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1.png' cannot be read"):
        FolderData(root=too_large, size=8, verify="headers").build().verify()


def test_cache_that_cannot_be_written_is_no_error(too_large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(too_large / "a" / "0.png"))
    FolderData(root=too_large, size=8).build().verify()


# -- images without labels -----------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twelve images in one folder."""
    for i in range(12):
        noise(10, 12, seed=i).save(tmp_path / f"{i:02}.png")
    (tmp_path / ".thumbnails").mkdir()
    return tmp_path


def test_images_of_a_folder_without_class_folders_have_no_labels(flat: Path) -> None:
    source = FolderData(root=flat, size=8).build()
    assert class_names(flat) == []
    assert list(source.names) == [f"{i:02}.png" for i in range(12)]
    assert set(source.labels.tolist()) == {0}
    source.verify()
    assert source.image(3).shape == (3, 8, 8)


def test_model_of_images_without_labels_is_unconditional_and_says_so(
    flat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = load_run("folder", [f"data.root={flat}", "data.size=8"])
    assert (run.model.num_classes, run.id2label, run.sampling.guidance, run.training.label_dropout) == (0, (), 1, 0)
    assert (
        "have no labels, as they lie in no class folders: the model is unconditional; sampling.guidance is 1, and"
        in (caplog.text)
    )
    with pytest.raises(UserError, match=r"sampling\.guidance is 3 and the model has no null label"):
        load_run("folder", [f"data.root={flat}", "data.size=8", "sampling.guidance=3"])


def test_images_without_labels_are_checked_encoded_and_trained_on(
    flat: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    said = succeeds(capsys, "data", "check", str(flat), "--size", "8")
    assert re.search(r"^\(no labels\) +12 +0$", said, re.MULTILINE)
    out = tmp_path_factory.mktemp("flat")
    words = [f"data.root={flat}", "data.size=8", "model.width=8", "model.heads=1", "model.depths=[1]"]
    succeeds(capsys, "encode", "folder", *words, "codec=space-to-depth", "--out", str(out / "cache"), "--no-progress")
    small = ["training.steps=1", "training.batch_size=4", "sampling.steps=1", f"out={out / 'run'}", "--no-progress"]
    said = succeeds(capsys, "train", "folder", f"latents={out / 'cache'}", *words[2:], *small)
    assert said.endswith(f"next: udit sample {out / 'run'}\n"), "there is no judge for a model without classes"
