"""DiT and SiT: numbers of the official programs, published keys and sizes, SiT's flow, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import udit
from conftest import DATA, batch, perturb
from peers import assert_golden, golden_input, golden_model
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser, mix
from udit.diffusion.flow import Flow, flow_loss
from udit.diffusion.guidance import guide
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.dit.config import DiTConfig
from udit.nn.tokens import patchify, sincos_table, unpatchify

GOLDEN = json.loads((DATA / "dit-goldens.json").read_text())
GOLDEN_CONFIG = DiTConfig(width=32, depth=2, heads=4, num_classes=10, input_size=8)
TINY = {"width": 16, "depth": 2, "heads": 2, "in_channels": 1, "num_classes": 5, "input_size": 8}
SIT_TINY = find("SiT-S/2").config.replace(**TINY)
T, Y = torch.tensor([7, 803]), torch.tensor([3, 9])


# ---- numbers of the official programs ------------------------------------------------------------------------------


@torch.no_grad()
def test_official_output() -> None:
    assert_golden(golden_model(GOLDEN_CONFIG)(golden_input(2, 4, 8, 8), T, Y), GOLDEN["dit-tiny"])


@torch.no_grad()
def test_official_output_of_guidance_over_three_channels() -> None:
    x, t = golden_input(2, 4, 8, 8)[:1], torch.tensor([803, 803])
    cond, uncond = golden_model(GOLDEN_CONFIG)(x.repeat(2, 1, 1, 1), t, torch.tensor([3, 10])).chunk(2)
    first = guide(cond, uncond, 2.5, channels=3)
    second = torch.cat([first[:, :3], uncond[:, 3:]], dim=1)  # the release leaves the other channels to each half
    assert_golden(torch.cat([first, second]), GOLDEN["dit-tiny forward_with_cfg(2.5), y=[3,10]"])


@torch.no_grad()
def test_official_output_of_sit() -> None:
    config = GOLDEN_CONFIG.replace(time="unit", learn_sigma=False, spare_outputs=True)
    out = golden_model(config)(golden_input(2, 4, 8, 8), torch.tensor([0.2, 0.9]), Y)
    assert_golden(out, GOLDEN["sit-tiny t=[.2,.9]"])


def test_official_position_table() -> None:
    table = sincos_table(4, 4, 32).view(16, 32)
    for index, row_values in zip((1, 4), GOLDEN["dit pos_embed D=32 grid=4 rows 1 and 4 (first 10)"], strict=True):
        assert table[index, : len(row_values)].tolist() == pytest.approx(row_values, abs=1e-7)


@pytest.mark.parametrize(("size", "trainable"), [("B", 130_315_808), ("L", 457_840_672), ("XL", 674_834_720)])
def test_network_holds_the_trainable_parameters(size: str, trainable: int) -> None:
    assert sum(p.numel() for p in udit.build(f"DiT-{size}/2", device="meta").parameters()) == trainable


# ---- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DiT-S/2", "SiT-S/2"])
def test_starts_at_zero_from_the_published_distributions(name: str) -> None:
    model = udit.build(name, **TINY)
    assert not model(*batch(model)).any()
    assert not any(block.modulation.weight.any() for block in model.blocks)
    bound = (6 / (16 + 48)) ** 0.5
    assert model.blocks[0].attention.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert model.conditioner.label.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.conditioner.time[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_patches_come_apart_and_together() -> None:
    x = torch.randn(2, 3, 4, 6)
    vectors = patchify(x, 2)
    assert vectors.shape == (2, 2, 3, 12)
    assert torch.equal(vectors[1, 0, 2].view(3, 2, 2), x[1, :, 0:2, 4:6])
    laid_out = vectors.unflatten(-1, (3, 4)).transpose(-1, -2).flatten(-2)  # (channel, place) to (place, channel)
    assert torch.equal(unpatchify(laid_out, 2), x)


@torch.no_grad()
def test_other_and_oblong_sizes_have_their_own_positions() -> None:
    model = perturb(udit.build("DiT-S/2", **TINY))
    x = torch.randn(1, 1, 4, 12)
    out = model(x, T[:1], Y[:1])
    assert out.shape == (1, 2, 4, 12)
    assert not torch.allclose(model(x.transpose(2, 3), T[:1], Y[:1]).transpose(2, 3), out, atol=1e-3)


@torch.no_grad()
def test_no_label_is_the_null_label() -> None:
    model = perturb(udit.build("DiT-S/2", **TINY))
    x, t, _ = batch(model)
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), 5)))


def test_recomputed_activations_give_the_same_gradients() -> None:
    from udit.models.build import checkpoint_activations

    grads = []
    for enabled in (False, True):
        model = perturb(udit.build("DiT-S/2", **TINY)).train()
        checkpoint_activations(model, enabled)
        model(*batch(model)).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# ---- published weights ---------------------------------------------------------------------------------------------


def test_export_holds_the_table_and_comes_back_the_same() -> None:
    model, other = perturb(udit.build("DiT-S/2", **TINY)), udit.build("DiT-S/2", **TINY, seed=1)
    state = udit.export_published(model)
    assert torch.equal(state["pos_embed"], sincos_table(4, 4, 16).view(1, 16, 16))
    udit.import_published(other, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_table_of_another_size_or_kind_is_refused(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiT-S/2", **TINY)
    state = udit.export_published(model)
    udit.import_published(model, {key: value.half() for key, value in state.items()})
    for changed in (state["pos_embed"] + 1e-4, torch.zeros(1, 16, 16), state["pos_embed"].flip(1)):
        with pytest.raises(UserError, match="pos_embed differs") as caught:
            udit.import_published(model, {**state, "pos_embed": changed})
        one_line(caught.value)
    with pytest.raises(UserError, match="pos_embed is"):
        udit.import_published(model, {**state, "pos_embed": sincos_table(8, 8, 16).view(1, 64, 16)})


# ---- SiT's flow ----------------------------------------------------------------------------------------------------


def test_reversed_flow_is_converted_to_the_librarys_convention() -> None:
    x0, eps, t = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.8])

    def sit(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        """A network that predicts SiT's target for the known pair: d/dt of t x0 + (1 - t) eps."""
        torch.testing.assert_close(x, time.view(-1, 1, 1, 1) * x0 + (1 - time.view(-1, 1, 1, 1)) * eps)
        return x0 - eps

    denoiser = Denoiser(sit, Flow(), target="flow", time="unit", reversed_flow=True)
    prediction = denoiser(mix(Flow(), x0, eps, t), t)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)
    assert flow_loss(denoiser, x0, t, eps).loss.max() < 1e-10


def test_reversed_flow_needs_the_flow_path(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build(SIT_TINY)
    with pytest.raises(UserError, match=r"diffusion\.kind=flow") as caught:
        Denoiser(model, DDPM.linear(10), reversed_flow=True)
    one_line(caught.value)


def test_spare_outputs_are_the_second_half_of_the_head() -> None:
    model = perturb(udit.build(SIT_TINY))
    before = model(*batch(model))
    assert before.shape == (3, 1, 8, 8)
    with torch.no_grad():
        model.out.weight.view(4, 2, 16)[:, 1] += 1
    assert torch.equal(model(*batch(model)), before)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"width": 30, "heads": 3}, "width is 30; sin-cos positions need a multiple of 4, e.g. 32"),
        ({"heads": 3}, "width 16 does not split over 3 heads"),
        ({"input_size": 9}, "9x9 does not split into 2x2 patches"),
        ({"spare_outputs": True}, "set one of them to false"),
        ({"dept": 3}, "did you mean 'depth'"),
    ],
)
def test_configs_that_cannot_be_built(
    overrides: dict[str, object], text: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as caught:
        udit.build("DiT-S/2", **{**TINY, **overrides})
    assert text in one_line(caught.value)


def test_inputs_that_cannot_run(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiT-S/2", **TINY)
    with pytest.raises(ValueError, match="7x8 does not split into 2x2 patches") as caught:
        model(torch.zeros(1, 1, 7, 8), T[:1])
    one_line(caught.value)
    with pytest.raises(ValueError, match="unconditional") as caught:
        udit.build("DiT-S/2", **{**TINY, "num_classes": 0})(torch.zeros(1, 1, 8, 8), T[:1], Y[:1])
    one_line(caught.value)
