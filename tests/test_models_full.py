"""Every row of the catalogue at full size, on the meta device; U-DiT's sizes to the digits that were published."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from udit.config.ablation import ABLATIONS
from udit.config.catalog import CATALOG

SIZES = {
    "U-DiT-S": (58_896_568, 52_045_240, "6.0208"),
    "U-DiT-B": (231_251_304, 204_425_064, "22.1793"),
    "U-DiT-L": (916_335_304, 810_188_488, "84.9093"),
    "U-DiT-S-vanilla": (51_465_992, 51_465_992, "5.893"),
    "U-DiT-B-vanilla": (203_266_568, 203_266_568, "21.924"),
    "U-DiT-L-vanilla": (807_871_496, 807_871_496, "84.398"),
}
"""As the official code has them: parameters in training and fused form, billions of MACs of the fused form at 32x32."""


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def boundary(model: nn.Module, batch: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, t and y on the meta device."""
    config = model.config
    x = torch.empty(batch, config.in_channels, *config.size, device="meta")
    shape = config.condition_shape
    dtype = torch.float32 if shape else torch.long
    y = None if shape is None else torch.empty(batch, *shape, dtype=dtype, device="meta")
    return x, torch.empty(batch, device="meta"), y


def count(model: nn.Module, batch: int = 1) -> tuple[dict[str, float], torch.Size]:
    """Billions of MACs (matrices, convolutions, attention's two products) by module; the shape of the output."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape = model(*boundary(model, batch)).shape
    counts = {name: sum(ops.values()) / 2e9 for name, ops in counter.get_flop_counts().items()}
    return counts | {"all": counter.get_total_flops() / 2e9}, shape


@cache
def fused(name: str) -> tuple[nn.Module, nn.Module, dict[str, float], torch.Size]:
    """A row's training form, its fused form, and what counting the latter gives; built once for all tests."""
    model = udit.build(name, device="meta")
    folded = udit.fuse(model)
    return model, folded, *count(folded)


def digits(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


def test_every_size_of_u_dit_is_checked() -> None:
    assert set(SIZES) == {name for name in udit.list_models() if name.startswith("U-DiT") and name not in ABLATIONS}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    model, folded, macs, _ = fused(name)
    assert (parameters(model), parameters(folded), digits(macs["all"], SIZES[name][2])) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        pytest.param("U-DiT-S", "32.93", marks=pytest.mark.slow),
        ("U-DiT-B", "106.29"),
        pytest.param("U-DiT-L", "374.31", marks=pytest.mark.slow),
    ],
)
def test_macs_on_512_pixels_are_the_published_ones(name: str, published: str) -> None:
    config = CATALOG[name].config.replace(input_size=64).folded()
    assert digits(count(udit.build(config, device="meta"))[0]["all"], published) == published


def test_macs_of_u_dit_b_split_over_levels_as_measured() -> None:
    """Attention and FFN of every stage, and the convolutions that glue them."""
    macs = fused("U-DiT-B")[2]
    stages = ["encoder.0", "encoder.1", "encoder.2", "decoder.1", "decoder.0"]
    expected = [(1.03, 0.64), (1.66, 1.56), (2.46, 2.46), (1.66, 1.56), (3.26, 2.50)]
    for stage, parts in zip(stages, expected, strict=True):
        for part, value in zip(("attention", "ffn"), parts, strict=True):
            blocks = [name for name in macs if f"{stage}.blocks." in name and name.endswith(f".{part}")]
            assert sum(macs[name] for name in blocks) == pytest.approx(value, abs=0.006), (stage, part)
    glue = (".mix", ".split.0", ".split.1", ".merge.0", ".merge.1", ".reduce.0", ".reduce.1")
    assert sum(macs[name] for name in macs if name.endswith(glue)) == pytest.approx(3.31, abs=0.03)


def test_training_form_costs_one_fused_pass_a_sample_beyond_composing_once() -> None:
    model = udit.build("U-DiT-S", device="meta", depths=(1, 1, 1))
    one, two, folded = (count(m, batch)[0]["all"] for m, batch in ((model, 1), (model, 2), (udit.fuse(model), 1)))
    assert two - one == pytest.approx(folded, rel=1e-9)
    assert one > folded


@pytest.mark.parametrize("name", udit.list_models())
def test_every_row_runs_at_full_size(name: str) -> None:
    config = CATALOG[name].config
    model, folded, _, shape = fused(name)
    assert model.config == config
    assert shape == (1, config.out_channels, *config.size)
    assert folded.config == config.folded() == config.folded().folded()
    assert parameters(folded) <= parameters(model)
    for network in (model, folded):
        assert type(network.config).model_validate_json(network.config.model_dump_json()) == network.config


@pytest.mark.parametrize("name", udit.list_models())
def test_every_row_says_its_paper_and_weights(name: str) -> None:
    entry = CATALOG[name]
    assert re.fullmatch(r"\d{4}\.\d{5}", entry.paper)
    assert entry.weights == "-" or "(" in entry.weights, "the licence stands in brackets"
