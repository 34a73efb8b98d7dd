"""``push``: a model with its card, a grid of samples and its VAE, as one commit of a repository on the hub."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from udit import hub, store
from udit.assemble import System
from udit.data.codec_config import VAECodec
from udit.data.vae import VAE_FILES, cached_sha256, check_sha256, folder_of, weights_sha256
from udit.demos.find import is_demo
from udit.errors import UserError
from udit.exporting.pipelines import export_pipeline
from udit.files import check_room
from udit.publishing.card import CARD, GRID, UNKNOWN, Facts, card, scores_of
from udit.publishing.repository import check_name, upload
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.training.preview import save_grid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be."""

    name: str
    files: dict[str, int]
    """{path in the repository: bytes}."""
    card: str
    """``README.md``."""
    step: int | None
    """Optimiser steps of the weights."""
    last_step: int | None
    """Of the whole training, where its run is known."""
    url: str | None = None
    """Of the repository; None for a dry run, as the next."""
    commit: str | None = None
    changed: bool = False
    """False where the repository held all of it already."""
    kept_card: bool = False
    """Whether the repository has a card that somebody wrote, which stays."""


def push(
    model: str | Path,
    name: str,
    *,
    license: str | None = None,  # noqa: A002  the hub's word
    raw: bool = False,
    vae: bool | None = None,
    diffusers: bool = False,
    grid: bool = True,
    private: bool = False,
    revision: str | None = None,
    replace_card: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Pushed:
    """Uploads a model to the hub, as one commit; pushing again sends only what has changed or is missing.

    A run is pushed with the weights of its newest checkpoint, also while it trains; the card says whether it had ended.
    The card has the scores in RUN/evaluation that are of these weights. A folder on this machine is named by its last
    part alone, and no other path of it is told. The token is that of ``hf auth login`` or HF_TOKEN.

    Args:
        model: a run folder, one of its checkpoints, a model folder or a hub id.
        name: ``owner/name``; the repository is made if it does not exist.
        license: the hub's identifier, e.g. ``apache-2.0``; ``unknown`` if None.
        raw: the weights before averaging too; without, the averaged ones alone.
        vae: a model in a VAE's latents: the VAE's files too. Without, the VAE is named by its hub id and the sha256 of
            its weights. None copies one that has no hub id, and names the others.
        diffusers: as ``udit.export(model, "diffusers")`` writes it: ``udit.load`` and diffusers' ``DiffusionPipeline``
            both load it, with the VAE and fused weights.
        grid: a grid of samples: that of the run's last step if there is one, otherwise drawn.
        private: a new repository is private; a public one is refused.
        revision: a branch, made if it does not exist; the default one if None.
        replace_card: overwrites a card in the repository that somebody edited, which stays otherwise.
        dry_run: does all but to contact the hub for the repository.
        progress: shows bars where standard error is a terminal.

    Raises:
        UserError: there is no model, the name is none, no token, one that may not write there, a repository that holds
            another kind of model, a hub that cannot be reached, or a model that diffusers cannot be given.
        RunError: the disk is too full for a copy of the model.
    """
    check_name(name)
    if diffusers and (raw or vae is False):
        option = "--raw" if raw else "--no-vae"
        raise UserError(f"{option} and --diffusers exclude each other: a pipeline is one network with its VAE")
    with _staged(model, name, license or UNKNOWN, raw, vae, diffusers, grid) as (files, text, system, run):
        found = Pushed(
            name=name,
            files={path: file.stat().st_size for path, file in files.items()},
            card=text,
            step=system.config.steps,
            last_step=run.training.steps if run else None,
        )
        if dry_run:
            return found
        steps = f" after {system.config.steps:,} steps" if system.config.steps else ""
        message = f"Model {system.fingerprint}{steps}, by udit"
        with hub.progress_bars(progress):
            done = upload(name, files, message=message, private=private, revision=revision, replace_card=replace_card)
    return Pushed(
        name, found.files, text, found.step, found.last_step, done.url, done.commit, done.changed, done.kept_card
    )


@contextmanager
def _staged(
    model: str | Path, name: str, license_: str, raw: bool, vae: bool | None, diffusers: bool, grid: bool
) -> Iterator[tuple[dict[str, Path], str, System, Run | None]]:
    """{path in the repository: file} of all that is pushed, the card's text, the model and its run.

    Weights and config are written from what was loaded and checked: a training run may remove a checkpoint while
    it is being sent.
    """
    system = store.load(model)
    before = store.load(model, weights="raw").backbone if raw else None
    out = _run_of(Path(model))
    known = model if is_demo(model) else out
    run = store.read_run_config(known) if known is not None else None
    with tempfile.TemporaryDirectory(prefix="udit-push-") as place:
        size = sum(tensor.nbytes for tensor in system.backbone.state_dict().values())
        check_room(Path(place), size * (1 + raw) + 10_000_000)
        staged = Path(place) / "model"
        beside: list[Path] = []
        if diffusers:
            export_pipeline(system, staged)
            config = store.read_config(staged / "config.json")
        else:
            config, beside = _with_vae_named(system, vae)
            store.save(System(config, system.backbone), staged, raw=before)
        if grid:
            _grid(system, run, out, staged / GRID)
        paths = sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file())
        files = {path: staged / path for path in paths} | {f"vae/{path.name}": path for path in beside}
        scores = scores_of(out / "evaluation", system.fingerprint) if out is not None else []
        text = card(config, Facts(name, system.num_parameters, license_, run, scores, tuple(files)))
        files[CARD].write_text(text, encoding="utf-8")
        yield files, text, system, run


def _run_of(model: Path) -> Path | None:
    """The run folder that a model is of: itself, or the one that it or its checkpoint lies in; None where it is not."""
    places = [model]
    if model.name == "model":
        places.append(model.parent)
    if model.parent.name == "checkpoints":
        places.append(model.parent.parent)
    return next((place for place in places if (place / "run.yaml").is_file()), None)


def _with_vae_named(system: System, wanted: bool | None) -> tuple[SystemConfig, list[Path]]:
    """The config that is pushed, whose VAE has the sha256 of its weights, and the VAE's files that go with it.

    Raises:
        UserError: see ``_vae_beside``; the VAE's weights are others than those it was trained with.
    """
    config, beside = system.config, _vae_beside(system, wanted)
    if isinstance(config.codec, VAECodec):
        sha = weights_sha256(beside[0].parent) if beside else cached_sha256(config.codec.source)
        if sha is not None:
            check_sha256(config.codec, sha)
        named = {"source": "vae", "revision": None} if beside else {}
        config = config.model_copy(update={"codec": config.codec.replace(sha256=sha or config.codec.sha256, **named)})
    return config, beside


def _vae_beside(system: System, wanted: bool | None) -> list[Path]:
    """The files of the VAE that go with the model.

    Raises:
        UserError: the VAE has no hub id and is not to be copied, or the model has none.
    """
    codec = system.config.codec
    if not isinstance(codec, VAECodec):
        if wanted:
            raise UserError("--vae is given and the model is in no VAE's latents; leave it out")
        return []
    local = Path(codec.source).expanduser().is_dir()
    if local and wanted is False:
        raise UserError(
            f"the model's VAE is the folder {codec.source}, which nobody else has; push it too, or train with a hub id "
            "as codec.source"
        )
    if not local and not wanted:
        return []
    folder = folder_of(codec.source, codec.revision)
    return [folder / file for file in VAE_FILES]


def _grid(system: System, run: Run | None, out: Path | None, file: Path) -> None:
    """Writes a grid of samples: the run's own of this step, or one that is drawn now."""
    if out is not None and system.config.steps is not None:
        drawn = out / "samples" / f"step-{system.config.steps:08d}.png"
        if drawn.is_file():
            shutil.copyfile(drawn, file)
            return
    log.info("drawing a grid of samples for the card")
    save_grid(system.fused(), file, run.seed if run else 0)
