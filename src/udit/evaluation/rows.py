"""Features of scored images on disk, beside the scores, so that two ways of drawing can be compared seed by seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from udit.errors import UserError
from udit.evaluation.frechet import Array, Statistics
from udit.files import whole_file

SEEDS = ("num_samples", "first_seed", "labels", "classes")
"""Facts by which row i of two sets is of the same seed and the same label."""
SPACE = ("extractor", "extractor_sha256", "reference_sha256")
"""Facts by which features are of one space and the reference is the same."""


@dataclass(frozen=True)
class Rows:
    """Features of images in the order of their seeds, and what they are compared with."""

    features: Array
    """[n, D]"""
    right: NDArray[np.bool_] | None
    """Whether a judge sees the requested class in each image, [n]."""
    reference: Statistics
    reference_features: Array | None
    """[M, D], of all or evenly chosen images of the reference."""
    facts: Mapping[str, Any]
    """``SEEDS`` and ``SPACE``; ``inception`` where the features are those of the literature's FID."""

    def save(self, folder: Path, setting: Mapping[str, Any]) -> None:
        """Writes both, whole or not at all, into the folder of the scores of a setting.

        Raises:
            OSError: the disk refuses it.
        """
        own = {"features": torch.from_numpy(self.features).float()}
        if self.right is not None:
            own["right"] = torch.from_numpy(self.right)
        beside = {"mean": torch.from_numpy(self.reference.mean), "cov": torch.from_numpy(self.reference.cov)}
        if self.reference_features is not None:
            beside["features"] = torch.from_numpy(self.reference_features).float()
        _write(_reference_path(folder, self.facts), beside, {})
        _write(path_of(folder, setting), own, self.facts)

    @staticmethod
    def read(folder: Path, setting: Mapping[str, Any]) -> Rows:
        """Those of the scores of a setting.

        Raises:
            UserError: there are none, or they are damaged.
        """
        path = path_of(folder, setting)
        own, facts = _read(path)
        beside, _ = _read(_reference_path(folder, facts))
        reference = Statistics(beside["mean"].numpy(), beside["cov"].numpy())
        there = beside.get("features")
        return Rows(
            own["features"].double().numpy(),
            own["right"].numpy() if "right" in own else None,
            reference,
            None if there is None else there.double().numpy(),
            facts,
        )


def path_of(folder: Path, setting: Mapping[str, Any]) -> Path:
    """The file of a setting's features."""
    return folder / f"features-{_digest(setting)}.safetensors"


def _reference_path(folder: Path, facts: Mapping[str, Any]) -> Path:
    return folder / f"reference-{_digest({key: facts.get(key) for key in SPACE})}.safetensors"


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:10]


def _write(path: Path, tensors: dict[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"udit": json.dumps(dict(facts))}))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["udit"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - no mapping
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        raise UserError(
            f"{path} is missing or damaged, and pairs need the features of the images that were scored; score them "
            "again with `udit eval RUN --again`"
        ) from None
