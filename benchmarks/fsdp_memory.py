"""What each rank keeps of a model whose weights are split (FSDP2), for several numbers of ranks.

    python benchmarks/fsdp_memory.py [--model U-DiT-L] [--ranks 1 2 4 8 64] [--json FILE]

The network is built on the meta device and split by the code that trains it, over a process group that sends nothing;
what is counted are the shapes of the largest rank's parts. Nothing is allocated, so it takes seconds at any size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from udit import sharding
from udit.dist import World
from udit.models.build import configure
from udit.training.ema import EMA

COLUMNS = ("weights", "gradients", "moments", "average", "in all", "gathered")


def kept(model: str, ranks: int) -> dict[str, Any]:
    """Bytes on the first rank, which has the largest parts.

    Args:
        model: of the catalogue.
        ranks: that split it.
    """
    config = configure(model)
    with torch.device("meta"):
        network = config.build()
    largest = max(_bytes(block.parameters()) for block in sharding.blocks_of(network))
    root = _bytes(network.parameters()) - sum(_bytes(block.parameters()) for block in sharding.blocks_of(network))
    if ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        sharding.shard(network, sharding.mesh_of(World(0, ranks), None, 60))
    weights = _bytes(network.parameters())
    average = _bytes(EMA(network).model.parameters())
    if ranks > 1:
        dist.destroy_process_group()
    sizes = {"weights": weights, "gradients": weights, "moments": 2 * weights, "average": average}
    gathered = (
        root + 3 * largest if ranks > 1 else 0
    )  # two blocks' weights and one's gradients, as udit.training.memory
    return {"ranks": ranks, **sizes, "in all": sum(sizes.values()), "gathered": gathered}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, in GB."""
    lines = ["| ranks | " + " | ".join(COLUMNS) + " |", "|" + "---:|" * (len(COLUMNS) + 1)]
    lines += [f"| {row['ranks']} | " + " | ".join(f"{row[name] / 1e9:.2f}" for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _bytes(tensors: Iterable[Tensor]) -> int:
    parts = [sharding.local(tensor.detach()) for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="U-DiT-L")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 64])
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    rows = [kept(words.model, ranks) for ranks in words.ranks]
    sys.stdout.write(table(rows) + "\n")
    if words.json:
        text = json.dumps({"model": words.model, "torch": torch.__version__, "rows": rows}, indent=1)
        words.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
