"""The first losses of every family at a fixed seed: a refactor that keeps the numerics keeps these.

They are exact on the processor and the torch that recorded them, and agree to rounding elsewhere. To record anew, after
a change that is meant to change them: ``python tests/test_losses.py``, one thread.
"""

from __future__ import annotations

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from udit.data.batches import batches
from udit.data.sources import split
from udit.dist import World
from udit.models.catalog import CATALOG
from udit.run.recipes import load_run
from udit.training.learner import Learner

RECORD = Path(__file__).parent / "data" / "losses.json"
CASES = {name: [f"model={name}"] for name in CATALOG if name.endswith("-tiny")}
CASES |= {"HDiT-tiny, EDM": ["model=HDiT-tiny", "diffusion.kind=edm"], "DiT-tiny, DDPM": ["model=DiT-tiny"]}
CASES["DiT-tiny, DDPM"] += ["diffusion.kind=ddpm", "model.learn_sigma=true"]
STEPS = 5


@cache
def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def machine() -> dict[str, str]:
    """What rounding depends on."""
    return {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def losses(case: str) -> list[float]:
    """Losses of the first steps of the digits recipe, at its full rate: heads that start at zero soon do not."""
    run = load_run("digits", [*CASES[case], "training.lr_warmup=0"])
    source = run.data.build()
    part = split(source.labels, source.names, run.data.judge_share, run.data.test_share).train
    learner = Learner(run, World())
    learner.share(0)
    stream = batches(source, part, seed=run.seed, start=0, stop=STEPS, global_batch=run.training.batch_size)
    return [learner.step(step, micro).loss for step, micro in enumerate(stream)]


@pytest.mark.parametrize("case", CASES)
def test_first_losses_are_the_recorded_ones(case: str) -> None:
    expected, found = recorded()["losses"][case], losses(case)
    if machine() == recorded()["machine"]:
        assert found == expected
    # The first loss knows rounding only; later ones follow Adam, whose first steps take a gradient's sign.
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found == pytest.approx(expected, rel=1e-4)


def test_every_record_has_its_case() -> None:
    assert set(recorded()["losses"]) == set(CASES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = {"machine": machine(), "losses": {case: losses(case) for case in CASES}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
