"""Features of published networks, through torch-fidelity (extra ``[metrics]``): Inception, CLIP and DINOv2."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udit.data.sources import Labels, Pixels
from udit.errors import UserError, missing_extra
from udit.evaluation.frechet import Array
from udit.evaluation.vision import sha256_of

Network = Literal["inception", "clip", "dinov2"]
_NAMES = {"inception": "inception-v3-compat", "clip": "clip-vit-b-32", "dinov2": "dinov2-vit-l-14"}
_LAYERS = {"inception": ["2048", "logits_unbiased"], "clip": ["clip"], "dinov2": ["dinov2"]}
SPATIAL_CHANNELS = 7
"""Of the 192 of the first branch of Inception's ``mixed_6``; at 17 x 17 positions that makes 2023 features."""


@dataclass(frozen=True)
class Features:
    """What an extractor returns for N images."""

    pool: Array
    """[N, D]: behind FID, KID, precision and recall."""
    spatial: Array | None = None
    """[N, 2023]: behind sFID; positions first, then channels, as in ADM's reference files."""
    logits: Array | None = None
    """[N, K]: of Inception, behind the Inception score."""
    classes: Labels | None = None
    """[N]: the classes that a judge of the data sees."""

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """The features of several sets of images as those of one."""

        def join(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            return None if any(array is None for array in arrays) else np.concatenate(arrays)

        pool = join("pool")
        assert pool is not None, "every extractor has pooled features"
        return Features(pool, join("spatial"), join("logits"), join("classes"))


class Extractor(Protocol):
    """Anything that turns images into features."""

    name: str
    """Printed beside every score."""
    sha256: str
    """Of the weights."""
    inception: bool
    """Whether this is the network of the literature's FID, sFID and IS, with its 2048 features and its resizing."""

    def __call__(self, images: Pixels) -> Features:
        """Features of images uint8 [N, C, H, W]; grey images are repeated to three channels."""
        ...


class Fidelity:
    """A network of torch-fidelity as an extractor."""

    def __init__(self, network: Network, state: dict[str, Tensor] | None = None, device: str = "cpu") -> None:
        """Builds the network.

        Args:
            network: Inception of FID (TensorFlow's 2015-12-05 graph, resizing as TensorFlow does), CLIP ViT-B/32 or
                DINOv2 ViT-L/14.
            state: weights under torch-fidelity's key names; None downloads them as torch-fidelity does.
            device: where it runs.

        Raises:
            UserError: torch-fidelity is missing, the download failed, or the weights are of another network.
        """
        self.network = network
        self.name = f"{_NAMES[network]} (torch-fidelity)"
        self.device = torch.device(device)
        self.module = _build(network, state).to(self.device).eval()
        self.sha256 = sha256_of(self.module.state_dict())
        self.inception = network == "inception"
        self._spatial: list[Tensor] = []
        if self.inception:
            self.module = fold_norms(self.module)
            # ADM's mixed_6/conv:0. TensorFlow counts the 35x35 blocks from 0 (mixed to mixed_2), so mixed_6 is 6d.
            self.module.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self._spatial.append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())

    @torch.no_grad()
    def __call__(self, images: Pixels, batch_size: int = 32) -> Features:
        """Features of images [N, C, H, W]."""
        self._spatial.clear()
        outputs: list[tuple[Tensor, ...]] = []
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(self.device)
            x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
            outputs.append(tuple(part.flatten(1).cpu() for part in self.module(x)))
        layers = [_double(torch.cat(parts)) for parts in zip(*outputs, strict=True)]
        spatial = _double(torch.cat(self._spatial)) if self._spatial else None
        self._spatial.clear()
        return Features(layers[0], spatial, layers[1] if len(layers) > 1 else None)


def _build(network: Network, state: dict[str, Tensor] | None) -> Any:
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    except ImportError:
        raise missing_extra(f"scoring by {network}", "torch-fidelity", "metrics") from None
    if state is not None and network == "dinov2":
        raise UserError(
            "torch-fidelity takes DINOv2 from torch.hub alone, not from a file; give dinov2:SOURCE, a folder or a "
            "hub id of transformers"
        )
    name = _NAMES[network]
    with tempfile.TemporaryDirectory() as folder:
        path = None
        if state is not None:
            # torch-fidelity unpickles or runs the file it is given, so it gets one written here that holds only tensors
            path = str(Path(folder) / "weights.pt")
            _write_weights(network, state, path)
        try:
            return FEATURE_EXTRACTORS_REGISTRY[name](name, _LAYERS[network], feature_extractor_weights_path=path)
        except (OSError, RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
            detail = " ".join(str(error).split())[:160]
            cause = "the weights do not fit" if state is not None else "its weights could not be downloaded"
            raise UserError(
                f"no {network} features: {cause} ({detail}); give torch-fidelity's weights with --weights-file"
            ) from None


def fold_norms(module: Any) -> Any:
    """The network with each batch norm in the convolution before it, and with channels innermost, which is faster.

    The same function but for rounding (``tests/test_fidelity.py`` compares both in float64).
    """
    for part in list(module.modules()):
        if isinstance(getattr(part, "bn", None), nn.BatchNorm2d):
            part.conv, part.bn = fuse_conv_bn_eval(part.conv, part.bn), nn.Identity()
    return module.to(memory_format=torch.channels_last)


def _write_weights(network: Network, state: dict[str, Tensor], path: str) -> None:
    """Writes the format that torch-fidelity reads: a torch file, or TorchScript as OpenAI publishes CLIP."""
    if network == "inception":
        torch.save({key: value.clone() for key, value in state.items()}, path)
        return
    root = nn.Module()
    for key, value in state.items():
        *parents, name = key.split(".")
        holder = root
        for parent in parents:
            if parent not in dict(holder.named_children()):
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.register_buffer(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        torch.jit.save(torch.jit.script(root), path)


class InceptionScore:
    """exp of the mean divergence of p(y|x) from p(y), its mean and deviation over ten parts (Salimans et al. 2016).

    The parts are torch-fidelity's, which shuffles the images with a seed of its own. Logits are added some at a time,
    and only sums over each part are kept.
    """

    SEED = 2020

    def __init__(self, count: int) -> None:
        """Takes the number of all images."""
        self.parts = min(10, count)
        shuffled = np.random.RandomState(self.SEED).permutation(count)
        self.owner = np.empty(count, np.int64)
        for part in range(self.parts):
            self.owner[shuffled[part * count // self.parts : (part + 1) * count // self.parts]] = part
        self.done = 0
        self.counts = np.zeros(self.parts)
        self.entropies = np.zeros(self.parts)
        self.sums: Array | None = None

    def add(self, logits: Array) -> None:
        """The logits [n, K] of the next images."""
        log_p = torch.from_numpy(logits).float().double().log_softmax(1)
        p = log_p.exp().numpy()
        own = self.owner[self.done : self.done + len(p)]
        self.done += len(p)
        if self.sums is None:
            self.sums = np.zeros((self.parts, p.shape[1]))
        np.add.at(self.counts, own, 1)
        np.add.at(self.entropies, own, (p * log_p.numpy()).sum(1))
        np.add.at(self.sums, own, p)

    def value(self) -> tuple[float, float]:
        """Mean and standard deviation over the parts, once all images have been added."""
        assert self.sums is not None and self.done == len(self.owner), "all images"
        mean = self.sums / self.counts[:, None]
        scores = np.exp(self.entropies / self.counts - (mean * np.log(mean.clip(np.finfo(float).tiny))).sum(1))
        return float(scores.mean()), float(scores.std())


def kernel_distance(*, samples: Array, reference: Array, seed: int = 2020) -> tuple[float, float]:
    """KID: unbiased squared MMD under a cubic kernel, mean and standard deviation over 100 subsets (Binkowski 2018).

    Computed by torch-fidelity on subsets of 1,000, or of the smaller set's size if that is less. Features are [N, D]
    and [M, D].
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(1000, len(samples), len(reference))
    found = kid_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        kid_subsets=100,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return float(found["kernel_inception_distance_mean"]), float(found["kernel_inception_distance_std"])


def _double(x: Tensor) -> NDArray[np.float64]:
    return x.double().numpy()
