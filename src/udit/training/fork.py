"""``fork``: a run that goes on from another one's checkpoint, in a folder of its own and with some keys changed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udit.checkpoint import CheckpointStore, DamagedError
from udit.errors import UserError
from udit.files import check_room, whole_folder
from udit.run.config import FORK_MAY_CHANGE, Run, changed_keys
from udit.run.recipes import forked_run
from udit.spec.base import differing_keys, value_at
from udit.spec.words import shown
from udit.store import checkpoint_of, no_checkpoint, read_run_config
from udit.training.folder import NAMES, write_run

log = logging.getLogger(__name__)
OF_THE_CHECKPOINT = ("schema", "step", "files", "digest")
"""Keys of a manifest that its store writes."""


@dataclass(frozen=True)
class Forked:
    """A run folder that goes on from another's checkpoint."""

    out: Path
    step: int
    """Of the checkpoint."""
    changed: tuple[str, ...]
    """Dotted keys that differ from the first run's, beside ``out``."""


def fork(run: str | Path, out: str | Path, overrides: Sequence[str] = (), *, checkpoint: int | None = None) -> Forked:
    """Makes a run folder that holds one checkpoint of another run, with its log and grids up to there.

    ``udit train OUT/run.yaml``, or ``udit.train(udit.load_run("OUT/run.yaml"))``, goes on from it. Without a changed
    key it ends with the first run's bits. The first run is left as it is, and may be training.

    Args:
        run: a run folder.
        out: the new one; it must not exist.
        overrides: ``key.path=value`` each, e.g. ``training.lr=1e-4``; keys that decide the weights' shapes, the
            optimiser's state or the data may not change (``FORK_MAY_CHANGE``).
        checkpoint: the step of a checkpoint; the newest if None.

    Raises:
        UserError: no run, no such checkpoint, a key that may not change, or a folder that exists.
        RunError: the disk refuses it.
    """
    folder, target = Path(run), Path(out)
    before = read_run_config(folder)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{target} exists; a fork takes a folder of its own")
    new = forked_run(folder, target, list(overrides))
    _check_fits(before, new, folder)
    store = CheckpointStore(folder / "checkpoints")
    if checkpoint is not None:
        checkpoint_of(folder, checkpoint)
        try:
            found = store.at(checkpoint)
        except DamagedError as error:
            raise UserError(f"checkpoint {store.path(checkpoint)} is damaged ({error}); fork another one") from None
    else:
        newest = store.newest(aside=False)
        if newest is None:
            raise UserError(no_checkpoint(folder, before))
        found = newest
    if found.step >= new.training.steps:
        raise UserError(
            f"training.steps is {new.training.steps} and the checkpoint is of step {found.step}; give more steps, e.g. "
            f"training.steps={2 * found.step}, or an earlier --checkpoint"
        )
    facts = {key: value for key, value in found.manifest.items() if key not in OF_THE_CHECKPOINT}
    facts |= {"run": new.plain(), "forked_from": {"run": str(folder), "step": found.step}}
    check_room(target.absolute().parent, 2 * sum(facts["bytes"] for facts in found.manifest["files"].values()))
    with whole_folder(target) as temporary:
        (temporary / "samples").mkdir()
        (temporary / "checkpoints").mkdir()
        CheckpointStore(temporary / "checkpoints").save(
            found.step, {name: found.tensors(name) for name in found.parts}, facts
        )
        _copy_log(folder, temporary, found.step)
        write_run(new, temporary)
    changed = differing_keys(before.plain(), new.plain(), frozenset({"out", "init_from"}))
    return Forked(target, found.step, tuple(changed))


def _check_fits(before: Run, new: Run, folder: Path) -> None:
    """Refuses changed keys that a checkpoint cannot go on with.

    Raises:
        UserError: names the first one with both values.
    """
    old, plain = before.plain(), new.plain()
    if changed := changed_keys(old, plain, FORK_MAY_CHANGE):
        key = changed[0]
        was, now = shown(value_at(old, key)), shown(value_at(plain, key))
        raise UserError(
            f"{key} is {was} in {folder} and would be {now}; a fork goes on with the same model, optimiser and data: "
            f"leave it out, or start a new run with init_from={folder}"
        )


def _copy_log(folder: Path, target: Path, step: int) -> None:
    """The log, grids, snapshots of averages and image names up to a step."""
    for path in sorted((folder / "samples").glob("step-*.png")):
        if _step_of(path) <= step:
            shutil.copyfile(path, target / "samples" / path.name)
    for path in sorted((folder / "posthoc").glob("step-*.safetensors")):
        if _step_of(path) <= step:
            (target / "posthoc").mkdir(exist_ok=True)
            shutil.copyfile(path, target / "posthoc" / path.name)
    if (folder / NAMES).is_file():
        shutil.copyfile(folder / NAMES, target / NAMES)
    log_file = folder / "metrics.jsonl"
    if log_file.is_file():
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_until(line, step)]
        (target / log_file.name).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(path: Path) -> int:
    digits = path.stem.partition("-")[2]
    return int(digits) if digits.isdigit() else 2**63


def _is_until(line: str, step: int) -> bool:
    """Whether a line of the log is whole and of at most a step."""
    try:
        values: Any = json.loads(line)
        return bool(values["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
