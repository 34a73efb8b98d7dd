"""PSNR and SSIM are what their papers say, and `udit encode` prints them of images that were not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import succeeds
from runs import RECIPE, image_folder, small_run
from udit.data.sources import parts_of
from udit.evaluation.distortion import psnr, ssim
from udit.evaluation.fidelity import Features
from udit.reconstruction import reconstruction
from udit.training.encoding import encode
from vaes import tiny_vae

RANDOM = np.random.default_rng(0)
A, B = RANDOM.integers(0, 256, (2, 3, 2, 16, 13), np.uint8)


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    assert psnr(A, A).tolist() == [np.inf] * 3
    off = np.full((1, 1, 4, 4), 100.0)
    assert psnr(off, off + 5)[0] == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(A, B)[1] == pytest.approx(10 * np.log10(255**2 / np.mean((A[1].astype(float) - B[1]) ** 2)))


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel [H, W], window by window (Wang et al. 2004, eqs. 13 to 16)."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11].astype(float) for each in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            top_line = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            found.append(top_line / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(found))


def test_ssim_is_the_mean_over_windows_and_channels() -> None:
    wanted = [np.mean([by_hand(x, y) for x, y in zip(a, b, strict=True)]) for a, b in zip(A, B, strict=True)]
    # variances are differences of float64 means of squares, up to 255**2
    assert ssim(A, B) == pytest.approx(wanted, abs=1e-10)
    assert ssim(A, A) == pytest.approx(1, abs=1e-12)


def test_ssim_of_small_images_has_a_smaller_window() -> None:
    flat = np.full((1, 1, 4, 3), 100.0)
    assert ssim(flat, flat + 20)[0] == pytest.approx((2 * 100 * 120 + 2.55**2) / (100**2 + 120**2 + 2.55**2))


def test_encode_says_what_is_lost_of_held_out_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [*image_folder(tmp_path / "data", 20), "data.test_share=0.2", f"codec.source={tiny_vae(tmp_path / 'vae')}"]
    vae = [*words, "codec.kind=vae"]
    said = succeeds(capsys, "encode", RECIPE, *vae, f"out={tmp_path / 'run'}", "--out", str(tmp_path / "latents"))
    run = small_run(tmp_path / "run", *vae)
    found = reconstruction(run, tmp_path / "latents")
    assert found is not None
    line = said.splitlines()[-2]
    assert line.startswith(f"8 held-out images, decoded: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.4f}; no Fréchet")
    source, codec = run.data.build(), run.codec.build()
    import torch

    part = parts_of(source, run.data).test
    images = np.stack([source.image(int(i)) for i in part])
    with torch.no_grad():
        again = codec.decode(codec.normalise(codec.raw(torch.from_numpy(images)))).numpy()
    # the cache has float16: a step of a decoded pixel now and then
    assert found.psnr == pytest.approx(psnr(images, again).mean(), abs=0.05)
    assert found.ssim == pytest.approx(ssim(images, again).mean(), abs=0.01)


def test_distance_is_of_the_judge_that_is_there_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from udit.evaluation import judges

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [*image_folder(tmp_path / "data", 20), "data.test_share=0.2", "codec.kind=vae"]
    run = small_run(tmp_path / "run", *words, f"codec.source={tiny_vae(tmp_path / 'vae')}", "evaluation.judge_steps=3")
    encode(run, tmp_path / "latents", progress=False)
    source = run.data.build()
    judge = judges.judge_of(source, parts_of(source, run.data), 3, None, mirrored=run.data.mirrored)
    found = reconstruction(run, tmp_path / "latents")
    assert found is not None
    assert found.features is not None
    assert found.features.startswith(judge.described)
    assert found.distance is not None
    assert found.distance > 0


@pytest.mark.slow
def test_data_whose_configuration_says_no_shape_have_a_distance_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brightness:
        name = "brightness"

        def __call__(self, images: np.ndarray) -> Features:
            return Features(images.reshape(len(images), -1)[:, :2].astype(np.float64))

    monkeypatch.setattr("udit.reconstruction._judge", lambda run: Brightness())
    words = ["data.kind=digits", "codec.kind=vae", f"codec.source={tiny_vae(tmp_path / 'vae')}"]
    run = small_run(tmp_path / "run", *words)
    encode(run, tmp_path / "latents", progress=False)
    found = reconstruction(run, tmp_path / "latents")
    assert found is not None
    assert found.features == "brightness"
    assert found.distance is not None


def test_nothing_is_measured_of_pixels_or_without_held_out_images(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", 4)
    run = small_run(tmp_path / "run", *data)
    encode(run, tmp_path / "pixels", progress=False)
    assert reconstruction(run, tmp_path / "pixels") is None
    vae = [*data, "codec.kind=vae", f"codec.source={tiny_vae(tmp_path / 'vae')}", "data.test_share=0"]
    run = small_run(tmp_path / "run", *vae)
    encode(run, tmp_path / "latents", progress=False)
    assert reconstruction(run, tmp_path / "latents") is None
