"""ADM: numbers of the official program, published keys and sizes, its variants, and the errors of its config."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import udit
from conftest import DATA, batch, perturb
from peers import assert_golden, golden_input, golden_model, learns
from udit.errors import UserError
from udit.models.adm.config import ADMConfig
from udit.nn.conv import ResidualAttention

GOLDEN = json.loads((DATA / "adm-goldens.json").read_text())
TINY: dict[str, Any] = {
    "width": 32,
    "channel_mult": (1, 2),
    "res_blocks": 1,
    "attention_factors": (2,),
    "head_channels": 16,
    "in_channels": 1,
    "num_classes": 5,
    "input_size": 8,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale_shift_norm": False, "resblock_updown": False},
    {"head_channels": None, "heads": 2, "decoder_heads": 4, "attention_factors": (1,)},
    {"qkv_order": "legacy", "channel_mult": (2, 1, 3), "res_blocks": 2},
]


@torch.no_grad()
@pytest.mark.parametrize("order", ["new", "legacy"])
def test_official_output(order: str) -> None:
    config = ADMConfig(**{**TINY, "in_channels": 3, "num_classes": 10, "input_size": 16, "qkv_order": order})
    out = golden_model(config)(golden_input(2, 3, 16, 16), torch.tensor([7, 803]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN[f"adm-tiny new_attention_order={order == 'new'}"])


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_learn_through_every_parameter(changes: dict[str, Any]) -> None:
    model = udit.build("ADM-64", **{**TINY, **changes})
    before, after = learns(model, torch.tensor([0, 4, 2]))
    assert after < before
    assert sorted(name for name, _ in model.config.published_keys().values()) == sorted(model.state_dict())


def test_resampling_convolutions_have_the_release_s_names() -> None:
    keys = ADMConfig(**{**TINY, "resblock_updown": False}).published_keys()
    assert keys["input_blocks.2.0.op.weight"] == ("down.0.conv.weight", (32, 32, 3, 3))
    assert keys["output_blocks.1.2.conv.bias"] == ("up.0.conv.bias", (64,))


def test_initial_output_is_zero_and_layers_start_from_torch_s_default() -> None:
    model = udit.build("ADM-64", **TINY)
    assert not model(*batch(model)).any()
    block = model.encoder[1].blocks[0]
    assert not block.conv_out.weight.any()
    for tensor in (block.conv_in.weight, block.conv_in.bias):
        bound = 1 / math.sqrt(32 * 9)
        assert 0.9 * bound < tensor.abs().max() <= bound
        assert abs(tensor.std().item() * math.sqrt(3) / bound - 1) < 0.2
    assert model.conditioner.label.weight.std().item() == pytest.approx(1, rel=0.1)


@torch.no_grad()
def test_orders_of_the_projection_are_permutations_of_each_other() -> None:
    new, legacy = (perturb(nn.Module.to(ResidualAttention(32, 2, legacy=flag), "cpu")) for flag in (False, True))
    rows = torch.arange(96).view(3, 2, 16).transpose(0, 1).flatten()  # heads in front of queries, keys, values
    legacy.load_state_dict(
        {key: value[rows] if key.startswith("qkv") else value for key, value in new.state_dict().items()}
    )
    x = torch.randn(2, 4, 6, 32)
    torch.testing.assert_close(legacy(x), new(x))


@torch.no_grad()
def test_a_null_class_stands_in_for_no_label_where_the_model_has_one() -> None:
    model = perturb(udit.build("ADM-64", **TINY, null_class=True))
    assert model.config.null_label == 5
    x, t, y = batch(model)
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))


def test_released_models_need_labels(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("ADM-64", **TINY)
    assert model.config.null_label is None
    x, t, _ = batch(model)
    with pytest.raises(UserError, match="no null class") as error:
        model(x, t)
    one_line(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 48}, "multiple of 32"),
        ({"heads": 2}, "give one, and null for the other"),
        ({"decoder_heads": 2}, "set decoder_heads to null"),
        ({"head_channels": 24}, "choose a divisor"),
        ({"attention_factors": (4,)}, "attention_factors has 4"),
        ({"input_size": 9}, "multiples of 2"),
        ({"num_classes": 0, "null_class": True}, "num_classes is 0"),
        ({"qkv_order": "old"}, "qkv_order is 'old'"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, Any], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("ADM-64", **{**TINY, **changes})
    assert words in one_line(error.value)
