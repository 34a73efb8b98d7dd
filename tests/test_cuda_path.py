"""What runs on a CUDA GPU, followed without one: fake tensors claim the device, and have shapes but no contents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from udit.models.catalog import CATALOG
from udit.models.config import ModelConfig

TINY = [name for name in CATALOG if name.endswith("-tiny")]


def inputs(config: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """x, t and, of a conditional network, y."""
    x = torch.empty(batch, config.in_channels, *config.size)
    t = torch.zeros(batch, dtype=torch.long if config.time == "index" else torch.float32)
    shape = config.condition_shape
    if shape is None:
        return x, t
    return x, t, torch.zeros(batch, *shape, dtype=torch.float32 if shape else torch.long)


@pytest.mark.parametrize("name", TINY)
def test_every_block_gets_its_map_with_channels_last(name: str) -> None:
    """Elsewhere a GPU's kernels find one value in each cache line, at half the speed."""
    config = CATALOG[name].config
    odd, seen = [], 0

    def look(block: nn.Module, given: tuple[object, ...]) -> None:
        nonlocal seen
        maps = [x for x in tree_leaves(given) if isinstance(x, Tensor)][:1]
        seen += len(maps)
        odd.extend(tuple(x.stride()) for x in maps if not x.is_contiguous())

    with FakeTensorMode(), torch.device("cuda"):
        network = config.build().train()
        for module in network.modules():
            for block in getattr(module, "blocks", ()):
                block.register_forward_pre_hook(look)
        network(*inputs(config, 2))
    assert seen
    assert not odd
