"""LightningDiT: numbers of the official program, its options, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.errors import UserError
from udit.models.catalog import find
from udit.parity import check_file
from udit.parity.network import systems

TINY = {"width": 16, "depth": 3, "heads": 2, "in_channels": 2, "num_classes": 5, "input_size": 4}
WORDS = {"width": 16, "depth": 3, "heads": 2, "patch": 1, "input_size": 4, "in_channels": 2, "time": "unit"}
WORDS |= {"classes": 5, "null_label": 5, "noise_at": 0, "learn_sigma": False, "rope": True, "shift": True}
WORDS |= {"norm": "rms, affine, eps 1e-6", "qk_norm": None, "ffn": {"kind": "swiglu", "hidden": 42}}


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "lightningdit.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "loss", "lossB", "grad_norms", "grad_normsB", "skipped_keys", "no_grad_params"} <= compared


def test_its_weights_are_those_of_a_flow_that_ends_at_the_data() -> None:
    config = find("LightningDiT-XL/1").config
    assert config.native_diffusion == {"kind": "flow"}
    assert config.reversed_flow
    assert config.out_channels == config.in_channels == 32


def test_starts_at_zero_with_norms_of_one() -> None:
    model = udit.build("LightningDiT-B/1", **TINY, qk_norm=True)
    assert not model(*batch(model)).any()
    for block in model.blocks:
        for norm in (block.norm1, block.norm2, block.attention.q_norm, block.attention.k_norm):
            assert (norm.weight == 1).all()


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"shift": False}, {"rope": False}, {"patch": 2}], ids=str)
@torch.no_grad()
def test_options_change_the_output_and_keep_the_key_map_a_bijection(options: dict[str, bool]) -> None:
    plain = perturb(udit.build("LightningDiT-B/1", **TINY))
    model = perturb(udit.build("LightningDiT-B/1", **{**TINY, **options}))
    assert not torch.allclose(model(*batch(model)), plain(*batch(plain)), atol=1e-3)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))


@torch.no_grad()
def test_normalised_queries_and_keys_ignore_their_length() -> None:
    model = perturb(udit.build("LightningDiT-B/1", **TINY, qk_norm=True)).double()
    attention = model.blocks[0].attention
    x = torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = attention(x)
    attention.qkv.weight[:32] *= 100
    attention.qkv.bias[:32] *= 100
    torch.testing.assert_close(attention(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@torch.no_grad()
def test_without_a_shift_a_block_only_scales_and_gates() -> None:
    model = perturb(udit.build("LightningDiT-B/1", **TINY, shift=False))
    one, two = model.blocks[0].condition(F.silu(model.conditioner(torch.tensor([0.5]), torch.tensor([1]))))
    assert not one.shift.any()
    assert not two.shift.any()
    scale, gate = (
        model.blocks[0].modulation(F.silu(model.conditioner(torch.tensor([0.5]), torch.tensor([1])))).chunk(4, -1)[:2]
    )
    assert torch.equal(one.scale.flatten(), scale.flatten())
    assert torch.equal(one.gate.flatten(), gate.flatten())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"width": 20, "heads": 10}, "RoPE needs a multiple of 4"),
        ({"ffn": {"kind": "mlp"}}, "swiglu"),
        ({"patch": 3}, "3x3 patches"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("LightningDiT-B/1", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_words_of_a_reference_file() -> None:
    config = systems()["lightning-dit"](dict(WORDS), (4, 4)).config
    assert (config.ffn.channels(16), config.qk_norm, config.reversed_flow) == (42, False, True)
    normed = systems()["lightning-dit"](WORDS | {"qk_norm": WORDS["norm"]}, (4, 4)).config
    assert normed.qk_norm


@pytest.mark.parametrize("word", ["norm", "qk_norm"])
def test_another_norm_is_a_one_line_error(word: str, one_line: Callable[[BaseException], str]) -> None:
    with pytest.raises(UserError, match="the file says 'layer'") as caught:
        systems()["lightning-dit"](WORDS | {word: "layer"}, (4, 4))
    one_line(caught.value)
