"""A run that starts from trained weights: model, noising process and codec are those of the weights; free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udit.errors import UserError, nearest
from udit.spec.base import Spec

BOUNDARY = frozenset({"in_channels", "num_classes", "input_size", "learn_sigma"})
"""Of a model's config: what may differ from the weights'. Parameters of another shape begin anew."""
DECIDED = ("model", "diffusion", "codec", "sampling")
"""Sections that the weights decide; a recipe's own give way to them."""


def follow_start(values: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """A run's plain values with the sections that its initial weights decide, where it leaves them out.

    Args:
        values: of the run.
        origin: plain ``model``, ``diffusion``, ``codec`` and ``sampling`` of the weights, see ``read_origin``.

    Raises:
        UserError: a key of model or diffusion says otherwise than the weights; names it with both values.
    """
    source = values["init_from"]
    old = dict(origin["model"])
    given = values.get("model") or {}
    given = given.model_dump(mode="json") if isinstance(given, Spec) else dict(given)
    for key, value in given.items():
        if key not in old:
            raise UserError(f"unknown key 'model.{key}'{nearest(key, old)}")
        if key not in BOUNDARY and value != old[key]:
            raise UserError(
                f"model.{key} is {value!r} and the weights of init_from={source} have {old[key]!r}; leave it out"
            )
    free = BOUNDARY - {"learn_sigma"}  # which the data decides
    model = {key: value for key, value in old.items() if key not in free} | given
    kind = (values.get("diffusion") or {}).get("kind", origin["diffusion"]["kind"])
    if kind != origin["diffusion"]["kind"]:
        raise UserError(
            f"diffusion.kind is {kind!r} and the weights of init_from={source} were trained with "
            f"{origin['diffusion']['kind']!r}; leave it out"
        )
    sections = {key: values.get(key) or origin[key] for key in DECIDED}
    sections["sampling"] = {**origin["sampling"], **dict(sections["sampling"])}
    return values | sections | {"model": model}


def read_origin(source: str, out: Path) -> dict[str, Any]:
    """What the weights of ``init_from`` say of themselves; once a run has begun, what it says of them.

    Args:
        source: a model folder, a run folder or a hub id.
        out: the run folder; a run that was begun from ``source`` does not ask for it again.

    Raises:
        UserError: there is nothing of the kind.
    """
    from udit.run.recipes import read_yaml

    begun = out.expanduser() / "run.yaml"
    if begun.is_file() and (values := read_yaml(begun)).get("init_from") == source:
        return _sections(values, begun)
    folder = Path(source).expanduser()
    if folder.is_file():
        raise UserError(
            f"init_from is {source!r}, a file; convert it once: `udit convert {source} FOLDER --model NAME`, then give "
            "the folder"
        )
    if not folder.is_dir():
        folder = _from_hub(source)
    if (folder / "run.yaml").is_file():
        return _sections(read_yaml(folder / "run.yaml"), folder / "run.yaml")
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(
            f"init_from is {source!r} and {path} cannot be read ({detail}); give a model or run folder, or a hub id"
        ) from None
    return _sections(values, path)


def _sections(values: Any, path: Path) -> dict[str, Any]:
    sections = {key: values.get(key) if isinstance(values, dict) else None for key in DECIDED}
    if isinstance(sections["codec"], str) or sections["codec"] is None:
        sections["codec"] = {"kind": sections["codec"] or "identity"}
    for key, section in sections.items():
        if not isinstance(section, dict) or (key == "diffusion" and not isinstance(section.get("kind"), str)):
            raise UserError(f"{path} has no section {key!r}; init_from takes a folder that udit wrote")
    return sections


def _from_hub(source: str) -> Path:
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"init_from is {source!r}, no folder; give a model folder, a run folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        detail = str(error).strip().split("\n", 1)[0][:160]
        raise UserError(f"init_from is {source!r}, no folder, and the hub gave none: {detail}") from None
