"""The extractor of a name, as commands and jobs ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from udit.data.sources import Pixels
from udit.errors import UserError, nearest
from udit.evaluation import FeaturesName, vision
from udit.evaluation.fidelity import Extractor, Features, Fidelity, Network
from udit.evaluation.vision import Vision

BATCH = 32


def default_features(weights_file: Path | None) -> str:
    """The features of images that have no judge; a file of weights is a judge's where nothing else is said."""
    return "efficientnet-lite0" if weights_file is None else "judge"


def load_extractor(features: str, weights_file: Path | None = None, device: str = "cpu") -> Extractor:
    """Loads an extractor.

    Args:
        features: a ``FeaturesName``, or ``NAME:SOURCE``; judge needs the weights that `udit eval RUN` trained.
        weights_file: in the place of SOURCE: safetensors, or a pickle of which only tensors are read; for clip and
            dinov2 also a folder or a hub id of transformers. Without either, a published network is downloaded.
        device: where it runs.

    Raises:
        UserError: an unknown name; the weights are missing or of another network; or a package is.
    """
    name, _, source = features.partition(":")
    if name not in get_args(FeaturesName):
        names = ", ".join(get_args(FeaturesName))
        raise UserError(f"--features is {features!r}{nearest(name, get_args(FeaturesName))}; there are {names}")
    if source and weights_file is not None:
        raise UserError(
            f"--weights-file is {weights_file} and --features {features} names its weights; give one of them"
        )
    source = source or ("" if weights_file is None else str(weights_file))
    if name == "judge":
        return _judge(source)
    if name == "efficientnet-lite0":
        if source:
            raise UserError(f"efficientnet-lite0 has its weights from a package, and {source!r} is given; leave it out")
        return Pooled(vision.efficientnet_lite0(), "ImageNet weights", device)
    if name == "timm":
        if not source:
            raise UserError("timm needs a model; give timm:SOURCE, a folder or a hub id")
        return Pooled(vision.timm(source), source, device)
    of_transformers: dict[str, Callable[[str], Vision]] = {"clip": vision.clip, "dinov2": vision.dinov2}
    if source and name in of_transformers and not Path(source).expanduser().is_file():
        return Pooled(of_transformers[name](source), source, device)
    return _fidelity(name, source, device)


def _judge(source: str) -> Extractor:
    from udit.evaluation.judge import Judge, JudgeFeatures

    if not source:
        raise UserError(
            "judge features need the classifier of a run: --weights-file RUN/evaluation/judge.safetensors; or take "
            "--features efficientnet-lite0"
        )
    return JudgeFeatures(Judge.load(Path(source)))


def _fidelity(name: str, source: str, device: str) -> Extractor:
    from udit.convert.states import read_published

    network: Network = "inception" if name == "inception" else "clip" if name == "clip" else "dinov2"
    return Fidelity(network, read_published(Path(source)).taken.tensors if source else None, device)


class Pooled:
    """The pooled features of a vision model."""

    def __init__(self, model: Vision, origin: str, device: str = "cpu") -> None:
        """Takes the model and where its weights are from, for its name."""
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.name = f"{model.name} ({origin}, {model.side} pixels), not Inception"
        self.sha256 = model.sha256
        self.inception = False

    @torch.no_grad()
    def __call__(self, images: Pixels) -> Features:
        """Features of images [N, C, H, W]."""
        made = []
        for start in range(0, len(images), BATCH):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(self.device)
            made.append(self.model.pooled(self.model.prepare(x)).float().cpu())
        return Features(torch.cat(made).double().numpy())
