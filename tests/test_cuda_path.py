"""What runs on a CUDA GPU, followed without one: fake tensors claim the device, and have shapes but no contents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import quick
from udit.diffusion.cache import StepCache
from udit.diffusion.conditions import PrecomputedConditions
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import EDM
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import make_sampler
from udit.diffusion.schedule import Schedule
from udit.models.catalog import CATALOG
from udit.models.config import ModelConfig

TINY = [name for name in CATALOG if name.endswith("-tiny")]
JOINT = {"MMDiT-tiny"}
"""Whose blocks see image and text as parts of one sequence, so that neither lies by itself."""


def inputs(config: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """x, t and, of a conditional network, y."""
    x = torch.empty(batch, *config.input_shape())
    t = torch.zeros(batch, dtype=torch.long if config.time == "index" else torch.float32)
    shape = config.condition_shape
    if shape is None:
        return x, t
    return x, t, torch.zeros(batch, *shape, dtype=torch.float32 if shape else torch.long)


@pytest.mark.parametrize("name", quick(name for name in TINY if name not in JOINT))
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


class Reads(TorchDispatchMode):
    """Notes where the host would wait for the device: values that it reads, and blocking copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_cuda:
            self.found.append(name)
            return 1.0 if args[0].is_floating_point() else 1
        try:
            made = func(*args, **(kwargs or {}))
        except DataDependentOutputException:  # of the host's own, without contents
            return 0
        if name in ("_to_copy", "copy_") and args[0].is_cuda != made.is_cuda and not (kwargs or {}).get("non_blocking"):
            self.found.append(name)
        return made


SAMPLED: dict[str, tuple[Schedule, dict[str, Any]]] = {
    "ddpm": (DDPM.linear(1000), {}),
    "ddim": (DDPM.linear(1000), {"interval": (0.2, 0.8)}),
    "flow-heun": (Flow(), {"interval": (0.2, 0.8)}),
    "flow-sde": (Flow(), {"levels": (0.1, 10.0)}),
    "edm-heun": (EDM(), {"interval": (0.2, 0.8)}),
}


@pytest.mark.parametrize("sampler", quick(SAMPLED, ("ddim",)))
@pytest.mark.parametrize("cached", [False, True])
def test_no_step_of_sampling_waits_for_the_gpu(sampler: str, cached: bool) -> None:
    """The first step may: tables are copied there, which the others find."""
    schedule, limits = SAMPLED[sampler]
    config = CATALOG["U-DiT-tiny"].config.replace(learn_sigma=False, time=schedule.time)
    cache = StepCache(2, 0.02) if cached else None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("cuda"):
            network = config.build().eval()
        backbone, time = schedule.precondition(network, config.time)
        denoiser = Denoiser(backbone, schedule, schedule.target, time=time, null_label=10, num_classes=10)
        guided = Guided(denoiser, 3.0, **limits)
        times = torch.arange(6.0, device="cuda")
        with Reads():
            ready = guided.with_network(lambda network: PrecomputedConditions(network, times, [1, 2, 10]))
        x, y = torch.empty(2, 1, 8, 8, device="cuda"), torch.tensor([1, 2], device="cuda")
        begun = cache.wrap(ready.begun()) if cache else ready.begun()
        run = make_sampler(sampler)(begun, x, 6, y, lambda k: torch.empty_like(x))
        with Reads():
            next(run)
        with Reads() as reads:
            for _ in run:
                pass
    assert reads.found == []
