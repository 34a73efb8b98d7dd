"""Where the MACs of U-DiT go, on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from udit.analysis import cost
from udit.models.catalog import CATALOG


def count(model: nn.Module, batch: int = 1) -> dict[str, float]:
    """Billions of MACs (matrices, convolutions, attention's two products) by module, and of all."""
    config = model.config
    x, t = torch.empty(batch, config.in_channels, *config.size, device="meta"), torch.empty(batch, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, t, torch.empty(batch, dtype=torch.long, device="meta"))
    counts = {name: sum(ops.values()) / 2e9 for name, ops in counter.get_flop_counts().items()}
    return counts | {"all": counter.get_total_flops() / 2e9}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [
        pytest.param("U-DiT-S", "32.93", marks=pytest.mark.slow),
        ("U-DiT-B", "106.29"),
        pytest.param("U-DiT-L", "374.31", marks=pytest.mark.slow),
    ],
)
def test_macs_on_512_pixels_are_the_published_ones(name: str, published: str) -> None:
    assert f"{cost(CATALOG[name].config, (64, 64)).macs / 1e9:.2f}" == published


@pytest.mark.slow
def test_macs_of_u_dit_b_split_over_levels_as_measured() -> None:
    """Attention and FFN of every stage, and the convolutions between them."""
    macs = count(udit.fuse(udit.build("U-DiT-B", device="meta")))
    stages = ["encoder.0", "encoder.1", "encoder.2", "decoder.1", "decoder.0"]
    expected = [(1.03, 0.64), (1.66, 1.56), (2.46, 2.46), (1.66, 1.56), (3.26, 2.50)]
    for stage, parts in zip(stages, expected, strict=True):
        for part, value in zip(("attention", "ffn"), parts, strict=True):
            blocks = [name for name in macs if f"{stage}.blocks." in name and name.endswith(f".{part}")]
            assert sum(macs[name] for name in blocks) == pytest.approx(value, abs=0.006), (stage, part)
    glue = (".mix", ".split.0", ".split.1", ".merge.0", ".merge.1", ".reduce.0", ".reduce.1")
    assert sum(macs[name] for name in macs if name.endswith(glue)) == pytest.approx(3.31, abs=0.03)


def test_unfused_forward_costs_one_fused_pass_per_sample_beyond_composing_once() -> None:
    model = udit.build("U-DiT-S", device="meta", depths=(1, 1, 1))
    some, more, folded = (count(m, batch)["all"] for m, batch in ((model, 16), (model, 17), (udit.fuse(model), 1)))
    assert more - some == pytest.approx(folded, rel=1e-9)
    composing = some - 16 * folded
    assert composing > 0
    assert folded < count(model, 1)["all"] < folded + composing, "few samples go through the chains one by one"
