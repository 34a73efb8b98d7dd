"""What a rank keeps falls with the number of ranks that split a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pages import DOCS, ROOT
from runs import RECIPE
from udit.run.recipes import load_run
from udit.training.memory import estimate

WORDS = ["training.parallel=fsdp", "training.batch_size=16"]


def test_page_has_the_recorded_table() -> None:
    rows = json.loads((DOCS / "results" / "fsdp-memory.json").read_text())["rows"]
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    names = ("weights", "gradients", "moments", "average", "in all", "gathered")
    for row in rows:
        assert f"| {row['ranks']} | " + " | ".join(f"{row[name] / 1e9:.2f}" for name in names) + " |" in page


def test_recorded_memory_of_u_dit_l_falls_with_ranks() -> None:
    rows = json.loads((DOCS / "results" / "fsdp-memory.json").read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8, 64]
    for row in rows:
        assert row["in all"] == pytest.approx(rows[0]["in all"] / row["ranks"], rel=0.05)


@pytest.mark.slow
def test_what_ranks_keep_is_counted_on_the_meta_device() -> None:
    """In a process of its own, as a process group that sends nothing stays in the one that makes it."""
    words = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "fsdp_memory.py"), "--model", "U-DiT-tiny"]
    said = subprocess.run([*words, "--ranks", "1", "2", "4"], capture_output=True, text=True, check=True).stdout
    assert [line.split(" | ")[0] for line in said.splitlines()[2:]] == ["| 1", "| 2", "| 4"]


@pytest.mark.slow
def test_estimate_falls_with_ranks_and_knows_what_is_gathered() -> None:
    whole = estimate(load_run(RECIPE, ["training.batch_size=16"]), ranks=1)
    found = [estimate(load_run(RECIPE, WORDS), ranks=ranks) for ranks in (2, 4, 8)]
    for ranks, memory in zip((2, 4, 8), found, strict=True):
        # parts are rounded up to whole rows, of which small tensors have few
        assert whole.weights / ranks <= memory.weights < 1.4 * whole.weights / ranks
        assert (memory.gradients, memory.optimizer) == (memory.weights, 2 * memory.weights)
        assert 0 < memory.gathered < 3 * whole.weights
    assert found[0].total > found[1].total > found[2].total
    one = estimate(load_run(RECIPE, [*WORDS, "training.shards=2"]), ranks=4)
    assert one.weights == found[0].weights
