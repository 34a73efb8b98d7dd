"""The images behind a validation loss are those of all classes, and the same ones all through a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runs import small_run
from udit.assemble import System
from udit.data.sources import InMemory
from udit.models.build import build
from udit.run.system import SystemConfig
from udit.training import preview
from udit.training.preview import spread, validation_loss

SORTED = np.repeat(np.arange(10), 103)
"""Labels as a folder lists them."""


def test_images_of_a_validation_are_spread_evenly_over_sorted_classes() -> None:
    part = np.arange(2000, 3030)
    taken = spread(part, 256, seed=0)
    assert len(set(taken)) == 256
    counts = np.bincount(SORTED[taken - 2000], minlength=10)
    assert counts.min() >= 25
    assert counts.max() <= 26
    assert set(np.diff(taken)) == {4, 5}


@pytest.mark.parametrize("seed", range(20))
def test_seed_decides_which_and_never_leaves_the_part(seed: int) -> None:
    part = np.arange(5, 305)
    taken = spread(part, 256, seed)
    assert np.array_equal(taken, spread(part, 256, seed))
    assert len(set(taken)) == 256
    assert set(taken) <= set(part)
    assert np.array_equal(spread(part, 300, seed), part)
    assert len({tuple(spread(part, 100, other)) for other in range(20)}) > 1


def test_validation_loss_is_of_the_spread_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "VALIDATION_SIZE", 6)
    run = small_run(tmp_path)
    system = System(SystemConfig.of(run, 1), build(run.model))
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    source = InMemory(pixels, np.repeat(np.arange(10), 4), [str(i) for i in range(40)])
    part = np.arange(40)
    of_all = validation_loss(system, source, part, seed=3)
    assert of_all == validation_loss(system, source, spread(part, 6, 3), seed=0)
    assert of_all != validation_loss(system, source, part[:6], seed=3)


def test_pictures_leave_a_notebooks_figures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training in a notebook must not change where figures of the cells after it go."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    from udit.run.recipes import load_run
    from udit.training import objective_plot

    monkeypatch.setattr(objective_plot, "DRAWS", 64)
    before = mpl.get_backend()
    mpl.use("svg")
    try:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "val_loss": 1.5}\n')
        preview.save_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
        objective_plot.save_objective(load_run("digits", []), tmp_path / "objective.png")
        assert mpl.get_backend() == "svg"
        assert plt.get_fignums() == []
    finally:
        mpl.use(before)
    for name in ("loss.png", "objective.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
