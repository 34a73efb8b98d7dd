"""Step caching by a list of calls: for the U and for networks without skips, with guidance, by memory or forecast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import TINY, perturb, same_bits, snapshot
from udit.assemble import System
from udit.diffusion.cache import Memory, StepCache
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import sample
from udit.errors import UserError
from udit.models.build import compile_blocks
from udit.run.system import SystemConfig

SPARSE = (0, 3, 5)
EVERY = tuple(range(8))
DIT = {"width": 16, "heads": 2, "depth": 4, "in_channels": 1, "num_classes": 5, "input_size": 8}


class Counted(nn.Module):
    """A network in parts that records the size of each batch at its ends and in its deep part."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.entered, self.deepened = network, [], []
        self.condition, self.leave = network.condition, network.leave

    def enter(self, x: Tensor, cond: object) -> tuple[Tensor, object]:
        self.entered.append(len(x))
        return self.network.enter(x, cond)

    def deep(self, x: Tensor, cond: object) -> Tensor:
        self.deepened.append(len(x))
        return self.network.deep(x, cond)


@pytest.fixture(params=["U-DiT", "one level", "DiT"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    udit_tiny = TINY | {"in_channels": 1, "depths": (1,) if request.param == "one level" else (1, 1, 1)}
    model = udit.build("DiT-S/2", **DIT) if request.param == "DiT" else udit.build("U-DiT-S", **udit_tiny)
    return perturb(model).eval()


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, DDPM.linear(1000), learn_sigma=True, null_label=5, num_classes=5)


def last(denoise: Denoiser | Guided, size: int = 2, **how: object) -> Tensor:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))[:size]
    return [step.x for step in sample(denoise, x, y=torch.tensor([1, 4, 3])[:size], steps=8, **how)][-1]


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("forecast", [False, True])
def test_refreshed_at_every_call_no_bit_changes(network: nn.Module, guided: bool, forecast: bool) -> None:
    plain = denoiser(network)
    denoise = Guided(plain, 3.0) if guided else plain
    cache = StepCache(refresh=EVERY, forecast=forecast, guidance=guided)
    assert torch.equal(last(denoise, cache=cache), last(denoise))


def test_deep_part_runs_at_the_named_calls_alone(network: nn.Module) -> None:
    counted = Counted(network)
    drawn = last(denoiser(counted), cache=StepCache(refresh=SPARSE))
    assert (len(counted.entered), len(counted.deepened)) == (8, len(SPARSE))
    plain = last(denoiser(network))
    assert 0 < (drawn - plain).norm() < plain.norm()


@torch.no_grad()
def test_a_network_without_skips_adds_what_its_deep_part_added(network: nn.Module) -> None:
    one, two = torch.randn(2, 1, 1, 8, 8)
    t, y = torch.tensor([500]), torch.tensor([2])
    cached = StepCache(refresh=(0,)).attach(network)
    cached(one, t, y)
    cond = network.condition(t, y)
    (early, _), (late, skips) = network.enter(one, cond), network.enter(two, cond)
    kept = network.deep(early, cond)
    joined = kept if skips is not None else late + (kept - early)
    assert torch.equal(cached(two, t, y), network.leave(joined, skips, cond))


def test_cached_guidance_runs_the_conditional_half_alone_between_refreshes() -> None:
    counted = Counted(perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1})).eval())
    last(Guided(denoiser(counted), 3.0), cache=StepCache(refresh=SPARSE, guidance=True))
    assert counted.entered == [4, 2, 2, 4, 2, 4, 2, 2]
    assert counted.deepened == [4, 4, 4]


@pytest.mark.parametrize("guidance", [False, True])
def test_guidance_that_comes_and_goes_finds_its_batch(network: nn.Module, guidance: bool) -> None:
    """Where guidance starts, everything runs; where it ends, the conditional half of the cache is still used."""
    counted = Counted(network)
    guided = Guided(denoiser(counted), 3.0, interval=(0.3, 0.75))
    last(guided, cache=StepCache(refresh=(0,), guidance=guidance))
    assert counted.deepened == [2, 4]
    assert counted.entered == ([2, 2, 4, 2, 2, 2, 2, 2] if guidance else [2, 2, 4, 4, 4, 2, 2, 2])


def test_cached_guidance_reuses_the_last_difference() -> None:
    class Drifting:
        """A network without a deep part's effect: predictions are the label times the call, then the variance."""

        def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            return (y.float() * t.float()).view(-1, 1, 1, 1).expand(-1, 2, 8, 8)

    guided = Guided(Denoiser(Drifting(), DDPM.linear(1000), learn_sigma=True, null_label=5, num_classes=5), 3.0)
    policy = StepCache(refresh=(0,), guidance=True)
    object.__setattr__(policy, "attach", lambda backbone, calls: backbone)
    held, x, y = policy.wrap(guided), torch.zeros(1, 1, 8, 8), torch.tensor([2])
    assert held(x, torch.tensor([10]), y).eps.unique().tolist() == [50 + 3 * (20 - 50)]
    assert held(x, torch.tensor([9]), y).eps.unique().tolist() == [18 + 2 * (20 - 50)]


def test_forecast_continues_the_line_of_the_last_two() -> None:
    t = torch.tensor([900.0, 900.0])
    memory = Memory(forecast=True)
    assert memory.recall(t) is None
    memory.keep(t, torch.tensor([[1.0], [2.0]]))
    assert memory.recall(t - 50).tolist() == [[1], [2]]
    memory.keep(t - 100, torch.tensor([[2.0], [0.0]]))
    assert memory.recall(t - 150).tolist() == [[2.5], [-1]]
    memory.keep(t - 100, torch.tensor([[3.0], [3.0]]))  # Heun asks twice at one time
    assert memory.recall(t - 150).tolist() == [[3], [3]]


@pytest.mark.parametrize("forecast", [False, True])
def test_an_image_is_the_same_in_any_batch_and_call(network: nn.Module, forecast: bool) -> None:
    before, attributes = snapshot(network), set(vars(network))
    denoise = Guided(denoiser(network), 2.0)
    cache = StepCache(refresh=SPARSE, forecast=forecast, guidance=True)
    three = last(denoise, 3, cache=cache)
    next(sample(denoise, torch.randn(2, 1, 8, 8), y=torch.tensor([0, 0]), steps=8, cache=cache))  # given up
    assert (last(denoise, 1, cache=cache) - three[:1]).norm() < 1e-4 * three[:1].norm()
    assert torch.equal(last(denoise, 3, cache=cache), three)
    assert same_bits(snapshot(network), before)
    assert set(vars(network)) == attributes


@pytest.mark.slow
def test_compiled_blocks_are_cached_the_same_way() -> None:
    model = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1})).eval()
    cache = StepCache(refresh=SPARSE, forecast=True, guidance=True)
    eager = last(Guided(denoiser(model), 2.0), cache=cache)
    compiled = last(Guided(denoiser(compile_blocks(model)), 2.0), cache=cache)
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


def test_generated_images_follow_the_sampling_config(network: nn.Module) -> None:
    flow = network.config.replace(learn_sigma=False)
    config = SystemConfig(model=flow, diffusion=FlowConfig(), sampling=SamplingConfig(sampler="flow-euler", steps=8))
    system = System(config, perturb(udit.build(flow)).eval())

    def drawn(batch_size: int = 4, **how: object) -> Tensor:
        sampling = config.sampling.replace(guidance=2.0, **how)
        return torch.cat(list(system.generate(range(4), [0, 1, 2, 3], sampling=sampling, batch_size=batch_size))).int()

    cached = drawn(refresh=SPARSE, forecast=True, keep_guidance=True)
    assert torch.equal(drawn(refresh=EVERY, keep_guidance=True), drawn())
    assert not torch.equal(cached, drawn())
    assert (drawn(3, refresh=SPARSE, forecast=True, keep_guidance=True) - cached).abs().max() <= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"refresh": [1, 2]}, "refresh is [1, 2]; it must start with 0"),
        ({"refresh": [0, 3, 3]}, "each entry must be larger than the one before"),
        ({"refresh": [0, 8], "steps": 8}, "refresh names evaluation 8 of 8"),
        ({"refresh": [0, 4], "cache": 2}, "cache is 2 and refresh names evaluations"),
        ({"forecast": True}, "forecast needs cached steps"),
        ({"keep_guidance": True}, "keep_guidance needs cached steps"),
    ],
)
def test_impossible_settings_are_refused(values: dict, said: str, one_line: Callable) -> None:
    with pytest.raises(UserError) as caught:
        SamplingConfig().replace(**values)
    assert said in one_line(caught.value)


def test_impossible_policies_are_refused(one_line: Callable) -> None:
    for values, said in (
        ({"interval": 0}, "cache interval is 0"),
        ({"interval": 2, "refresh": (0, 1)}, "calls are named as well"),
        ({"refresh": (2, 5)}, "they must start with 0"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            StepCache(**values)
        one_line(caught.value)
