"""The `udit sample` command that draws what the page drew."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udit.checkpoint import CheckpointStore
from udit.diffusion.config import SamplingConfig
from udit.interpolation import Between
from udit.studio.drawing import Drawing
from udit.studio.place import Choice

NO_OPTION = {"clip", "refresh", "forecast", "keep_guidance"}
"""Fields of a setting that the command takes from the model alone."""


def command_of(
    choice: Choice, weights: str, own: SamplingConfig, request: Drawing, weaker: Choice | float | None = None
) -> str:
    """The command, of the options that differ from the model's own setting; empty where the command lacks one.

    Args:
        choice: what was drawn from.
        weights: ema or raw.
        own: the model's setting.
        request: what was drawn.
        weaker: what guidance compared with, or the length of an EMA of the run.
    """
    points = (*request.seeds, *(request.labels or ()))
    if request.start is not None or any(isinstance(point, Between) for point in points):
        return ""
    changed = [key for key, value in request.sampling.model_dump().items() if value != getattr(own, key)]
    prompts = [*dict.fromkeys(request.prompts or ())]
    if set(changed) & NO_OPTION or len(prompts) > 1 or (isinstance(weaker, int | float) and choice.step is not None):
        return ""
    words = ["udit", "sample", _source(choice)]
    for option, text in (("--prompt", "".join(prompts)), ("--negative", request.negative)):
        words += [option, text] if text else []
    if isinstance(weaker, Choice):
        words += ["--autoguide", _source(weaker)]
    elif weaker is not None:
        words += ["--autoguide-ema", f"{weaker:g}"]
    if request.labels is not None:
        words += ["--labels", ",".join(map(str, request.labels[: request.columns]))]
    words += ["--seeds", _ranges(request.seeds)]
    for key in changed:
        value = getattr(request.sampling, key)
        words += [f"--{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    words += ["--weights", weights] if weights != "ema" else []
    return shlex.join(words)


def _source(choice: Choice) -> str:
    """A model, a run, or the folder of one of its checkpoints."""
    if choice.step is None or not Path(choice.source, "run.yaml").is_file():
        return choice.source
    return str(CheckpointStore(Path(choice.source, "checkpoints")).path(choice.step))


def _ranges(seeds: Sequence[Any]) -> str:
    """``0-3`` for 0, 1, 2, 3; other seeds one by one."""
    whole = all(b == a + 1 for a, b in itertools.pairwise(seeds)) and len(seeds) > 2
    return f"{seeds[0]}-{seeds[-1]}" if whole else ",".join(map(str, seeds))
