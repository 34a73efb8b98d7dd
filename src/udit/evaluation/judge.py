"""The judge: a small classifier of the data set's own classes, whose features and predictions score generated images.

It is trained on the judge part of the split, which the generator never sees. Its features are not Inception's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from udit import rng
from udit.data.sources import Labels, Pixels
from udit.errors import UserError
from udit.evaluation.fidelity import Features
from udit.evaluation.image_set import ImageSet
from udit.files import whole_file
from udit.nn.init import constant, fill, xavier_flat
from udit.progress import progress_bar

NAME = "udit-judge-2"
"""Changes with the network or its training; scores of judges of different names must not be compared."""
NUM_FEATURES = 32
MAX_SIDE = 64
"""Larger images are averaged down to this side before they are classified."""
BATCH = 64
MAX_LR = 6e-3
WARMUP = 20
EMA_DECAY = 0.99
SMOOTHING = 0.1
MAX_SHIFT = 0.15
"""Of half a side."""
MAX_TURN = 0.3
"""Radians."""
MAX_ZOOM = 0.15


class JudgeNet(nn.Module):
    """Convolutions to a map of about 16x16 and down to 4x4, its quadrants' means, 32 features, class logits."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        """Takes the images' channels and longer side, and the number of classes."""
        super().__init__()
        patch = max(1, side // 16)
        strides = [patch]
        while side / math.prod(strides) > 4:
            strides.append(2)
        strides.append(1)
        reach = [patch] + [1] * (len(strides) - 1)
        widths = [channels, *(min(16 * 2**i, 64) for i in range(len(strides)))]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 2 * r + 1, stride, padding=r)
            for (a, b), stride, r in zip(pairwise(widths), strides, reach, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.features = nn.Linear(4 * widths[-1], NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features [B, 32], at least 0, of x [B, C, H, W] in [-1, 1]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        # the mean of each quadrant: a single mean would be the same for a 6 and a 9, which have the same strokes
        return F.relu(self.features(F.adaptive_avg_pool2d(x, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of x [B, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self.embed(x))
        return logits


class Judge:
    """A trained classifier of images."""

    def __init__(self, net: JudgeNet, shape: tuple[int, int, int], num_classes: int, origin: str) -> None:
        """Takes the network, the (C, H, W) of its images, and what it was trained on."""
        self.net = net
        self.shape = shape
        self.num_classes = num_classes
        self.origin = origin

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights, in hex."""
        digest = hashlib.sha256()
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def features(self, images: Pixels) -> NDArray[np.float64]:
        """Features of the last layer before the logits, [N, 32], of images [N, C, H, W]."""
        return self._run(self.net.embed, images).double().numpy()

    def logits(self, images: Pixels) -> NDArray[np.float64]:
        """Logits [N, classes] of images [N, C, H, W]."""
        return self._run(self.net, images).double().numpy()

    def predict(self, images: Pixels) -> Labels:
        """The most likely class of each image, [N], of images [N, C, H, W]."""
        return self._run(self.net, images).argmax(1).numpy()

    @torch.no_grad()
    def _run(self, function: Callable[[Tensor], Tensor], images: Pixels) -> Tensor:
        with one_thread():
            return torch.cat([function(_as_input(images[i : i + 256])) for i in range(0, len(images), 256)])

    def save(self, path: Path) -> None:
        """Writes weights and metadata as safetensors, completely or not at all."""
        facts = {
            "name": NAME,
            "shape": "x".join(map(str, self.shape)),
            "classes": str(self.num_classes),
            "origin": self.origin,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(self.net.state_dict(), facts))

    @classmethod
    def load(cls, path: Path) -> Judge:
        """The judge in a file that ``save`` wrote.

        Raises:
            UserError: the file is missing, damaged, or of another version.
        """
        if not path.is_file():
            raise UserError(f"there is no judge {str(path)!r}; `udit eval RUN` trains the one of a run")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if facts["name"] != NAME:
                raise ValueError(f"it is {facts['name']}, not {NAME}")
            channels, height, width = (int(n) for n in facts["shape"].split("x"))
            num_classes, origin = int(facts["classes"]), facts["origin"]
            net = _net((channels, height, width), num_classes)
            net.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            detail = " ".join(str(error).split())[:120]
            raise UserError(
                f"judge {str(path)!r} cannot be used ({detail}); remove it, and a new one is trained"
            ) from None
        return cls(net, (channels, height, width), num_classes, origin)


def train_judge(
    images: Pixels | ImageSet, labels: Labels, num_classes: int, *, steps: int, seed: int, origin: str = ""
) -> Judge:
    """Trains a judge on the CPU, on one thread; the same arguments give the same bits.

    AdamW with a cosine schedule, label smoothing, averaged weights; images are slightly shifted, rotated and zoomed.

    Args:
        images: uint8 [N, C, H, W], or a set that is read 64 images at a time.
        labels: [N], each below ``num_classes``.
        num_classes: number of classes.
        steps: training steps, of 64 images each.
        seed: of weights, batches and augmentation.
        origin: a description of the training data, kept with the weights.

    Raises:
        UserError: a class without an image.
    """
    data = ImageSet.of(images).kept()
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise UserError(f"the judge has no image of class {missing[0]}; raise data.judge_share or add images")
    shape = data.shape
    y = torch.from_numpy(labels)
    with torch.device("meta"):
        net = _net(shape, num_classes)
    fill(net, {r"norms.*weight": constant(1), "bias": constant(0), "": xavier_flat}, seed)
    parameters = list(net.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=MAX_LR, weight_decay=0.02)
    with one_thread(), progress_bar(steps, "judge", "step", leave=False) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = MAX_LR * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            generator = rng.generator(seed, "judge", step)
            picked = torch.randint(len(y), (BATCH,), generator=generator)
            x = augment(_as_input(data.read(picked.numpy())), generator)
            loss = F.cross_entropy(net(x), y[picked], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1 - decay)
            bar.update()
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)
    return Judge(net, shape, num_classes, origin)


def _net(shape: tuple[int, int, int], num_classes: int) -> JudgeNet:
    return JudgeNet(shape[0], min(max(shape[1:]), MAX_SIDE), num_classes)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """x [B, C, H, W], each image slightly shifted, rotated and zoomed; the border is repeated outwards."""
    turn, zoom, right, down = torch.rand(4, len(x), generator=generator) * 2 - 1
    cos, sin = (MAX_TURN * turn).cos() * (1 + MAX_ZOOM * zoom), (MAX_TURN * turn).sin() * (1 + MAX_ZOOM * zoom)
    rows = [torch.stack([cos, -sin, MAX_SHIFT * right], 1), torch.stack([sin, cos, MAX_SHIFT * down], 1)]
    places = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


def _as_input(images: Pixels) -> Tensor:
    """float32 in [-1, 1], averaged down to a longer side of at most ``MAX_SIDE``."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / 127.5 - 1
    longer = max(x.shape[2:])
    if longer <= MAX_SIDE:
        return x
    height, width = (max(1, round(side * MAX_SIDE / longer)) for side in x.shape[2:])
    return F.interpolate(x, (height, width), mode="area")


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the same order on any number of cores; networks this small are not slower on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class JudgeFeatures:
    """A judge as an extractor; its numbers can be compared on its own data set only."""

    name = f"{NAME}, not Inception"

    def __init__(self, judge: Judge) -> None:
        """Takes the trained judge."""
        self.judge = judge
        self.sha256 = judge.fingerprint

    def __call__(self, images: Pixels) -> Features:
        """Features [N, 32] and class logits.

        Raises:
            UserError: images of another shape than the judge was trained on.
        """
        if images.shape[1:] != self.judge.shape:
            raise UserError(
                f"images are {list(images.shape[1:])} and the judge knows {list(self.judge.shape)}; score them with "
                "--features inception, or with the judge of their own data"
            )
        return Features(self.judge.features(images), None, self.judge.logits(images))
