"""The sampling settings of a model by level of quality: those that were tuned for it, or default ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

from udit.assemble import System
from udit.diffusion.config import SamplingConfig
from udit.errors import UserError
from udit.tuning.quality import TUNED, Level, Quality, Scored, default

logger = logging.getLogger(__name__)


def tuned_folder(model: str | Path) -> str | Path:
    """The folder whose weights the settings of a model were found for: that of another average, or the model's own.

    Raises:
        UserError: ``quality.json`` cannot be read, or the average is missing.
    """
    folder = Path(model)
    found = Quality.read(folder)
    if found is None or found.sigma_rel is None or folder.name == TUNED:
        return model
    if not (folder / TUNED / "config.json").is_file():
        raise UserError(f"{folder / TUNED} is missing, for which quality.json was tuned; run `udit tune` again")
    return folder / TUNED


def qualities(folder: Path | None, system: System) -> dict[Level, SamplingConfig]:
    """The settings that were tuned for a model, or the default ones of its noising process.

    Args:
        folder: of the model, which may hold ``quality.json``; None where it has none.
        system: the model.
    """
    levels: tuple[Level, ...] = get_args(Level)
    tuned = None if folder is None else Quality.read(folder)
    if tuned is None:
        found = {level: default(level, system.config.sampling, system.config.diffusion) for level in levels}
        where = f" beside {folder}" if folder is not None else ""
        listed = ", ".join(f"{level} is {each.sampler}, {each.steps} steps" for level, each in found.items())
        logger.info("no quality.json%s: %s (`udit tune` finds better)", where, listed)
        return found
    if not system.has_weights(tuned.weights) and tuned.sigma_rel is not None:
        logger.warning("quality.json was tuned for the average of length %g; it lies in %s", tuned.sigma_rel, TUNED)
    elif not system.has_weights(tuned.weights):
        logger.warning("quality.json was tuned for other weights, of step %s; run `udit tune` again", tuned.step)
    if tuned.warning:
        logger.warning("quality.json was chosen by a %s", tuned.warning)
    scored: dict[Level, Scored] = {level: getattr(tuned, level) for level in levels}
    return {level: each.sampling for level, each in scored.items()}


def frozen(run: Path, level: Level) -> tuple[Path, dict[str, Any]]:
    """The model folder or run folder whose weights were tuned, and the setting of a level, as plain values.

    Raises:
        UserError: ``udit tune`` has not been run.
    """
    found = Quality.read(run)
    if found is None:
        raise UserError(f"{run} has no quality.json, by which --quality {level} is scored; run `udit tune {run}` first")
    scored: Scored = getattr(found, level)
    return Path(tuned_folder(run)), scored.sampling.model_dump()
