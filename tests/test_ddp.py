"""Several ranks of which each has all weights: a resumed run ends at the bits of an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch.nn.parallel import DistributedDataParallel

from ranks import on_ranks
from runs import small_run, state_hash
from udit.dist import World
from udit.training import parallel
from udit.training.trainer import Trainer

WORDS = ("training.batch_size=6", "training.save_every=2")


class SmallBuckets(DistributedDataParallel):
    """Many buckets for a small network, as a large one has."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, bucket_cap_mb=0.02, **more)


def trained(world: World, out: Path) -> dict[str, str]:
    """Hashes of an unbroken run and of one that was begun twice, on rank 0."""
    found = {}
    with mock.patch.object(parallel, "DistributedDataParallel", SmallBuckets):
        for name, stops in (("unbroken", (4,)), ("resumed", (2, 4))):
            for steps in stops:
                run = small_run(out / name, *WORDS, f"training.steps={steps}")
                Trainer(run, world).train(progress=False)
            found[name] = state_hash(out / name) if world.is_main else ""
    return found


@pytest.mark.slow
def test_resumed_runs_of_three_ranks_end_at_the_same_bits(tmp_path: Path) -> None:
    """A sum of three depends on its order, which is that of DDP's buckets."""
    found = on_ranks(3, trained, tmp_path)[0]
    assert found["resumed"] == found["unbroken"]
