"""Folders that diffusers has saved: a transformer, or a class-conditional pipeline around one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udit.convert.files import SHARDED, read_file
from udit.errors import UserError
from udit.models.catalog import families
from udit.models.config import ModelConfig
from udit.models.published import Layout

PIPELINES = ("DiTPipeline",)
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""Settings of the pipeline's scheduler: the noising process of DiT's release."""


@dataclass(frozen=True)
class Found:
    """What a folder of diffusers holds."""

    config: ModelConfig
    state: dict[str, Tensor]
    """Under the release's key names."""
    vae: str | None
    """Folder of the pipeline's VAE."""
    id2label: tuple[str, ...]


def layouts() -> dict[str, Layout]:
    """All layouts of transformers that are read, by diffusers' class."""
    return {name: layout for family in families().values() for name, layout in family.diffusers_layouts().items()}


def published(content: Mapping[Any, Any], config: ModelConfig, where: str) -> Mapping[Any, Any]:
    """What a file holds, with diffusers' key names turned into the release's where it has such.

    Raises:
        UserError: they are of another family than the config's, or hold what the release has not.
    """
    for name, layout in layouts().items():
        if layout.marker in content:
            if name not in config.diffusers_layouts():
                raise UserError(
                    f"{where} holds diffusers' {name} and the model is of the family {config.family}; name another "
                    "with --model"
                )
            return layout.published(content, config, where)
    return content


def is_folder(folder: Path) -> bool:
    """Whether diffusers has saved a folder: a pipeline, or a network with its class in ``config.json``."""
    return (folder / "model_index.json").is_file() or "_class_name" in _json(folder / "config.json")


def read_folder(folder: Path) -> Found:
    """The network, VAE and class names of a folder that diffusers has saved.

    Raises:
        UserError: a class or a setting that is not read, or a file that is missing.
    """
    index = _json(folder / "model_index.json")
    if index and index.get("_class_name") not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UserError(f"{folder} holds diffusers' {index.get('_class_name')}; of its pipelines {known} is read")
    inside = folder / "transformer" if index else folder
    values = _json(inside / "config.json")
    classes = layouts()
    layout = classes.get(str(values.get("_class_name")))
    if layout is None:
        name = values.get("_class_name", "no config.json")
        raise UserError(f"{inside} holds {name}; of diffusers' transformers {', '.join(classes)} is read")
    config = layout.config(values, str(inside))
    for key, wanted in SCHEDULE.items():
        given = _json(folder / "scheduler" / "scheduler_config.json").get(key, wanted)
        if given != wanted:
            raise UserError(f"{folder}'s scheduler says {key} {given!r} and DiT was trained with {wanted!r}; not read")
    weights = inside / WEIGHTS
    if not weights.is_file():
        weights = inside / (WEIGHTS.removesuffix(".safetensors") + SHARDED)
    content = read_file(weights if weights.is_file() else inside / WEIGHTS)
    state = layout.published(content, config, str(inside))
    vae = folder / "vae"
    own = str(vae.resolve()) if index and (vae / "config.json").is_file() else None
    return Found(config, state, own, _labels(index, config.num_classes))


def _labels(index: dict[str, Any], count: int) -> tuple[str, ...]:
    """Class names of a pipeline in label order, where it has one for each."""
    names = index.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(count)}:
        return ()
    return tuple(str(names[str(i)]) for i in range(count))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({' '.join(str(error).split())[:100]}); download it again"
        ) from None
    return values if isinstance(values, dict) else {}
