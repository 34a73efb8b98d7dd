"""Runs whose training steps ``bench`` times on a recipe's images; free of torch, so that errors are reported early."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from udit.run.config import Run
from udit.run.recipes import load_run
from udit.run.resolve import resolve


def runs_on_data(
    recipe: str,
    overrides: Sequence[str],
    models: Sequence[str],
    fields: Mapping[str, Any],
    batch_sizes: Sequence[int],
    workers: Sequence[int],
) -> dict[str, list[Run]]:
    """For each model, a run on the recipe's data for every batch size and number of reading processes.

    Args:
        recipe: a shipped recipe's name or a YAML file.
        overrides: KEY.PATH=VALUE of its data, codec or latents.
        models: names of the catalogue.
        fields: of their configs.
        batch_sizes: of a training step.
        workers: numbers of reading processes.

    Raises:
        UserError: no such recipe, key or model, or values that do not fit.
    """
    given = load_run(recipe, list(overrides))
    values = {"name": given.name, "data": given.data, "codec": given.codec, "latents": given.latents}
    return {
        name: [
            resolve(
                values | {"model": {"name": name, **fields}, "training": {"batch_size": count, "workers": processes}}
            )
            for count, processes in itertools.product(batch_sizes, workers)
        ]
        for name in models
    }
