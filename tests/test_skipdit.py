"""Skip-DiT: numbers of the official program, published keys and size, and cached sampling."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from peers import assert_golden, golden_input, golden_model
from udit.diffusion.cache import StepCache
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import sample
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.skipdit.config import SkipDiTConfig

GOLDEN = json.loads((DATA / "skipdit-goldens.json").read_text())
TINY = {"width": 16, "depth": 6, "heads": 2, "in_channels": 1, "num_classes": 5, "input_size": 8, "shallow": 1}
XL = find("Skip-DiT-XL/2").config


@torch.no_grad()
def test_official_output() -> None:
    config = SkipDiTConfig(width=32, depth=4, heads=4, num_classes=10, input_size=8)
    out = golden_model(config)(golden_input(2, 4, 8, 8), torch.tensor([7, 803]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN["skipdit-tiny depth4"])


@torch.no_grad()
def test_a_cached_step_costs_what_the_release_says() -> None:
    model = udit.build(XL, device="meta")
    x, t, y = torch.empty(1, 4, 32, 32, device="meta"), torch.empty(1, device="meta"), torch.zeros(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        cond = model.condition(t, y.long())
        x, skips = model.enter(x, cond)
        model.leave(x, skips, cond)
    # ``condition`` computes the modulations of the 20 blocks between, too; the release does not
    ahead = 20 * 6 * XL.width**2
    assert round((counter.get_total_flops() / 2 - ahead) / 1e9, 3) == 36.623


def test_starts_as_the_release_does() -> None:
    model = udit.build("Skip-DiT-XL/2", **TINY)
    assert not model(*batch(model)).any()
    for join in model.joins:
        assert (join.norm.weight == 1).all()
        assert not join.norm.bias.any()
        for tensor in (join.mix.weight, join.mix.bias):  # uniform within 1 / sqrt(inputs)
            assert 0.6 / 32**0.5 < tensor.abs().max().item() <= 1 / 32**0.5


# ---- cached sampling -----------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A network in parts that counts how often its deep part runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.condition, self.enter, self.leave = network.condition, network.enter, network.leave
        self.network, self.runs = network, 0

    def deep(self, x: Tensor, cond: object) -> Tensor:
        self.runs += 1
        return self.network.deep(x, cond)


@pytest.fixture
def network() -> nn.Module:
    return perturb(udit.build("Skip-DiT-XL/2", **TINY)).eval()


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, DDPM.linear(1000), learn_sigma=True, null_label=5, num_classes=5)


def last(denoise: Denoiser | Guided, size: int = 2, **how: object) -> Tensor:
    x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [step.x for step in sample(denoise, x, y=torch.tensor([1, 4, 3])[:size], **how)][-1]


@torch.no_grad()
def test_deep_part_runs_every_third_call_and_in_full_near_the_end(network: nn.Module) -> None:
    counted = Counted(network)
    cached = StepCache(3).attach(counted)
    ran = []
    for time in (950, 700, 450, 200, 20, 10, 0, 900):
        before = counted.runs
        cached(torch.randn(1, 1, 8, 8), torch.tensor([time]), torch.tensor([0]))
        ran.append(counted.runs - before)
    assert ran == [1, 0, 0, 1, 0, 1, 1, 1]  # the call at 20 is cached, and forgets


@torch.no_grad()
def test_cached_call_joins_the_present_ends_to_the_kept_middle(network: nn.Module) -> None:
    cached = StepCache(2).attach(network)
    one, two = torch.randn(2, 1, 1, 8, 8)
    early, late, y = torch.tensor([800]), torch.tensor([700]), torch.tensor([2])
    cached(one, early, y)
    cond = network.condition(early, y)
    kept = network.deep(network.enter(one, cond)[0], cond)
    cond = network.condition(late, y)
    expected = network.leave(kept, network.enter(two, cond)[1], cond)
    assert torch.equal(cached(two, late, y), expected)
    assert not torch.allclose(expected, network(two, late, y), atol=1e-4)


def test_interval_one_changes_no_bit_and_more_changes_the_image(network: nn.Module) -> None:
    plain = last(denoiser(network), steps=6)
    assert torch.equal(last(denoiser(network), steps=6, cache=StepCache(1)), plain)
    assert not torch.equal(last(denoiser(network), steps=6, cache=StepCache(3)), plain)


def test_a_run_leaves_nothing_behind(network: nn.Module) -> None:
    before = snapshot(network)
    attributes = set(vars(network))
    first = last(denoiser(network), steps=5, cache=StepCache(3, final_time=-1))
    halfway = sample(denoiser(network), torch.randn(3, 1, 8, 8), y=None, steps=5, cache=StepCache(3))
    next(halfway)  # given up
    assert torch.equal(last(denoiser(network), steps=5, cache=StepCache(3, final_time=-1)), first)
    assert same_bits(snapshot(network), before)
    assert set(vars(network)) == attributes


def test_an_image_is_the_same_in_any_batch(network: nn.Module) -> None:
    """To a fiftieth of a level of 255: products of other sizes round differently, and five steps amplify that."""
    two = last(denoiser(network), steps=5, cache=StepCache(2))
    level = 2 / 255
    torch.testing.assert_close(
        last(denoiser(network), 1, steps=5, cache=StepCache(2)), two[:1], atol=level / 50, rtol=0
    )


def test_guidance_that_starts_midway_restarts_the_cache(network: nn.Module) -> None:
    counted = Counted(network)
    guided = Guided(denoiser(counted), 3.0, interval=(0.0, 0.5))
    last(guided, steps=10, cache=StepCache(100, final_time=-1))
    assert counted.runs == 2  # once for the plain batch, once for the doubled one


def test_what_has_no_parts_is_refused(one_line: Callable[[BaseException], str]) -> None:
    with pytest.raises(UserError, match="function has no deep part to cache") as caught:
        StepCache(2).attach(lambda x, t, y=None: x)
    one_line(caught.value)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [({"depth": 5}, "depth 5 is odd"), ({"width": 18}, "e.g. 16"), ({"shallow": 0}, "shallow is 0")],
)
def test_configs_that_cannot_be_built(
    overrides: dict[str, int], text: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as caught:
        udit.build("Skip-DiT-XL/2", **{**TINY, **overrides})
    assert text in one_line(caught.value)
