"""MMDiT: numbers of the official program in both forms, texts and labels, positions, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.analysis import cost
from udit.errors import UserError
from udit.models.catalog import find
from udit.nn.conditioning import Modulation
from udit.parity import check_file
from udit.parity.network import systems

TINY: dict[str, Any] = {"width": 32, "depth": 3, "heads": 2, "in_channels": 2, "input_size": 8}
TINY |= {"context": {"tokens": 3, "width": 12}, "pooled": 10, "table_side": 12, "base_side": 6}
LABELS: dict[str, Any] = {**TINY, "context": None, "num_classes": 5}
FIVE: dict[str, Any] = {"qk_norm": True, "second_attention": (0, 1)}
WORDS: dict[str, Any] = {"depth": 3, "width": 32, "heads": 2, "head_channels": 16, "patch": 2, "input_size": 8}
WORDS |= {"in_channels": 2, "out_channels": 2, "learn_sigma": False, "second_attention_blocks": [1], "qk_norm": None}
WORDS |= {"positions": {"table_side": 12, "base_side": 6, "crop": "centre"}, "time": "index", "noise_at": 1000}
WORDS |= {"flow_time": "1000*sigma", "context": {"tokens": 3, "width": 12}, "pooled": {"width": 40}}
WORDS |= {"classes": 0, "null_label": None}


def tiny(values: dict[str, Any] = TINY, **overrides: Any) -> torch.nn.Module:
    return perturb(udit.build("MMDiT-SD3-medium", **{**values, **overrides}))


def text(model: torch.nn.Module, rows: int = 3) -> Tensor:
    return torch.randn(rows, *model.config.condition_shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["mmdit", "mmdit35"])
def test_official_outputs_and_gradient_norms(name: str) -> None:
    report = check_file(DATA / f"{name}.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "lossB", "grad_norms", "grad_normsB", "grad_contextB", "grad_pooledB"} <= compared
    assert {"skipped_keys", "no_grad_params"} <= compared


@pytest.mark.slow
def test_products_grow_with_image_and_text() -> None:
    config = find("MMDiT-SD3-medium").config
    assert round(cost(config, (32, 32)).macs / 1e9, 2) == 289.41
    longer = config.replace(context=config.context.replace(tokens=333))
    assert round(cost(longer).macs / 1e9, 2) == 4452.17


@pytest.mark.parametrize("options", [{}, FIVE], ids=["3", "3.5"])
@torch.no_grad()
def test_starts_at_zero_and_keeps_the_releases_keys(options: dict[str, Any]) -> None:
    model = udit.build("MMDiT-SD3-medium", **{**TINY, **options})
    x, t, _ = batch(model)
    assert not model(x, t, text(model)).any()
    perturb(model)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))


def test_weights_are_those_of_a_flow() -> None:
    config = find("MMDiT-SD3-medium").config
    assert (config.native_diffusion, config.reversed_flow, config.time) == ({"kind": "flow"}, False, "index")


@torch.no_grad()
def test_a_text_is_its_pooled_vector_and_its_tokens_in_any_order() -> None:
    model = tiny()
    x, t, _ = batch(model)
    y = text(model)
    out = model(x, t, y)
    torch.testing.assert_close(model(x, t, y[:, [0, 3, 1, 2]]), out, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(x, t, y[:, [1, 0, 2, 3]]), out, atol=1e-4)
    beyond = y.clone()
    beyond[:, 0, 10:] = 7  # the pooled text has ten channels
    assert torch.equal(model(x, t, beyond), out)


@torch.no_grad()
def test_a_label_is_a_text_of_one_token_which_is_pooled_too() -> None:
    model = tiny(LABELS)
    x, t, y = batch(model)
    words = tiny(LABELS, num_classes=0, context={"tokens": 1, "width": 32}, pooled=32)
    state = {name: value for name, value in model.state_dict().items() if name != "texts.label.weight"}
    words.load_state_dict(state)
    row = model.texts.label.weight[y]
    assert torch.equal(words(x, t, torch.stack([row, row], dim=1)), model(x, t, y))
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))


@torch.no_grad()
def test_the_second_attention_reads_the_image_alone() -> None:
    model = tiny(qk_norm=True, depth=2, second_attention=(1,))
    zero = torch.zeros(1, 1, 1, 32)
    still = Modulation(zero, zero, zero)
    block, x, context = model.blocks[1], torch.randn(1, 1, 16, 32), torch.randn(1, 1, 3, 32)
    mods = [still, still, still._replace(gate=torch.ones(1, 1, 1, 32))], [still]
    out, same = block(x, context, mods)
    other, _ = block(x, 2 * context, mods)
    assert same is context
    assert torch.equal(out, other)
    assert not torch.equal(out, x)


@torch.no_grad()
def test_positions_are_the_middle_of_the_table() -> None:
    model = tiny()
    whole = model.positions(12, 12)
    assert torch.equal(model.positions(4, 5), whole[4:8, 3:8])
    assert torch.equal(whole[0, 2], torch.cat([whole[2, 0, 16:], whole[0, 2, 16:]]))  # column first; in steps of 1/2
    assert whole[1, 0, 16].item() == pytest.approx(torch.tensor(0.5).sin().item(), abs=1e-6)


@torch.no_grad()
def test_a_model_of_labels_has_no_published_keys(one_line: Callable[[BaseException], str]) -> None:
    with pytest.raises(UserError, match="MMDiT's release takes texts") as caught:
        udit.export_published(tiny(LABELS))
    one_line(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 34}, "multiple of 4"),
        ({"heads": 3}, "does not split over 3 heads"),
        ({"input_size": 9}, "2x2 patches; H and W must be multiples of 2"),
        ({"input_size": (8, 26)}, "8x26 has more than 12 patches a side; it may be up to 24x24"),
        ({"second_attention": (3,)}, "second_attention names block 3; there are 3"),
        ({"num_classes": 5}, "context replaces labels"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("MMDiT-SD3-medium", **{**TINY, **changes})
    assert words in one_line(error.value)


@pytest.mark.parametrize("y", [None, torch.zeros(3, 3, 12), torch.zeros(3, 4, 10)], ids=["none", "short", "narrow"])
def test_a_condition_of_another_shape_is_a_one_line_error(
    y: Tensor | None, one_line: Callable[[BaseException], str]
) -> None:
    model = tiny()
    x, t, _ = batch(model)
    with pytest.raises(UserError, match=r"vectors of shape \[3, 4, 12\], the pooled text first") as caught:
        model(x, t, y)
    one_line(caught.value)


def test_words_of_a_reference_file() -> None:
    config = systems()["mmdit"](dict(WORDS), (8, 8)).config
    assert (config.texts, config.condition_shape) == ((3, 12, 40), (4, 40))
    assert (config.second_attention, config.qk_norm, config.table_side, config.base_side) == ((1,), False, 12, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": WORDS["positions"] | {"crop": "corner"}}, "crop is 'centre' here; the file says 'corner'"),
        ({"qk_norm": "layernorm"}, "qk_norm is"),
        ({"head_channels": 12}, "heads fill its width"),
        ({"out_channels": 4}, "the input's channels"),
    ],
)
def test_what_is_not_built_is_a_one_line_error(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        systems()["mmdit"](WORDS | changes, (8, 8))
    one_line(caught.value)
