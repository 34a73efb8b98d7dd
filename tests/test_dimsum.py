"""DiMSUM: numbers of the official program, wavelets and reading orders, published keys and sizes, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from peers import assert_golden, golden_input, golden_model, learns
from udit.analysis import cost
from udit.convert.system import native_diffusion
from udit.diffusion.config import FlowConfig
from udit.diffusion.flow import flow_loss
from udit.errors import UserError
from udit.joint import denoiser_of
from udit.models.catalog import find
from udit.models.dimsum.config import DiMSUMConfig
from udit.models.dimsum.parity import dimsum
from udit.models.dimsum.published import haar_filters
from udit.models.fixed import Unused
from udit.models.published import frozen_parameters
from udit.nn import wavelet
from udit.nn.mamba import Mamba
from udit.run.system import SystemConfig

GOLDEN = json.loads((DATA / "dimsum-goldens.json").read_text())
GOLDEN_CONFIG = DiMSUMConfig(width=64, depth=4, num_classes=10, input_size=16)
TINY: dict[str, Any] = {
    "width": 16,
    "depth": 4,
    "heads": 2,
    "fusion_heads": 2,
    "attention_every": 2,
    "states": 4,
    "in_channels": 1,
    "num_classes": 5,
    "input_size": 8,
}

# ---- numbers of the official program -------------------------------------------------------------------------------


@torch.no_grad()
def test_official_output() -> None:
    model = golden_model(GOLDEN_CONFIG, left_out=("A_log", ".D", "norm.weight", "norm_2.weight"))
    out = model(golden_input(2, 4, 16, 16), torch.tensor([0.2, 0.9]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN["dimsum-tiny combined d64 L4 8x8 tokens t=[.2,.9] (torch scan stub)"])


def test_official_wavelets() -> None:
    """The record's numbers are small, so the limit is smaller than for others."""
    record = GOLDEN["dimsum WaveDiMBlock._dwt_fast d32 8x8"]
    flat = wavelet.wavelets(golden_input(1, 64, 32).view(1, 8, 8, 32)).double().flatten()
    for index, value in record["samples"].items():
        assert flat[int(index)].item() == pytest.approx(value, abs=1e-7)
    assert flat.sum().item() == pytest.approx(record["sum"], abs=1e-5)


SIZES = [
    ("DiMSUM-B/2", 198_547_216, "40.96"),
    ("DiMSUM-L/2", 459_916_304, "96.0701"),
    ("DiMSUM-L/2-celeba", 458_892_304, "96.0701"),
    ("DiMSUM-XL/2", 854_831_248, "181.74"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        size if size[0] in ("DiMSUM-B/2", "DiMSUM-L/2") else pytest.param(*size, marks=pytest.mark.slow)
        for size in SIZES
    ],
)
def test_published_sizes(name: str, parameters: int, gmacs: str) -> None:
    """The official count includes products that this network does not need.

    Its wavelets are convolutions (four a block, of 4 products for each of D / 2 channels at N positions), it runs the
    layer whose output is unused (twice per block), and it recomputes the shared block's modulation at every call.
    """
    config = find(name).config
    counted = cost(config)
    assert counted.parameters == counted.inference_parameters == parameters
    depth, width, (rows, columns) = config.depth, config.width, config.grid
    wavelets = depth * 4 * (config.half * rows * columns) * 4
    unread = depth * 2 * width**2
    repeated = (depth // config.attention_every - 1) * 6 * width**2
    official = (counted.macs + wavelets + unread + repeated) / 1e9
    assert f"{official:.{len(gmacs.partition('.')[2])}f}" == gmacs


# ---- wavelets and reading orders -----------------------------------------------------------------------------------


def test_wavelets_come_back_to_rounding_for_any_proportion() -> None:
    x = torch.randn(2, 8, 12, 5)
    torch.testing.assert_close(wavelet.inverse_haar(wavelet.haar(x)), x)
    torch.testing.assert_close(wavelet.inverse_wavelets(wavelet.wavelets(x)), x)


def test_haar_is_the_release_s_convolution() -> None:
    x = torch.randn(2, 6, 8, 3)
    filters = haar_filters()
    maps = F.conv2d(x.permute(0, 3, 1, 2).reshape(6, 1, 6, 8), filters, stride=2).view(2, 3, 4, 3, 4)
    torch.testing.assert_close(wavelet.haar(x), maps.permute(0, 3, 4, 2, 1).flatten(3))
    assert filters[:, 0].sign().tolist() == [
        [[1, 1], [1, 1]],
        [[1, 1], [-1, -1]],
        [[1, -1], [1, -1]],
        [[1, -1], [-1, 1]],
    ]


def test_a_flat_map_goes_to_the_first_channels_of_every_pixel() -> None:
    out = wavelet.wavelets(torch.ones(1, 8, 8, 32))
    torch.testing.assert_close(out[..., :2], torch.ones(1, 8, 8, 2))
    assert out[..., 2:].abs().max() == 0


@pytest.mark.parametrize("by_column", [False, True])
def test_reading_orders_come_back_and_are_what_they_say(by_column: bool) -> None:
    x = torch.arange(2 * 8 * 12).view(2, 8, 12, 1)
    windows = wavelet.to_windows(x, by_column)
    assert torch.equal(wavelet.from_windows(windows, 8, 12, by_column), x)
    first = [0, 12, 1, 13, 2, 14] if by_column else [0, 1, 2, 12, 13, 14]  # 2 rows by 3 columns a window
    assert windows[0, :6, 0].tolist() == first
    assert windows[0, 6, 0] == (24 if by_column else 3)
    for backwards in (False, True):
        lines = wavelet.to_lines(x, by_column, backwards)
        assert torch.equal(wavelet.from_lines(lines, 8, 12, by_column, backwards), x)
        assert lines[0, -1 if backwards else 0, 0] == 0
        assert lines[0, -2 if backwards else 1, 0] == (12 if by_column else 1)


# ---- the network ---------------------------------------------------------------------------------------------------


def test_tokens_see_their_past_alone() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba(8, 8, 4, 4, 1), torch.randn(1, 10, 8)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_()
        changed = x.clone()
        changed[:, 6] += 1
        moved = (mixer(changed) - mixer(x)).abs().sum(-1)[0]
    assert (moved[:6] == 0).all()
    assert (moved[6:] > 0).all()


def test_blocks_read_the_map_in_orders_of_their_own() -> None:
    model = udit.build("DiMSUM-L/2", **{**TINY, "depth": 6}, device="meta")
    orders = [(block.by_column, block.backwards) for block in model.blocks]
    assert orders == [(False, False), (False, True), (True, False), (True, True), (False, False), (False, True)]


def _no_reversal(model: nn.Module) -> None:
    for block in model.blocks:
        block.scan_space = lambda x, mod, block=block: wavelet.from_lines(
            block.spatial(wavelet.to_lines(x, block.by_column, False), mod), *x.shape[1:3], block.by_column, False
        )


def _rows_first(model: nn.Module) -> None:
    for block in model.blocks:
        block.scan_frequency = lambda x, mod, block=block: wavelet.inverse_wavelets(
            wavelet.from_windows(
                block.frequency(wavelet.to_windows(wavelet.wavelets(x), False), mod), *x.shape[1:3], False
            )
        )


def _slower(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("log_rate"):
            parameter += 0.1


def _no_queries(model: nn.Module) -> None:
    for block in model.blocks:
        block.fuse.qkv1.weight[:8] = 0
        block.fuse.qkv1.bias[:8] = 0


@torch.no_grad()
@pytest.mark.parametrize("change", [_no_reversal, _rows_first, _slower, _no_queries])
def test_every_part_shows_in_the_output(change: Callable[[nn.Module], None]) -> None:
    """A network without values near zero, so that every part affects the output."""
    model = perturb(udit.build("DiMSUM-L/2", **TINY), std=0.3)
    x, _, y = batch(model)
    t = torch.tensor([0.1, 0.5, 0.9])
    out = model(x, t, y)
    change(model)
    assert (model(x, t, y) - out).abs().max() > 1e-3 * out.abs().max()


def test_initial_weights_are_the_release_s() -> None:
    model = udit.build("DiMSUM-L/2", **{**TINY, "width": 64, "depth": 4})
    x, _, y = batch(model)
    assert not model(x, torch.tensor([0.1, 0.5, 0.9]), y).any()
    mixer = model.blocks[1].spatial.mixer
    assert mixer.log_rate.exp().sub(torch.arange(1, 5)).abs().max() < 1e-5
    assert (mixer.direct == 1).all()
    steps = F.softplus(mixer.step.bias)
    assert 1e-3 <= steps.min() < 5e-3
    assert 5e-2 < steps.max() <= 0.1
    assert model.blocks[0].spatial.modulation.weight.any(), "the scans' gates are open from the start"
    assert not model.blocks[0].modulation.weight.any()
    assert mixer.contract.weight.abs().max() <= 1 / 64**0.5 / 4**0.5


def test_training_lowers_the_loss_through_every_parameter() -> None:
    model = udit.build("DiMSUM-L/2", **TINY)
    before, after = learns(model, torch.tensor([0, 5, 2]), torch.tensor([0.1, 0.5, 0.9]), steps=6)
    assert after < before


def test_unused_layer_is_carried_and_never_trained_nor_read() -> None:
    model = perturb(udit.build("DiMSUM-L/2", **TINY))
    unused = [name for _, (name, _) in model.config.published_keys().items() if isinstance(name, Unused)]
    assert len(unused) == 2 * 2 * model.config.depth
    assert not set(unused) & {name for name, _ in model.named_parameters()}
    assert frozen_parameters(model.config) == sum(model.state_dict()[name].numel() for name in unused)
    exported = udit.export_published(model)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, exported)
    assert same_bits(snapshot(again), snapshot(model))
    inputs = (*batch(model)[:1], torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 2]))
    with torch.no_grad():
        out = model(*inputs)
        for name in unused:
            model.state_dict()[name].add_(1)
        assert torch.equal(model(*inputs), out)


def test_other_filters_than_haar_s_are_refused(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiMSUM-L/2", **TINY)
    state = udit.export_published(model)
    state["blocks.1.freq_mamba.dwt.w_lh"] = state["blocks.1.freq_mamba.dwt.w_hl"]
    with pytest.raises(UserError, match="w_lh differs") as error:
        udit.import_published(model, state)
    one_line(error.value)


def test_release_was_trained_along_sines_and_cosines() -> None:
    assert native_diffusion(find("DiMSUM-L/2").config) == FlowConfig(path="gvp")


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_flow_loss_turns_time_and_velocity_around(path: Literal["linear", "gvp"]) -> None:
    """As SiT's: the network's t is 0 at noise and 1 at data, and its velocity has the opposite sign."""
    told: list[Tensor] = []
    x0, noise, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.25, 0.75])

    def network(x: Tensor, time: Tensor, y: Tensor | None = None, /) -> Tensor:
        told.append(time)
        if path == "linear":
            return x0 - noise
        angle = (math.pi / 2 * time).view(-1, 1, 1, 1)  # x = sin(angle) x0 + cos(angle) noise
        return math.pi / 2 * (angle.cos() * x0 - angle.sin() * noise)

    config = SystemConfig(model=find("DiMSUM-L/2").config, diffusion=FlowConfig(path=path))
    assert flow_loss(denoiser_of(config, network), x0, t, noise).loss.max() < 1e-10
    assert torch.equal(told[0], 1 - t)


@torch.no_grad()
def test_rectangles_of_its_own_size_run_and_others_are_refused(one_line: Callable[[BaseException], str]) -> None:
    model = perturb(udit.build("DiMSUM-L/2", **{**TINY, "input_size": (8, 16)}))
    t, y = torch.tensor([0.5]), torch.tensor([1])
    assert model(torch.randn(1, 1, 8, 16), t, y).shape == (1, 1, 8, 16)
    with pytest.raises(ValueError, match="learned positions are those of 8x16") as error:
        model(torch.randn(1, 1, 16, 8), t, y)
    one_line(error.value)


def test_one_patch_a_pixel_runs_the_digits() -> None:
    model = perturb(udit.build("DiMSUM-L/2", **{**TINY, "patch": 1}))
    assert model(torch.randn(1, 1, 8, 8), torch.tensor([0.5])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": 12}, "multiples of 8, e.g. 16x16"),
        ({"input_size": 9}, "multiples of 2"),
        ({"depth": 1}, "depth 1 ends before the shared attention"),
        ({"fusion_heads": 3}, "multiple of 6"),
        ({"heads": 3}, "does not split over 3 heads"),
        ({"states": 0}, "states is 0"),
        ({"attention_evry": 2}, "did you mean 'attention_every'"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, Any], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("DiMSUM-L/2", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_model_of_one_class_has_no_null_label(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiMSUM-L/2-celeba", **{**TINY, "num_classes": 1})
    assert model.config.null_label is None
    with pytest.raises(UserError, match="no null class") as error:
        model(torch.zeros(1, 1, 8, 8), torch.tensor([0.5]))
    one_line(error.value)


def test_reference_file_s_words_become_the_config() -> None:
    words = {
        "depth": 8, "width": 256, "patch": 2, "input_size": 32, "in_channels": 4, "attention_every": 4,
        "learn_sigma": False, "time": "unit",
    }  # fmt: skip
    null = {**words, "label_rows": 1001, "null_label": 1000}
    assert dimsum(null, (32, 32)).config == find("DiMSUM-L/2").config.replace(depth=8, width=256, drop_path=0)
    one = {**words, "label_rows": 1, "null_label": None}
    assert dimsum(one, (32, 32)).config == find("DiMSUM-L/2-celeba").config.replace(depth=8, width=256, drop_path=0)
    assert not null
    with pytest.raises(UserError, match="last of its 10 rows"):
        dimsum({**words, "label_rows": 10, "null_label": 3}, (32, 32))
