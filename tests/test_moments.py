"""Latents that EDM2 encoded train a model as a latent cache of the same images does."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ErrorOf, succeeds
from runs import RECIPE, image_folder, metrics, small_run, state_hash, train
from udit.data.config import DatasetJsonData
from udit.data.describe import describe
from udit.data.moments import Moments
from udit.data.sources import RawSource
from udit.errors import UserError
from udit.run.config import Run
from udit.training.encoding import encode
from vaes import tiny_vae


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Encoded:
    """Images, a VAE, and the zip that EDM2's program would make of them."""

    def __init__(self, root: Path) -> None:
        self.zip = root / "latents.zip"
        self.codec = ["codec.kind=vae", f"codec.source={tiny_vae(root / 'vae', 3)}", "codec.posterior=mode"]
        self.images = [*image_folder(root / "images", 9), "data.channels=3", "data.flip=false", *self.codec]
        run = small_run(root / "unused", *self.images)
        source, codec = run.data.build(), run.codec.build()
        with zipfile.ZipFile(self.zip, "w") as archive:
            labels = []
            for i in range(len(source)):
                raw = codec.raw(torch.from_numpy(source.image(i).copy())[None])[0].numpy()
                mean, variance = np.split(raw, 2)
                stream = io.BytesIO()
                np.save(stream, np.concatenate([mean, np.exp(variance / 2)]))
                labels.append([f"{i // 5:05}/img-mean-std-{i:08}.npy", int(source.labels[i])])
                archive.writestr(str(labels[-1][0]), stream.getvalue())
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        self.words = ["data.kind=dataset-json", f"data.root={self.zip}", "data.holds=moments", "data.factor=2"]

    def run(self, out: Path, *more: str) -> Run:
        return small_run(out, *self.words, *self.codec, *more)


@pytest.fixture
def encoded(tmp_path: Path) -> Encoded:
    return Encoded(tmp_path)


def test_moments_are_the_raw_latents_of_the_images(
    encoded: Encoded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = encoded.run(tmp_path / "out").data.build()
    assert isinstance(source, Moments)
    assert isinstance(source, RawSource)
    source.verify()
    cache = small_run(tmp_path / "out", *encoded.images)
    encode(cache, tmp_path / "latents", progress=False, dtype="float32")
    cached = small_run(tmp_path / "out", *encoded.images, f"latents={tmp_path / 'latents'}").source()
    assert len(source) == len(cached) == 18
    for i in range(len(source)):
        # exp, the file's float32, and log: a few roundings of the variance's exponent, which is of order 1
        np.testing.assert_allclose(source.image(i), cached.image(i), rtol=1e-5, atol=1e-5)
    said = succeeds(capsys, "data", "check", str(encoded.zip), "data.holds=moments", "data.factor=2")
    assert re.search(r"^all +18 +0\n", said, re.MULTILINE)
    info = describe(DatasetJsonData(root=encoded.zip, holds="moments", factor=2))
    assert (info.channels, info.height, info.width, info.latents) == (3, 8, 8, (2, 4, 4))


def test_training_on_moments_resumes_to_the_same_bits(encoded: Encoded, tmp_path: Path) -> None:
    words = [*encoded.words, *encoded.codec, "data.test_share=0.2"]
    for out, stops in (("whole", (4,)), ("parts", (2, 4))):
        for last in stops:
            train(tmp_path / out, f"training.steps={last}", *words)
    assert state_hash(tmp_path / "whole") == state_hash(tmp_path / "parts")
    assert metrics(tmp_path / "whole")[-1]["val_loss"] is not None


def test_what_does_not_fit_is_one_line(encoded: Encoded, tmp_path: Path, error_of: ErrorOf) -> None:
    out = f"out={tmp_path / 'out'}"
    for words, said in (
        ([*encoded.words, "codec.kind=identity"], "data.holds is moments and codec.kind identity; name their VAE"),
        ([*encoded.words[:3], *encoded.codec], "the latents of the data are 2x4x4 and the VAE's would be 2x16x16"),
        ([*encoded.words, *encoded.codec, "data.flip=true"], "of which none is mirrored; leave flip out"),
        ([*encoded.words[:2], *encoded.codec], "holds .npy files and no images; for EDM2's latents set data.holds"),
    ):
        assert said in error_of("train", RECIPE, out, *words)
    run = encoded.run(tmp_path / "out")
    with pytest.raises(UserError, match="the data are encoded already"):
        encode(run, tmp_path / "again", progress=False)
    with pytest.raises(UserError, match="holds latents and no images to compare"):
        run.data.scored()
    with zipfile.ZipFile(encoded.zip, "a") as archive:
        stream = io.BytesIO()
        np.save(stream, np.full((4, 4, 4), np.nan, np.float32))
        archive.writestr("bad.npy", stream.getvalue())
    with pytest.raises(UserError, match=r"dataset.json of .*latents.zip has no label of 'bad.npy'"):
        encoded.run(tmp_path / "out")


def test_damaged_moments_are_named(encoded: Encoded) -> None:
    with zipfile.ZipFile(encoded.zip) as archive:
        there = {name: archive.read(name) for name in archive.namelist()}
    name = next(iter(there))
    for array, said in (
        (np.zeros((3, 4, 4), np.float32), r"are float32 \[3, 4, 4\]; mean and deviation are float \[2c, h, w\]"),
        (np.full((4, 4, 4), -1.0), "hold NaN, infinity or a deviation below 0"),
        (np.zeros((4, 4, 4), object), "cannot be read as .npy"),
    ):
        stream = io.BytesIO()
        np.save(stream, array)
        with zipfile.ZipFile(encoded.zip, "w") as archive:
            for each, data in (there | {name: stream.getvalue()}).items():
                archive.writestr(each, data)
        with pytest.raises(UserError, match=said) as caught:
            describe(DatasetJsonData(root=encoded.zip, holds="moments", factor=2))
        assert name in str(caught.value)
