"""Every format is read, checked, trained on, resumed exactly and encoded, and a bad file is named in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ErrorOf, succeeds
from formats import CLASSES, COUNT, FORMATS, SIDE, pixels
from runs import environment, small_run, state_hash, train
from udit.cli import main
from udit.data.batches import batches
from udit.data.sources import parts_of
from udit.training.encoding import encode

ROOT = Path(__file__).parents[1]
SIZES = [f"data.size={SIDE}", "data.channels=1"]
"""Of the image files; an .npz file has its own."""
SLOW = ("avif", "heic", "mpo", "tiff", "webdataset", "lmdb")
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FORMATS]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(name: str, root: Path) -> list[str]:
    """Writes the files of a format; the overrides that read them."""
    root.mkdir()
    words = FORMATS[name].write(root)
    return words if name == "npz" else [*words, *SIZES]


def place_of(words: list[str]) -> list[str]:
    """What `udit data check` takes: the path, and the keys that it does not say."""
    keys = dict(word.split("=", 1) for word in words)
    path = keys.pop("data.root", None) or keys.pop("data.path")
    given = [f"{key}={value}" for key, value in keys.items() if key in ("data.labels", "data.label_by", "data.deep")]
    return [path, *given, *([] if "npz" in words[0] else [f"--size={SIDE}"])]


@pytest.mark.parametrize("name", EACH)
def test_images_and_labels_come_back_as_they_were_written(name: str, tmp_path: Path) -> None:
    run = small_run(tmp_path / "out", *written(name, tmp_path / "data"))
    source = run.data.build()
    source.verify()
    assert len(source) == len(set(source.names)) == COUNT
    labelled = name != "json-folder"
    assert len(run.id2label) == (CLASSES if labelled else 0)
    for k, image in enumerate(source.names):
        digits = re.search(r"(\d+|[0-9a-f]{40})(\.\w+)?$", image)
        assert digits is not None
        i = k if FORMATS[name].whole else int(digits[1], 16 if name == "lmdb" else 10)
        assert source.labels[k] == (i % CLASSES if labelled else 0)
        if name in ("mpo", "avif", "heic"):  # which lose something
            assert np.abs(source.image(k)[0].astype(int) - pixels(i)).mean() < 12
        elif name == "tiff16":
            assert source.image(k)[0] == pytest.approx((pixels(i) * 256.0 + i) * (255 / 65535), abs=1e-4)
        else:
            assert np.array_equal(source.image(k)[0], pixels(i))
    parts = parts_of(source, run.data)
    assert len(parts.train) + len(parts.judge) + len(parts.test) == COUNT


@pytest.mark.parametrize("name", EACH)
def test_check_counts_images_by_the_path_alone(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = succeeds(capsys, "data", "check", *place_of(written(name, tmp_path / "data")))
    assert re.search(rf"^all +{COUNT} +0\n", said, re.MULTILINE)
    assert len(re.findall(rf"^.+ +{COUNT // CLASSES} +0$", said, re.MULTILINE)) == (
        0 if name == "json-folder" else CLASSES
    )


@pytest.mark.parametrize("name", EACH)
def test_bad_file_is_named_in_one_line_by_check_and_by_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    words = written(name, tmp_path / "data")
    wanted = FORMATS[name].damage(tmp_path / "data").format(root=tmp_path / "data")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", *place_of(words)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert [line for line in lines if wanted in line] == lines[:1]
    assert lines[-1] == "1 bad"
    assert wanted in error_of("train", str(ROOT / "tests/data/tiny.yaml"), f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tar", "zip", "npz", pytest.param("lmdb", marks=pytest.mark.slow)])
def test_workers_read_what_the_trainer_reads(name: str, tmp_path: Path) -> None:
    """What is open in the trainer is another process's in a worker, after the trainer has read from it."""
    source = small_run(tmp_path / "out", *written(name, tmp_path / "data")).data.build()
    how = {"seed": 0, "start": 0, "stop": 3, "global_batch": 6}
    own = [batch.x for (batch,) in batches(source, np.arange(COUNT), **how)]
    read = [batch.x for (batch,) in batches(source, np.arange(COUNT), workers=2, **how)]
    assert all(torch.equal(a, b) for a, b in zip(own, read, strict=True))


def resumes_exactly(name: str, tmp_path: Path) -> None:
    words = written(name, tmp_path / "data")
    for out, steps in (("whole", (4,)), ("parts", (2, 4))):
        for last in steps:
            train(tmp_path / out, f"training.steps={last}", *words)
    assert state_hash(tmp_path / "whole") == state_hash(tmp_path / "parts")


def test_training_on_tar_shards_resumes_to_the_same_bits(tmp_path: Path) -> None:
    resumes_exactly("tar", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_training_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    resumes_exactly(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_latent_cache_holds_the_images(name: str, tmp_path: Path) -> None:
    words = written(name, tmp_path / "data")
    run = small_run(tmp_path / "out", *words)
    encode(run, tmp_path / "latents", progress=False)
    cached, source = small_run(tmp_path / "out", *words, f"latents={tmp_path / 'latents'}").source(), run.data.build()
    cached.verify()
    assert all(np.array_equal(cached.image(i), source.image(i)) for i in range(COUNT))
    assert cached.labels.tolist() == source.labels.tolist()


def test_table_of_the_documentation_has_every_format_and_who_writes_it() -> None:
    lines = (ROOT / "docs/formats.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "written by" not in line]
    wanted = [f"| {each.row} | {each.by} | yes | yes | yes | yes | yes | yes |" for each in FORMATS.values()]
    assert [row for row in rows if row.endswith("| yes | yes | yes | yes | yes | yes |")] == wanted


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_with_200_000_samples_in_shards(tmp_path: Path) -> None:
    given = environment(MALLOC_MMAP_THRESHOLD_="131072")
    script = [sys.executable, str(ROOT / "benchmarks/shards.py"), "--every", "290"]
    words = [*script, str(tmp_path), "training.steps=1200", "model.width=8", "model.depths=[1]"]
    ended = subprocess.run(words, env=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    facts = json.loads(ended.stdout.splitlines()[-1])
    assert facts["again"] < facts["listed"] / 5  # the index is kept
    first, *later = facts["memory_kb"]
    assert len(later) == 3
    # Processes write, ever less, to pages that a fork left them to share: 6,000 steps end 17 MB above the first look.
    assert max(later) - first < 12_000, "300 bytes of each image that was read"
