"""What every backbone promises, held to tiny twins of U-DiT's peers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import perturb, same_bits, snapshot
from udit.config.hdit import AxialWindow, HourglassLevel, Mapping
from udit.config.run import model_from
from udit.diffusion.cache import StepCache
from udit.models.build import checkpoint_activations

COMMON: dict[str, Any] = {"in_channels": 1, "num_classes": 5, "input_size": 8}
ISOTROPIC: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2}
TWINS: dict[str, dict[str, Any]] = {
    "DiT-S/2": ISOTROPIC,
    "SiT-S/2": ISOTROPIC,
    "Skip-DiT-XL/2": {**ISOTROPIC, "shallow": 1},
    "U-ViT-L/2": {**ISOTROPIC, "shallow": 1},
    "DiC-S": {"width": 8, "depths": (2, 1, 2)},
    "ADM-64": {"width": 32, "channel_mult": (1, 2), "res_blocks": 1, "attention_factors": (2,), "head_channels": 16},
    "HDiT-cifar10": {
        "patch": 1,
        "stages": (
            HourglassLevel(width=16, depth=2, head_channels=8, attention=AxialWindow(size=4)),
            HourglassLevel(width=32, depth=1, head_channels=16),
        ),
        "mapping": Mapping(depth=1, width=16),
    },
    "DiMSUM-L/2": {**ISOTROPIC, "attention_every": 2, "fusion_heads": 2, "states": 4},
}

SKIPLESS = ("DiT-S/2", "SiT-S/2", "DiMSUM-L/2")  # these refuse a cache, see test_skipdit
ONE_SIZE = ("U-ViT-L/2", "DiMSUM-L/2")  # their learned positions refuse other sizes, see test_uvit, test_dimsum


@pytest.fixture(params=TWINS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return perturb(udit.build(request.param, **COMMON, **TWINS[request.param]))


def inputs(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 1.0, 20.0]) if model.config.time == "sigma" else torch.tensor([3, 500, 999])
    return x, t, torch.tensor([0, 4, 2])


def test_config_survives_json(model: nn.Module) -> None:
    assert model_from(json.loads(json.dumps(model.config.model_dump(mode="json")))) == model.config


@torch.no_grad()
def test_modes_and_fusing_leave_weights_and_outputs_alone(model: nn.Module) -> None:
    before, out = snapshot(model), model.train()(*inputs(model))
    assert torch.equal(model.eval()(*inputs(model)), out)
    fused = udit.fuse(model)
    assert torch.equal(fused(*inputs(model)), out)
    assert same_bits(before, snapshot(model))
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in model.parameters()}


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model: nn.Module) -> None:
    together = model(*inputs(model))
    alone = torch.cat([model(*(part[i : i + 1] for part in inputs(model))) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * together.abs().max().item())


@torch.no_grad()
def test_half_precision_stays_near(model: nn.Module) -> None:
    x, t, y = inputs(model)
    exact = model(x, t, y)
    half = copy.deepcopy(model).bfloat16()(x.bfloat16(), t, y).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x, t, y).float()
    for near in (half, mixed):
        assert (near - exact).norm() < 0.1 * exact.norm()


def test_recomputed_activations_give_the_same_gradients(model: nn.Module) -> None:
    def gradients(recompute: bool) -> list[Tensor]:
        model.zero_grad()
        checkpoint_activations(model, recompute)
        model.train()(*inputs(model)).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.parametrize("model", [name for name in TWINS if name not in SKIPLESS], indirect=True)
@torch.no_grad()
def test_cached_steps_see_the_present_input(model: nn.Module) -> None:
    x, t, y = inputs(model)
    cached = StepCache(2, final_time=0.0).attach(model.eval())
    assert torch.equal(cached(x, t, y), model(x, t, y))
    second = cached(1.1 * x, t, y)
    assert not torch.equal(second, model(1.1 * x, t, y))  # the deep part is the first step's
    assert not torch.equal(second, model(x, t, y))
    assert torch.equal(cached(x, t, y), model(x, t, y))


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_takes_any_batch(model: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model.eval(), inputs(model), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    two = tuple(part[:2] for part in inputs(model))
    torch.testing.assert_close(program.module()(*two), model(*two))


@pytest.mark.parametrize("model", [name for name in TWINS if name not in ONE_SIZE], indirect=True)
@torch.no_grad()
def test_other_sizes_and_rectangles_run(model: nn.Module) -> None:
    _, t, y = inputs(model)
    assert model(torch.randn(3, 1, 8, 16), t, y).shape[2:] == (8, 16)
