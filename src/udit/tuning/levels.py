"""The sampling settings of a model by level of quality: those that were tuned for it, or default ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from udit.assemble import System
from udit.diffusion.config import SamplingConfig
from udit.tuning.quality import Level, Quality, Scored, default

logger = logging.getLogger(__name__)


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
    if not system.has_weights(tuned.weights):
        logger.warning("quality.json was tuned for other weights, of step %s; run `udit tune` again", tuned.step)
    if tuned.warning:
        logger.warning("quality.json was chosen by a %s", tuned.warning)
    scored: dict[Level, Scored] = {level: getattr(tuned, level) for level in levels}
    return {level: each.sampling for level, each in scored.items()}
