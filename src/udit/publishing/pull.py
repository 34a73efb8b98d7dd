"""``pull``: a model of the hub as a folder that is complete by itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from udit import hub, store
from udit.data.codec_config import VAECodec
from udit.data.vae import VAE_FILES, folder_of
from udit.errors import RunError, UserError
from udit.files import whole_folder
from udit.publishing.card import CARD, GRID


@dataclass(frozen=True)
class Pulled:
    """A model that was downloaded."""

    folder: Path
    commit: str
    """Of the repository."""


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    raw: bool = False,
    vae: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Pulled:
    """Downloads a model from the hub into a folder, whole or not at all; what is in the hub's cache is not sent again.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        out: the folder; the repository's name if None.
        raw: the weights before averaging too.
        vae: a VAE that the model names by its hub id too, so that the folder needs nothing else; one that lies beside
            the model comes in any case.
        revision: branch, tag or commit.
        overwrite: replaces a model folder at the same place.
        progress: shows bars where standard error is a terminal.

    Raises:
        UserError: the hub has no such model or does not give it, or the folder exists.
        RunError: the disk refuses it.
    """
    folder = Path(out if out is not None else name.partition("@")[0].rpartition("/")[2])
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} exists and is no model folder; choose another place with --out")
        if not overwrite:
            raise UserError(f"{folder} holds a model already; --overwrite replaces it, --out takes another place")
    with hub.progress_bars(progress):
        there, files = _files(name, raw, vae, revision)
    try:
        with whole_folder(folder, replace=overwrite) as temporary:
            for path, file in files.items():
                (temporary / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, temporary / path)
    except OSError as error:
        raise RunError(
            f"cannot write {folder}: {error.strerror or error}; make room, or choose another --out"
        ) from None
    return Pulled(folder, there.name)


def _files(name: str, raw: bool, vae: bool, revision: str | None) -> tuple[Path, dict[str, Path]]:
    """The folder in the hub's cache, and {path in the new folder: file}; see ``pull``."""
    weights: Sequence[store.Weights] = ("ema", "raw") if raw else ("ema",)
    there = store.download(name, weights, revision)
    config = store.read_config(there / "config.json")
    if hub.is_pipeline(there):
        if raw:
            raise UserError(f"{name} holds the fused weights of a pipeline; leave out --raw")
        hub.complete(name, there, hub.PIPELINE_FILES, what=f"no pipeline {name!r}")
        paths = list(hub.PIPELINE_FILES)
    else:
        paths = ["config.json", *(store.FILES[kind] for kind in weights)]
    files = {path: there / path for path in paths}
    for path in paths:
        if not files[path].is_file():
            raise UserError(f"{name} has no {path}" + ("; leave out --raw" if path == store.FILES["raw"] else ""))
    hub.complete(name, there, [GRID], what=f"no grid of {name!r}")
    files |= {file: there / file for file in (CARD, GRID) if (there / file).is_file()}
    if (there / hub.VAE).is_file():
        files |= {f"vae/{file}": there / "vae" / file for file in VAE_FILES}
    elif vae and isinstance(config.codec, VAECodec):
        found = folder_of(config.codec.source, config.codec.revision)
        files |= {f"vae/{file}": found / file for file in VAE_FILES}
    elif vae:
        raise UserError(f"--vae is given and {name} is in no VAE's latents; leave it out")
    return there, files
