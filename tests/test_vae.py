"""A trained VAE in all its uses: reconstruction, cache, training, samples, scores; and one from the hub."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import succeeds
from hub_stand_in import COMMIT, serving
from runs import environment
from udit.data.codec import encode
from udit.data.codec_config import VAECodec
from udit.data.latents import read_manifest
from udit.data.sources import digits, split
from udit.data.vae import VAE_WEIGHTS, complete
from udit.store import read_run_config
from vaes import tiny_vae, trained_vae

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ["model.width=16", "model.depths=[1]", "training.batch_size=32", "training.save_every=1000", "sampling.steps=8"]


def error(images: torch.Tensor, others: torch.Tensor) -> float:
    """Root of the mean squared difference, in steps of 255."""
    return float((images.float() - others.float()).square().mean().sqrt())


def test_trained_vae_serves_cache_training_samples_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = digits()
    parts = split(source.labels, source.names, 0.35, 0.15)
    known = torch.from_numpy(source.pixels[np.concatenate([parts.train, parts.judge])])
    unseen = torch.from_numpy(source.pixels[parts.test])
    vae = trained_vae(tmp_path / "vae", known)
    codec = complete(VAECodec(source=str(vae))).build()
    mean_digit = known.float().mean(0, keepdim=True).expand(len(unseen), -1, -1, -1)
    found = error(codec.decode(encode(codec, unseen)), unseen)
    assert found < 20, f"of 32 numbers for 64 pixels; it is {found:.1f}"
    assert error(mean_digit, unseen) > 60, "that of a VAE that has learned nothing but the mean"

    cache, out = tmp_path / "cache", tmp_path / "run"
    words = ["codec.kind=vae", f"codec.source={vae}"]
    succeeds(capsys, "encode", "digits", *words, "--out", str(cache), "--measure", "--no-progress")
    manifest = read_manifest(cache)
    latent = ["train", "digits", *SMALL, "training.steps=40", f"latents={cache}", f"out={out}", "--no-progress"]
    succeeds(capsys, *latent)
    run = read_run_config(out)
    assert (run.model.in_channels, run.model.size, run.codec.shift) == (2, (4, 4), manifest.mean)

    succeeds(capsys, "sample", str(out), "--n", "4", "--output", "npz", "--out", str(tmp_path / "s"), "--no-progress")
    drawn = np.load(tmp_path / "s" / "samples.npz")["arr_0"]
    assert (drawn.shape, drawn.dtype) == ((4, 8, 8, 1), np.uint8)
    said = succeeds(capsys, "eval", str(out), "--n", "100", "--no-progress")
    scored = np.load(out / "evaluation" / "samples.npz")["arr_0"]
    assert scored.shape == (100, 8, 8, 1)
    assert 20 < scored.mean() < 130, "pictures of digits are dark; those of other latents are not"
    assert f"in {out / 'evaluation'}/ are also metrics.json" in said
    assert json.loads((out / "evaluation" / "metrics.json").read_text())


CALL = """
import hashlib, sys
import torch
from udit.data.codec_config import VAECodec
from udit.data.codec import encode
from udit.data.vae import complete
codec = complete(VAECodec(source="o/m")).build()
pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
sys.stdout.write(codec.config.sha256 + " " + hashlib.sha256(encode(codec, pixels).numpy().tobytes()).hexdigest())
"""


def test_vae_of_the_hub_is_downloaded_once_and_encodes_as_the_folder_does(tmp_path: Path) -> None:
    folder = tiny_vae(tmp_path / "vae")
    files = {name: (folder / name).read_bytes() for name in ("config.json", VAE_WEIGHTS)}
    with serving({**files, "diffusion_pytorch_model.bin": b"a pickle"}) as hub:
        ours = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1")
        called = [
            subprocess.run([sys.executable, "-c", CALL], env=ours, capture_output=True, text=True, check=True).stdout
            for _ in range(2)
        ]
        assert sorted(hub.downloads()) == sorted(files), "each once, and never the pickle"
    codec = complete(VAECodec(source=str(folder))).build()
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    sha256 = hashlib.sha256(encode(codec, pixels).numpy().tobytes()).hexdigest()
    assert called == [f"{codec.config.sha256} {sha256}"] * 2
    assert (tmp_path / "hf" / "hub" / "models--o--m" / "snapshots" / COMMIT / VAE_WEIGHTS).is_file()
