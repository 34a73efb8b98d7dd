"""Folders that diffusers has saved: a transformer, or a class-conditional pipeline around one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from udit import hub
from udit.convert.files import SHARDED, read_file, shard_names
from udit.data.vae import VAE_WEIGHTS
from udit.errors import UserError
from udit.models.catalog import families
from udit.models.config import ModelConfig
from udit.models.published import Layout

PIPELINES = ("DiTPipeline",)
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS.removesuffix(".safetensors") + SHARDED
PICKLED = "diffusion_pytorch_model.bin"
SCHEDULER = "scheduler/scheduler_config.json"
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
    id2label: tuple[str, ...]
    note: str
    """How diffusers' own network differs."""


def layouts() -> dict[str, Layout]:
    """All layouts of transformers that are read, by diffusers' class."""
    return {name: layout for family in families().values() for name, layout in family.diffusers_layouts().items()}


def published(content: Mapping[Any, Any], config: ModelConfig, where: str) -> tuple[Mapping[Any, Any], str]:
    """What a file holds, with diffusers' key names turned into the release's where it has such.

    Returns:
        The content, and the layout's note.

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
            return layout.published(content, config, where), layout.note
    return content, ""


def find(source: str, *, with_vae: bool = True) -> Path | None:
    """The folder that diffusers has saved at a place, for ``read_folder``; None where something else is there.

    Args:
        source: a folder, or ``owner/name`` on the hub, of which the files that are needed are downloaded.
        with_vae: the pipeline's own VAE is needed.

    Raises:
        UserError: the hub gives nothing, or a class or a setting that is not read.
    """
    folder = Path(source)
    if not folder.exists():
        folder = hub.describe(source, what=f"no folder {source!r}")
        if is_folder(folder):
            _fetch(source, folder, with_vae)
    return folder if is_folder(folder) else None


def _fetch(name: str, described: Path, with_vae: bool) -> None:
    """Downloads the weights of what ``hub.describe`` found, at the same commit."""

    def get(*files: str) -> None:
        hub.complete(name, described, files, what=f"the weights of {name!r} are not here")

    get(SCHEDULER)
    inside = _described(described, name).inside
    if with_vae and (described / hub.VAE).is_file():
        get(f"vae/{VAE_WEIGHTS}")
        own_vae(described)
    prefix = inside.relative_to(described)
    get(str(prefix / WEIGHTS), str(prefix / INDEX))
    if not (inside / WEIGHTS).is_file():
        parts = shard_names(inside / INDEX) if (inside / INDEX).is_file() else [PICKLED]
        get(*(str(prefix / part) for part in parts))


def is_folder(folder: Path) -> bool:
    """Whether diffusers has saved a folder: a pipeline, or a network with its class in ``config.json``."""
    if hub.is_pipeline(folder):  # our own, which ``store.load`` reads
        return False
    return (folder / hub.PIPELINE).is_file() or hub.diffusers_class(folder) is not None


def read_folder(folder: Path) -> Found:
    """The network and class names of a folder that diffusers has saved.

    Raises:
        UserError: a class or a setting that is not read, or a file that is missing.
    """
    pipeline, inside, layout, config = _described(folder, str(folder))
    weights = next((inside / name for name in (WEIGHTS, INDEX, PICKLED) if (inside / name).is_file()), inside / WEIGHTS)
    state = layout.published(read_file(weights), config, str(inside))
    return Found(config, state, _labels(pipeline, config.num_classes), layout.note)


def own_vae(folder: Path) -> str | None:
    """The folder of a pipeline's own VAE; None if it has none.

    Raises:
        UserError: its weights are a pickle.
    """
    place = (folder / hub.VAE).parent
    if not (folder / hub.VAE).is_file():
        return None
    if not (place / VAE_WEIGHTS).is_file():
        raise UserError(
            f"the VAE {place} has no {VAE_WEIGHTS}, and pickled ones are not opened; name another with --vae, e.g. "
            "--vae stabilityai/sd-vae-ft-ema"
        )
    return str(place.resolve())


class _Described(NamedTuple):
    """What the JSON files of a folder say."""

    pipeline: dict[str, Any]
    """Its ``model_index.json``; empty without one."""
    inside: Path
    """Where the transformer is."""
    layout: Layout
    config: ModelConfig


def _described(folder: Path, where: str) -> _Described:
    """What a folder holds by its JSON files alone.

    Raises:
        UserError: a class or a setting that is not read.
    """
    index = _json(folder / hub.PIPELINE)
    if index and index.get("_class_name") not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UserError(f"{where} holds diffusers' {index.get('_class_name')}; of its pipelines {known} is read")
    inside = folder / "transformer" if index or (folder / hub.TRANSFORMER).is_file() else folder
    values = _json(inside / "config.json")
    classes = layouts()
    layout = classes.get(str(values.get("_class_name")))
    if layout is None:
        name = values.get("_class_name", "no config.json")
        raise UserError(f"{inside} holds {name}; of diffusers' transformers {', '.join(classes)} is read")
    config = layout.config(values, str(inside))
    for key, wanted in SCHEDULE.items():
        given = _json(folder / SCHEDULER).get(key, wanted)
        if given != wanted:
            raise UserError(f"{where}'s scheduler says {key} {given!r} and DiT was trained with {wanted!r}; not read")
    return _Described(index, inside, layout, config)


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
