"""The judge: a small classifier of the data set's own classes, whose features and predictions score generated images.

It is trained on the judge part of the split, which the generator never sees. Its features are not Inception's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from udit import rng
from udit.data.order import Order
from udit.data.sources import Labels, Pixels
from udit.errors import UserError
from udit.evaluation.fidelity import Features
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge_network import NAME, NETWORKS, JudgeNet, Network
from udit.evaluation.trust import Trust
from udit.files import whole_file
from udit.nn.init import Fill, constant, fill, xavier_flat
from udit.progress import progress_bar

MAX_SIDE = 64
"""Larger images are averaged down to this side before they are classified."""
BATCH = 64
MAX_LR = 6e-3
WARMUP = 0.2
"""Share of the steps in which the learning rate rises; then it falls to 0."""
WEIGHT_DECAY = 0.1
EMA_DECAY = 0.99
NORM_BATCHES = 32
"""The last ones of the training, which the statistics of batch norms are of."""
SMOOTHING = 0.1
MAX_SHIFT = 0.15
"""Of half a side."""
MAX_TURN = 0.1
"""Radians."""
MAX_ZOOM = 0.1
INITIAL: dict[str, Fill] = {
    r"running_var|\.1\.weight": constant(1),
    r"bias|running_mean|num_batches": constant(0),
    "": xavier_flat,
}
"""Of the weights: ``.1.`` is the norm behind a convolution."""


class Judge:
    """A trained classifier of images."""

    def __init__(
        self, net: Network, shape: tuple[int, int, int], num_classes: int, origin: str, name: str = NAME
    ) -> None:
        """Takes the network, the (C, H, W) of its images, what it was trained on, and its version."""
        self.net = net.to(memory_format=net.LAYOUT).eval()
        self.shape = shape
        self.num_classes = num_classes
        self.origin = origin
        self.name = name
        self.trust: Trust | None = None
        """Its answers on real test images, once it has been asked."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights, in hex."""
        digest = hashlib.sha256()
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def described(self) -> str:
        """Its version and, where it is known, on how many real test images it is right."""
        return self.name if self.trust is None else f"{self.name}, right on {self.trust.described}"

    def features(self, images: Pixels) -> NDArray[np.float64]:
        """Features of the last layer before the logits, [N, 32], of images [N, C, H, W]."""
        return self._run(self.net.embed, images).double().numpy()

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """The last map before the features, float32 [N, C, h, w], of images uint8 [N, C, H, W]."""
        assert isinstance(self.net, JudgeNet), "a judge of this version"
        with one_thread():
            made: Tensor = self.net.body(_as_input(pixels.cpu().numpy()).contiguous(memory_format=self.net.LAYOUT))
        return made.contiguous()

    @torch.no_grad()
    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits [N, classes] of features [N, 32]."""
        with one_thread():
            logits: Tensor = self.net.head(torch.from_numpy(features).float())
        return logits.double().numpy()

    def classes(self, features: NDArray[np.float64]) -> Labels:
        """The most likely class of each image, [N], of their features [N, 32]."""
        return self.logits(features).argmax(1)

    def predict(self, images: Pixels) -> Labels:
        """The most likely class of each image, [N], of images [N, C, H, W]."""
        return self.classes(self.features(images))

    @torch.no_grad()
    def _run(self, function: Callable[[Tensor], Tensor], images: Pixels) -> Tensor:
        with one_thread():
            return torch.cat([function(_as_input(images[i : i + 256])) for i in range(0, len(images), 256)])

    def save(self, path: Path) -> None:
        """Writes weights and metadata as safetensors, completely or not at all.

        Raises:
            OSError: the disk refuses it.
        """
        facts = {
            "name": self.name,
            "shape": "x".join(map(str, self.shape)),
            "classes": str(self.num_classes),
            "origin": self.origin,
        }
        if self.trust is not None:
            facts["trust"] = self.trust.to_json()
        facts["digest"] = _digest(facts, self.fingerprint)
        state = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state, facts))

    @classmethod
    def load(cls, path: Path) -> Judge:
        """The judge in a file that ``save`` wrote, in this version or an older one.

        Raises:
            UserError: the file is missing, damaged, or of an unknown version.
        """
        if not path.is_file():
            raise UserError(f"there is no judge {str(path)!r}; `udit eval RUN` trains the one of a run")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if (name := facts["name"]) not in NETWORKS:
                raise ValueError(f"it is {name}, not {NAME}")
            channels, height, width = (int(n) for n in facts["shape"].split("x"))
            num_classes, origin = int(facts["classes"]), facts["origin"]
            net = _net((channels, height, width), num_classes, name)
            net.load_state_dict(state)
            judge = cls(net, (channels, height, width), num_classes, origin, name)
            digest = facts.pop("digest", None)
            if (digest is None and name == NAME) or digest not in (None, _digest(facts, judge.fingerprint)):
                raise ValueError("it does not match its own digest")  # which older versions did not write
            judge.trust = Trust.from_json(facts["trust"]) if "trust" in facts else None
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            detail = " ".join(str(error).split())[:120]
            raise UserError(
                f"judge {str(path)!r} cannot be used ({detail}); remove it, and a new one is trained"
            ) from None
        return judge


def _digest(facts: dict[str, str], fingerprint: str) -> str:
    """sha256 of what a judge's file says and of its weights' fingerprint, in hex."""
    return hashlib.sha256(json.dumps([facts, fingerprint], sort_keys=True).encode()).hexdigest()


def train_judge(
    images: Pixels | ImageSet,
    labels: Labels,
    num_classes: int,
    *,
    steps: int,
    seed: int,
    mirrored: bool = False,
    origin: str = "",
) -> Judge:
    """Trains a judge on the CPU, on one thread; the same arguments give the same bits.

    AdamW, a learning rate that rises and falls once, label smoothing, averaged weights; images are slightly shifted,
    rotated and zoomed.

    Args:
        images: uint8 [N, C, H, W], or a set that is read 64 images at a time.
        labels: [N], each below ``num_classes``.
        num_classes: number of classes.
        steps: training steps, of 64 images each.
        seed: of weights, batches and augmentation.
        mirrored: whether half of the images are mirrored left to right, as the generator's are.
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
    order = Order(len(y), rng.key(seed, "judge"))
    with torch.device("meta"):
        net = _net(shape, num_classes)
    fill(net, INITIAL, seed)
    net.to(memory_format=net.LAYOUT)
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    average = [value.clone() for value in state.values()]
    seen: deque[Tensor] = deque(maxlen=NORM_BATCHES)
    optimizer = _optimizer(net)
    with one_thread(), progress_bar(steps, "judge", "step", leave=False) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = MAX_LR * _rise_and_fall((step + 0.5) / steps)
            picked = torch.tensor([order[position] for position in range(step * BATCH, (step + 1) * BATCH)])
            generator = rng.generator(seed, "judge", step)
            x = augment(_as_input(data.read(picked.numpy())), generator, mirrored=mirrored)
            seen.append(x)
            loss = F.cross_entropy(net(x), y[picked], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average, state.values(), strict=True):
                    mean.lerp_(value, 1 - decay)
            bar.update()
        net.load_state_dict(dict(zip(state, average, strict=True)), strict=False)
        _measure_norms(net, seen)
    return Judge(net, shape, num_classes, origin)


def _optimizer(net: Network) -> torch.optim.AdamW:
    """Matrices and kernels decay, biases and what scales a norm do not."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=MAX_LR, fused=True)


@torch.no_grad()
def _measure_norms(net: Network, batches: Iterable[Tensor]) -> None:
    """Sets means and variances of batch norms to those of some batches: averaged weights have others than each step's.

    As in stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407, Sec. 3.2).
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    for x in batches:
        net(x)


def _rise_and_fall(done: float) -> float:
    """Share of the highest learning rate when a share of the steps is done: up in a line, down in a cosine."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def _net(shape: tuple[int, int, int], num_classes: int, name: str = NAME) -> Network:
    return NETWORKS[name](shape[0], min(max(shape[1:]), MAX_SIDE), num_classes)


def augment(x: Tensor, generator: torch.Generator, *, mirrored: bool = False) -> Tensor:
    """x [B, C, H, W], each image slightly shifted, rotated and zoomed; the border is repeated outwards.

    Where asked for, half of the images are mirrored left to right as well.
    """
    turn, zoom, right, down = torch.rand(4, len(x), generator=generator) * 2 - 1
    cos, sin = (MAX_TURN * turn).cos() * (1 + MAX_ZOOM * zoom), (MAX_TURN * turn).sin() * (1 + MAX_ZOOM * zoom)
    rows = [torch.stack([cos, -sin, MAX_SHIFT * right], 1), torch.stack([sin, cos, MAX_SHIFT * down], 1)]
    matrices = torch.stack(rows, 1)
    if mirrored:
        matrices[:, :, 0] *= torch.randint(0, 2, (len(x), 1), generator=generator) * 2 - 1
    places = F.affine_grid(matrices, list(x.shape), align_corners=False)
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

    def __init__(self, judge: Judge) -> None:
        """Takes the trained judge."""
        self.judge = judge
        self.sha256 = judge.fingerprint
        self.name = f"{judge.described}, not Inception"
        self.inception = False

    def __call__(self, images: Pixels) -> Features:
        """Features [N, 32] and classes.

        Raises:
            UserError: images of another shape than the judge was trained on.
        """
        if images.shape[1:] != self.judge.shape:
            raise UserError(
                f"images are {list(images.shape[1:])} and the judge knows {list(self.judge.shape)}; score them with "
                "--features inception, or with the judge of their own data"
            )
        features = self.judge.features(images)
        return Features(features, classes=self.judge.classes(features))
