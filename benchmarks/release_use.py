"""What each extra of udit is for, done once in an environment that has no other: python release_use.py EXTRA FOLDER."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

UDIT = (sys.executable, "-m", "udit")
SHORT = ("training.steps=2", "training.batch_size=4", "sampling.steps=2", "--no-progress")
MODEL = "demo:digits"


def udit(folder: Path, *words: str) -> None:
    """A command of udit's, which must succeed."""
    done = subprocess.run([*UDIT, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"`udit {' '.join(words)}`: {(done.stderr or done.stdout).strip()[-600:]}")


def images(folder: Path) -> str:
    """Writes images of ten classes; returns the name of their folder."""
    udit(folder, "sample", MODEL, "--n", "20", "--out", "drawn", "--no-progress")
    for path in sorted((folder / "drawn").glob("[0-9]*.png")):
        place = folder / "images" / f"class-{int(path.stem.split('-')[0]) % 2}"
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    return "images"


def train(folder: Path) -> None:
    """scikit-learn's digits, TensorBoard and the curves."""
    udit(folder, "train", "digits", "out=run", *SHORT)


def metrics(folder: Path) -> None:
    """FID's network by torch-fidelity, with weights that are noise: its own would be downloaded."""
    from safetensors.torch import save_file
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    unread = mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict")
    with mock.patch("torch.load", return_value={}), unread:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "noise.safetensors")
    named = images(folder)
    scored = ("--features", "inception", "--weights-file", "noise.safetensors", "--reference", named)
    udit(folder, "eval", named, *scored, "--out", "scores.json", "--no-progress")


def hub(folder: Path) -> None:
    """A data set that `datasets` reads."""
    udit(
        folder,
        "train",
        "folder",
        "data.kind=huggingface",
        f"data.path={images(folder)}",
        "data.size=8",
        "out=run",
        *SHORT,
    )


def export(folder: Path) -> None:
    """A graph, and images of it."""
    udit(folder, "export", "onnx", MODEL, "--out", "graph")
    udit(folder, "sample", "graph", "--n", "2", "--out", "x", "--no-progress")


@contextmanager
def listening(folder: Path, *words: str) -> Iterator[str]:
    """The address of a command that serves, until Ctrl-C ends it with exit code 0."""
    process = subprocess.Popen(
        [*UDIT, *words, "--port", "0"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            yield found[0]
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=60)[0]
    if process.returncode:
        sys.exit(f"`udit {' '.join(words)}` ended with {process.returncode}: {(said + rest)[-600:]}")


def serve(folder: Path) -> None:
    """An image over HTTP."""
    with listening(folder, "serve", MODEL) as address:
        asked = urllib.request.Request(
            f"{address}/sample", b'{"seeds": [7], "labels": [3]}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            assert answer.status == 200 and answer.read(1)


def studio(folder: Path) -> None:
    """The page."""
    with listening(folder, "studio", MODEL) as address, urllib.request.urlopen(address) as answer:
        assert answer.status == 200 and b"gradio" in answer.read()


def optimizers(folder: Path) -> None:
    """Both of them."""
    data = f"data.root={images(folder)}"
    for name in ("schedule-free", "adamw-8bit"):
        udit(folder, "train", "folder", data, "data.size=8", f"training.optimizer={name}", f"out={name}", *SHORT)


def tracking(folder: Path) -> None:
    """A run of each, on this machine alone."""
    data = (f"data.root={images(folder)}", "data.size=8", "training.trackers=[wandb, trackio]")
    os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    udit(folder, "train", "folder", *data, "out=run", *SHORT)
    assert list((folder / "run" / "wandb").glob("offline-run-*")) and list((folder / "trackio").iterdir())


USES: dict[str, Callable[[Path], None]] = {
    "train": train,
    "metrics": metrics,
    "hub": hub,
    "export": export,
    "serve": serve,
    "studio": studio,
    "optimizers": optimizers,
    "tracking": tracking,
}

if __name__ == "__main__":
    USES[sys.argv[1]](Path(sys.argv[2]))
