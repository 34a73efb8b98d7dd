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


def images(folder: Path, classes: int = 2) -> str:
    """Writes images in folders named by numbers; returns the name of the folder that holds these."""
    udit(folder, "sample", MODEL, "--n", "20", "--out", "drawn", "--no-progress")
    for path in sorted((folder / "drawn").glob("[0-9]*.png")):
        place = folder / "images" / str(int(path.stem) % classes)
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


def formats(folder: Path) -> None:
    """A shard of the package webdataset, an LMDB and a HEIC image."""
    import lmdb
    import pillow_heif
    import webdataset
    from PIL import Image

    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as shard:
        for path in sorted((folder / images(folder)).rglob("*.png")):
            shard.write({"__key__": path.stem, "png": path.read_bytes(), "cls": int(path.parent.name[-1])})
    udit(folder, "data", "check", "shard-000000.tar")
    with lmdb.open(str(folder / "lmdb")) as database, database.begin(write=True) as write:
        for path in sorted((folder / "images").rglob("*.png")):
            write.put(path.stem.encode(), path.read_bytes())
    udit(folder, "data", "check", "lmdb")
    pillow_heif.register_heif_opener()
    (folder / "heic").mkdir()
    Image.effect_noise((32, 32), 50).convert("RGB").save(folder / "heic" / "a.heic")
    udit(folder, "data", "check", "heic")


def video(folder: Path) -> None:
    """An MP4 that PyAV writes, read as a clip."""
    import torch

    from udit.clips import save_mp4
    from udit.data.config import ClipFolderData

    (folder / "clips").mkdir()
    save_mp4(torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8), folder / "clips" / "a.mp4", {})
    assert ClipFolderData(root=folder / "clips", frames=4, size=32).build().image(0).shape == (3, 4, 32, 32)


def ode(folder: Path) -> None:
    """dopri5 on the demo's flow."""
    import torch

    import udit
    from udit.diffusion.adaptive import Dopri5

    denoiser = udit.load(MODEL).denoiser
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in udit.sample(denoiser, noise, y=torch.tensor([3, 7]), sampler=Dopri5(), steps=1):
        assert step.x.isfinite().all()


def adapters(folder: Path) -> None:
    """A low-rank adapter of the demo's model."""
    data = (f"data.root={images(folder, 10)}", "data.size=8", "data.channels=1")
    udit(folder, "train", "folder", f"init_from={MODEL}", *data, "training.adapter={}", "out=run", *SHORT)
    assert (folder / "run" / "adapter" / "adapter_config.json").is_file()


def align(folder: Path) -> None:
    """A vision model's features beside the latents."""
    data = (f"data.root={images(folder)}", "data.size=8")
    udit(folder, "encode", "folder", *data, "--teacher", "efficientnet-lite0", "--out", "cache", "--no-progress")


def text(folder: Path) -> None:
    """A run whose captions a language model of random weights reads, and an image of a prompt."""
    import accelerate
    import gguf
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM

    assert accelerate and gguf  # transformers reads a .gguf with them; none is at hand here
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4, bos_token_id=0, eos_token_id=None, **sizes)).save_pretrained(
        folder / "lm"
    )
    words = {"<s>": 0, "<unk>": 1, "noise": 2, "more": 3}
    Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(folder / "lm" / "tokenizer.json"))
    facts = '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}'
    (folder / "lm" / "tokenizer_config.json").write_text(facts)
    named = images(folder, 1) + "/0"
    for path in sorted((folder / named).glob("*.png")):
        path.with_suffix(".txt").write_text("noise")
    model = ("model=U-DiT-text-S/2", "model.width=32", "model.heads=2", "model.depth=2", "text.source=lm")
    data = (f"data.root={named}", "data.captions=files", "data.size=8")
    udit(folder, "train", "folder", *data, *model, "out=run", *SHORT)
    udit(folder, "sample", "run", "--prompt", "noise", "--n", "2", "--out", "x", "--no-progress")


USES: dict[str, Callable[[Path], None]] = {
    "train": train,
    "metrics": metrics,
    "hub": hub,
    "export": export,
    "serve": serve,
    "studio": studio,
    "optimizers": optimizers,
    "tracking": tracking,
    "formats": formats,
    "video": video,
    "ode": ode,
    "adapters": adapters,
    "align": align,
    "text": text,
}

if __name__ == "__main__":
    USES[sys.argv[1]](Path(sys.argv[2]))
