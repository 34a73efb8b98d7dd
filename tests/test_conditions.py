"""What a network derives from time and label alone is computed once per sampling call, and looked up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import TINY, perturb
from udit.assemble import System
from udit.diffusion import conditions
from udit.diffusion.conditions import PrecomputedConditions, gather
from udit.diffusion.config import DDPMConfig, EDMConfig, FlowConfig, SamplingConfig
from udit.nn.conditioning import Modulation
from udit.run.system import SystemConfig


@pytest.fixture
def network() -> nn.Module:
    return perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05).eval()


def system(network: nn.Module, diffusion: FlowConfig | DDPMConfig | EDMConfig, **how: object) -> System:
    sampling = SamplingConfig(sampler=diffusion.samplers()[-1]).replace(**how)
    return System(SystemConfig(model=network.config, diffusion=diffusion, sampling=sampling), network)


@torch.no_grad()
def test_rows_are_those_of_the_network(network: nn.Module) -> None:
    times = torch.tensor([0.0, 400.0, 900.0])
    known = PrecomputedConditions(network, times, [1, 3, 5])
    network.condition = None  # nothing is computed any more
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([3, 5, 1, 3])
    found = known(x, torch.full((4,), 400.0), y)
    del network.condition
    torch.testing.assert_close(found, network(x, torch.full((4,), 400.0), y))
    other = torch.full((4,), 401.0)
    torch.testing.assert_close(known(x, other, y), network(x, other, y))


def test_gathering_keeps_the_tree() -> None:
    tree = [(Modulation(*torch.arange(9).view(3, 3)), [torch.arange(6).view(3, 2)])]
    [(modulation, [rows])] = gather(tree, torch.tensor([2, 2, 0]))
    assert isinstance(modulation, Modulation)
    assert modulation.gate.tolist() == [8, 8, 6]
    assert rows.tolist() == [[4, 5], [4, 5], [0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [FlowConfig(), DDPMConfig(), EDMConfig()], ids=lambda config: config.kind)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_images_are_the_same_and_conditions_computed_once(
    network: nn.Module, diffusion: FlowConfig, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    make = network.condition

    def condition(t: Tensor, y: Tensor | None = None) -> object:
        asked.append(len(t))
        return make(t, y)

    network.condition = condition
    drawn = system(network, diffusion, steps=3, guidance=guidance, guidance_interval=[0.0, 0.8])

    def images(labels: list[int] | None) -> Tensor:
        asked.clear()
        return torch.cat(list(drawn.generate(range(5), labels, batch_size=2))).int()

    labels = [1, 4, 4, 1, 2]
    for given in (labels, None):
        with monkeypatch.context() as patch:
            patch.setattr(conditions, "MAX_ROWS", 0)
            plain = images(given)
            assert len(asked) == 3 * 3  # batches and steps
        assert (images(given) - plain).abs().max() <= 1
        assert asked == [3 * (1 if given is None else 3 + (guidance != 1))]
