"""U-ViT: numbers of the official program, published keys and sizes, its conditions, and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udit
from conftest import DATA, batch, perturb
from peers import assert_golden, golden_input, golden_model, learns
from udit.convert.system import native_diffusion
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.sample import sample
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.uvit.config import UViTConfig
from udit.models.uvit.parity import u_vit
from udit.nn.specs import Context

GOLDEN = json.loads((DATA / "uvit-goldens.json").read_text())
TINY: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "in_channels": 1, "num_classes": 5, "input_size": 8}
TEXT: dict[str, Any] = {**TINY, "num_classes": 0, "context": {"tokens": 3, "width": 6}}
T, Y = torch.tensor([7, 803]), torch.tensor([3, 9])


# ---- numbers of the official program -------------------------------------------------------------------------------


def golden_config(**overrides: Any) -> UViTConfig:
    return UViTConfig(**{"width": 32, "depth": 4, "heads": 4, "input_size": 8, "num_classes": 10, **overrides})


@torch.no_grad()
def test_official_output_of_a_class() -> None:
    assert_golden(golden_model(golden_config())(golden_input(2, 4, 8, 8), T, Y), GOLDEN["uvit-tiny class"])


@torch.no_grad()
def test_official_output_without_condition_and_without_last_convolution() -> None:
    config = golden_config(num_classes=0, in_channels=3, final_conv=False)
    assert_golden(golden_model(config)(golden_input(2, 3, 8, 8), T), GOLDEN["uvit-tiny uncond noconv"])


@torch.no_grad()
def test_official_output_of_a_text() -> None:
    config = golden_config(num_classes=0, context=Context(tokens=5, width=12))
    out = golden_model(config)(golden_input(2, 4, 8, 8), T, golden_input(2, 5, 12))
    assert_golden(out, GOLDEN["uvit-tiny t2i"])


# ---- the network ---------------------------------------------------------------------------------------------------


def test_starts_from_the_published_distributions() -> None:
    model = udit.build("U-ViT-L/2", **TINY)
    assert model.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.conditioner.label.weight.std().item() == pytest.approx(1, rel=0.3)
    assert 0.25 < model.embed.weight.abs().max().item() <= 0.5  # uniform within 1 / sqrt(4 inputs), bias too
    assert 0.25 < model.embed.bias.abs().max().item() <= 0.5
    assert 0.15 < model.final.weight.abs().max().item() <= 1 / 3
    for norm in (model.norm, model.blocks[0].norm1, model.blocks[4].norm2):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
    assert not any(model.get_parameter(name).any() for name in ("blocks.2.ffn.expand.bias", "joins.0.bias", "out.bias"))


@pytest.mark.parametrize(("overrides", "y"), [(TINY, torch.tensor([0, 5, 2])), (TEXT, golden_input(3, 3, 6))])
def test_training_lowers_the_loss_through_every_parameter(overrides: dict[str, Any], y: Tensor) -> None:
    model = udit.build("U-ViT-L/2", **overrides)
    before, after = learns(model, y)
    assert after < before


@torch.no_grad()
def test_no_label_is_the_null_label() -> None:
    model = perturb(udit.build("U-ViT-L/2", **TINY))
    x, t, _ = batch(model)
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), 5)))


@torch.no_grad()
def test_runs_in_bfloat16_with_and_without_condition() -> None:
    for overrides, y in ((TINY, Y[:1]), ({**TINY, "num_classes": 0}, None), (TEXT, golden_input(1, 3, 6))):
        model = udit.build("U-ViT-L/2", **overrides)
        x = golden_input(1, 1, 8, 8)
        precise = model(x, T[:1], y)
        y = y if y is None or not y.is_floating_point() else y.bfloat16()
        out = model.bfloat16()(x.bfloat16(), T[:1], y)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), precise, atol=0.03, rtol=0.03)


def test_variance_may_be_learned() -> None:
    model = udit.build("U-ViT-L/2", **TINY, learn_sigma=True)
    assert model(*batch(model)).shape == (3, 2, 8, 8)


def test_text_model_samples_from_vectors() -> None:
    network = perturb(udit.build("U-ViT-S/2-text", **TEXT)).eval()
    first, other = (
        [step.x for step in sample(Denoiser(network, DDPM.linear()), golden_input(1, 1, 8, 8), steps=3, y=y)][-1]
        for y in (golden_input(1, 3, 6), -golden_input(1, 3, 6))
    )
    assert not torch.equal(first, other)


# ---- published weights ---------------------------------------------------------------------------------------------


def test_latent_models_keep_the_schedule_they_were_trained_on() -> None:
    schedule = native_diffusion(find("U-ViT-L/2").config).build()
    assert schedule.betas[[0, -1]] == pytest.approx([0.00085, 0.012])
    assert np.diff(np.sqrt(schedule.betas)).std() < 1e-12
    ends = torch.tensor([0, 999])
    assert schedule.network_time(ends, "index").tolist() == [1, 1000]
    assert schedule.fraction(ends)[1] == 1
    assert schedule.respaced(2).timesteps.tolist() == [1, 1000]
    assert native_diffusion(find("U-ViT-S/2").config).build().betas[-1] == pytest.approx(0.02)
    assert native_diffusion(find("SiT-S/2").config).kind == "flow"


@pytest.mark.parametrize(
    "words",
    [
        {"context": {"tokens": 77, "dim": 768}},
        {"context_dim": 768, "context_tokens": 77},
        {"context": "RandomState(seed+3).standard_normal((2, 77, 768))"},
        {"context": [77, 768]},
        {"context": None},
    ],
)
def test_reference_files_may_describe_a_text_in_their_own_words(words: dict[str, Any]) -> None:
    said = {"depth": 12, "width": 512, "heads": 8, "patch": 2, "input_size": 32, "in_channels": 4, "label_rows": 0}
    said |= {"null_label": None, "final_conv": True, "learn_sigma": False, "time": "index", **words}
    config = u_vit(said, (32, 32)).config
    assert config.context == (None if words == {"context": None} else Context(tokens=77, width=768))
    assert not said


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"depth": 3}, "depth 3 is odd"),
        ({"width": 15, "heads": 3}, "width is 15"),
        ({"context": {"tokens": 3, "width": 6}}, "num_classes is 5; set it to 0"),
        ({"input_size": 9}, "9x9 does not split into 2x2 patches"),
    ],
)
def test_configs_that_cannot_be_built(
    overrides: dict[str, Any], text: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as caught:
        udit.build("U-ViT-L/2", **{**TINY, **overrides})
    assert text in one_line(caught.value)


@pytest.mark.parametrize(
    ("overrides", "shape", "y", "text"),
    [
        (TINY, (1, 1, 16, 16), Y[:1], "an input is 16x16 and the learned positions are those of 8x8"),
        ({**TINY, "null_class": False}, (1, 1, 8, 8), None, "no null class"),
        ({**TINY, "num_classes": 0}, (1, 1, 8, 8), Y[:1], "unconditional"),
        (TEXT, (1, 1, 8, 8), None, "y is missing; the model takes vectors of shape [1, 3, 6]"),
        (TEXT, (1, 1, 8, 8), torch.zeros(1, 4, 6), "y is [1, 4, 6]"),
        (TEXT, (1, 1, 8, 8), Y[:1], "y is [1]"),
    ],
)
def test_inputs_that_cannot_run(
    overrides: dict[str, Any],
    shape: tuple[int, ...],
    y: Tensor | None,
    text: str,
    one_line: Callable[[BaseException], str],
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        udit.build("U-ViT-L/2", **overrides)(torch.zeros(shape), T[:1], y)
    one_line(caught.value)


def test_a_model_without_null_class_has_no_null_label() -> None:
    assert find("U-ViT-L/4").config.null_label is None
    assert find("U-ViT-L/2").config.null_label == 1000
    assert find("U-ViT-S/2-text").config.null_label is None
