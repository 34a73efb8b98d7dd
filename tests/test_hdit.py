"""HDiT: numbers of the official program, positions and windows, published keys and sizes, preconditioning, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import DATA, batch, perturb
from peers import assert_golden, golden_input, golden_model, learns
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import Preconditioned
from udit.diffusion.sample import sample
from udit.errors import UserError
from udit.models.hdit.config import HDiTConfig, HourglassLevel, Mapping
from udit.models.parity import seed_offset
from udit.nn.axial import AxialAttention, axial_frequencies, axial_positions, axial_table, turn
from udit.nn.conditioning import AdaLNBlock, Modulation
from udit.nn.ffn import MLP
from udit.nn.hourglass import Labels
from udit.nn.specs import AxialGlobal, AxialNeighborhood, AxialWindow, Mlp
from udit.nn.window import join_windows, split_windows, wrap_mask
from udit.parity.network import _Case, describe

GOLDEN = json.loads((DATA / "hdit-goldens.json").read_text())
GOLDEN_CONFIG = HDiTConfig(
    stages=(
        HourglassLevel(width=32, depth=2, head_channels=16, attention=AxialWindow(size=4)),
        HourglassLevel(width=64, depth=2, head_channels=16),
    ),
    mapping=Mapping(depth=1, width=32),
    num_classes=10,
    input_size=16,
)
TINY: dict[str, Any] = {
    "patch": 1,
    "stages": (
        HourglassLevel(width=16, depth=2, head_channels=8, attention=AxialWindow(size=4)),
        HourglassLevel(width=32, depth=1, head_channels=16),
    ),
    "mapping": Mapping(depth=1, width=16),
    "in_channels": 1,
    "num_classes": 5,
    "input_size": 8,
}
SIGMA = torch.tensor([0.1, 1.0, 20.0])

# ---- numbers of the official program -------------------------------------------------------------------------------


def golden() -> nn.Module:
    return golden_model(GOLDEN_CONFIG, kept=("scale", ".fac"), buffers=("time_emb.weight", "aug_emb.weight"))


@torch.no_grad()
def test_official_output() -> None:
    out = golden()(golden_input(2, 3, 16, 16), torch.tensor([0.5, 8.0]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN["hdit-tiny raw model sigma=[.5,8]"])


@torch.no_grad()
def test_official_output_with_preconditioning() -> None:
    out = Preconditioned(golden())(golden_input(2, 3, 16, 16), torch.tensor([0.5, 8.0]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN["hdit-tiny Denoiser(sigma_data=.5)"])


def test_official_frequencies() -> None:
    assert axial_frequencies(2, 16).tolist() == GOLDEN["hdit freqs d_head16 h2"]


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_positions_are_pixel_centres_and_keep_proportions() -> None:
    square = axial_positions(2, 2)
    assert square.tolist() == [[[-0.5, -0.5], [-0.5, 0.5]], [[0.5, -0.5], [0.5, 0.5]]]
    wide = axial_positions(2, 4)
    assert wide[:, 0, 0].tolist() == [-0.25, 0.25]
    assert wide[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    torch.testing.assert_close(axial_positions(3, 5, halvings=2), axial_positions(3, 5))


def test_turning_keeps_lengths_and_the_second_half() -> None:
    x = torch.randn(2, 4, 6, 2, 16)
    table = axial_table(axial_positions(4, 6), heads=2, channels=16)
    turned = turn(x, table)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    shifted = [turned[:, :, j, :, :].mul(turned[:, :, j + 2, :, :]).sum(-1) for j in (0, 1)]
    assert not torch.allclose(shifted[0], shifted[1])
    one = x[:, :1, :1].expand_as(x)  # the same vector everywhere: products depend on distances alone
    turned = turn(one, table)
    products = (turned[:, :-1] * turned[:, 1:]).sum(-1)
    torch.testing.assert_close(products, products[:, :1].expand_as(products))


def test_joining_windows_undoes_splitting() -> None:
    x = torch.randn(2, 8, 12, 3, 5)
    windows = split_windows(x, (4, 4))
    assert windows.shape == (6, 6, 16, 5)
    assert torch.equal(windows[1, 4].view(4, 4, 5), x[1, :4, 4:8, 1])
    assert torch.equal(join_windows(windows, (4, 4), 8, 12, 3), x)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_see_their_own_pixels_and_nothing_over_the_edge(shift: int) -> None:
    attention = perturb_scale(AxialWindow(size=4).build(16, 2, shifted=bool(shift)))
    x = torch.randn(1, 8, 8, 16)
    table = attention.positions(8, 8, x.device)
    for row, column in ((0, 0), (1, 6), (5, 3), (7, 7)):
        changed = x.clone()
        changed[0, row, column] += 1
        moved = (attention(changed, table) - attention(x, table)).abs().sum(-1)[0] > 1e-6
        # windows start at -shift, 4 - shift, ...; the first and last are cut off by the edge
        rows, columns = ([(i + shift) // 4 == (at + shift) // 4 for i in range(8)] for at in (row, column))
        expected = torch.tensor(rows)[:, None] & torch.tensor(columns)[None]
        assert torch.equal(moved, expected)


def perturb_scale(attention: AxialAttention) -> AxialAttention:
    torch.manual_seed(0)
    with torch.no_grad():
        attention.scale.fill_(4.0)
        for linear in (attention.qkv, attention.out):
            linear.weight.normal_()
    return attention


def test_an_unshifted_map_is_not_masked() -> None:
    assert wrap_mask(8, 8, (4, 4), (0, 0)).all()
    assert wrap_mask(8, 8, (4, 4), (2, 2))[3].sum() == 16 * 16  # the last window came in whole
    assert wrap_mask(8, 8, (4, 4), (2, 2))[0].sum() == 4 * 4 * 4  # the first is four corners


@torch.no_grad()
def test_one_window_over_the_whole_map_is_global_attention() -> None:
    whole, window = perturb_scale(AxialAttention(16, 2)), AxialWindow(size=8).build(16, 2)
    window.load_state_dict(whole.state_dict())
    x = torch.randn(2, 8, 8, 16)
    table = whole.positions(8, 8, x.device)
    torch.testing.assert_close(window(x, table), whole(x, table))


@torch.no_grad()
@pytest.mark.parametrize("spec", [AxialGlobal(), AxialWindow(size=2), AxialNeighborhood(kernel=3)])
def test_attention_specs_serve_in_a_transformer_block(spec: Any) -> None:
    attention = perturb_scale(spec.build(16, 2, shifted=True))
    block, x = AdaLNBlock(attention, MLP(Mlp(), 16), 16), torch.randn(2, 4, 4, 16)
    mods = block.condition(torch.randn(2, 16))
    assert isinstance(mods[0], Modulation)
    assert block(x, mods, attention.positions(4, 4, x.device)).shape == x.shape


# ---- the network ---------------------------------------------------------------------------------------------------


def test_initial_output_is_zero_and_random_features_are_drawn_by_seed() -> None:
    model = udit.build("HDiT-cifar10", **TINY)
    x, _, y = batch(model)
    assert not model(x, SIGMA, y).any()
    features = model.conditioner.time_features.weight
    assert "conditioner.time_features.weight" in model.state_dict()
    assert not isinstance(features, nn.Parameter)
    other = udit.build("HDiT-cifar10", seed=1, **TINY).conditioner.time_features.weight
    assert 0.3 < features.std() < 3
    assert not torch.equal(features, other)
    assert (model.encoder[0].blocks[0].attention.scale == 10).all()
    assert model.join[0].weight.item() == 0.5


def test_training_lowers_the_loss_through_every_parameter() -> None:
    model = udit.build("HDiT-cifar10", **TINY, vector_cond=3)
    labels = Labels(torch.tensor([0, 5, 2]), torch.randn(3, 9), torch.randn(3, 3))
    before, after = learns(model, labels, SIGMA, steps=6)
    assert after < before


@torch.no_grad()
def test_every_condition_matters_and_defaults_are_null_and_zero() -> None:
    model = perturb(udit.build("HDiT-cifar10", **TINY, vector_cond=3))
    x, _, y = batch(model)
    out = model(x, SIGMA, y)
    assert torch.equal(model(x, SIGMA), model(x, SIGMA, torch.full_like(y, 5)))
    assert torch.equal(out, model(x, SIGMA, Labels(y, torch.zeros(3, 9), torch.zeros(3, 3))))
    for other in ((y + 1) % 5, Labels(y, torch.ones(3, 9)), Labels(y, vector=torch.ones(3, 3))):
        assert not torch.equal(out, model(x, SIGMA, other))
    assert not torch.equal(out, model(x, 2 * SIGMA, y))


@torch.no_grad()
def test_rectangles_and_sigma_zero_pass() -> None:
    model = perturb(udit.build("HDiT-cifar10", **TINY))
    out = model(torch.randn(2, 1, 8, 16), torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert out.shape == (2, 1, 8, 16)
    assert out.isfinite().all()


@torch.no_grad()
def test_second_block_of_a_windowed_level_is_shifted_on_both_sides() -> None:
    def shifts(stage: Any) -> list[int]:
        return [block.attention.attend.keywords["shift"] for block in stage.blocks]

    model = udit.build("HDiT-cifar10", **TINY)
    assert shifts(model.encoder[0]) == shifts(model.decoder[0]) == [0, 2]
    three = HourglassLevel(width=16, depth=3, head_channels=8, attention=AxialWindow(size=4))
    model = udit.build("HDiT-cifar10", **{**TINY, "stages": (three, TINY["stages"][1])})
    assert shifts(model.decoder[0]) == [2, 0, 2]  # counted on from the encoder's


@torch.no_grad()
@pytest.mark.parametrize("path", ["exploding", "preserving", "linear"])
def test_preconditioning_undoes_the_path_s_scale(path: str) -> None:
    def network(x: Tensor, sigma: Tensor, y: Tensor | None = None, /) -> Tensor:
        return torch.sin(x * sigma[:, None, None, None])

    x = torch.randn(3, 1, 4, 4)
    alpha = {"exploding": torch.ones(3), "preserving": (1 + SIGMA**2).rsqrt(), "linear": 1 / (1 + SIGMA)}[path]
    expected = Preconditioned(network)(x, SIGMA)
    torch.testing.assert_close(Preconditioned(network, path=path)(x * alpha[:, None, None, None], SIGMA), expected)


@torch.no_grad()
def test_a_silent_network_denoises_a_gaussian_exactly() -> None:
    """With F = 0 the guess is c_skip x, the posterior mean for N(0, sigma_data**2); DDIM must reach that spread."""
    silent = Preconditioned(lambda x, sigma, y=None, /: torch.zeros_like(x), sigma_data=0.3, path="preserving")
    denoiser = Denoiser(silent, DDPM.linear(), target="x0", time="sigma")
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    *_, last = sample(denoiser, x, sampler="ddim", steps=250)
    torch.testing.assert_close(last.x, 0.3 * x, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"stages": (HourglassLevel(width=16, depth=1, head_channels=8, attention=AxialWindow(size=3)),)},
            "do not tile",
        ),
        ({"input_size": 9}, "multiples of 2"),
        ({"time": "index"}, "time is 'index'"),
        ({"stages": ()}, "stages"),
        ({"patches": 2}, "did you mean 'patch'"),
        ({"mapping": {"width": 15}}, "mapping.width is 15"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, Any], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("HDiT-cifar10", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_labels_a_model_does_not_take_are_refused(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("HDiT-cifar10", **{**TINY, "num_classes": 0})
    for labels, words in ((torch.tensor([1]), "unconditional"), (Labels(vector=torch.zeros(1, 3)), "vector_cond")):
        with pytest.raises(UserError, match=words) as error:
            model(torch.zeros(1, 1, 8, 8), torch.ones(1), labels)
        one_line(error.value)


def test_heads_that_axial_positions_cannot_split_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 8"):
        udit.build("HDiT-cifar10", stages=[{"width": 24, "depth": 1, "head_channels": 12}])
    with pytest.raises(UserError, match="multiple of 8"):
        AxialAttention(24, 2)


# ---- reference files -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_reference_files_may_draw_further_inputs_and_be_rectangular() -> None:
    windows = {"type": "shifted-window", "d_head": 8, "window_size": 2, "depth": 2, "width": 16, "d_ff": 40}
    words = {
        "system": "hdit",
        "patch": [2, 2],
        "in_channels": 3,
        "levels": [windows, {"type": "global", "d_head": 16, "depth": 1, "width": 32, "d_ff": 64}],
        "mapping": {"depth": 1, "width": 16, "d_ff": 24, "cond_dim": 5},
        "label_rows": 0,
        "null_label": None,
        "learn_sigma": False,
        "time": "sigma",
        "aug_cond": "RandomState(seed+4).standard_normal((2, 9))",
        "mapping_cond": {"seed": "seed + 3", "draw": "standard_normal", "shape": [2, 5]},
    }
    arrays = {
        "model": np.array([json.dumps(words)]),
        "seed": np.array(5),
        "x_shape": np.array([2, 3, 8, 24]),
        "t": np.array([0.5, 3.0], dtype=np.float32),
        "y": np.zeros(0),
        "std": np.array(0.2),
        "base_keys": np.array(["down_levels.0.1.self_attn.scale"]),
        "base_values": np.array([10.0]),
        "out": np.zeros((2, 3, 8, 24), dtype=np.float32),
    }
    path = Path("made.npz")
    described, channels = describe(arrays, path)
    config = described.config
    assert (config.stages[0].attention, config.vector_cond, config.size) == (AxialWindow(size=2), 5, (8, 24))
    case = _Case(arrays, described, channels, "cpu", torch.float32)
    model = case.network("")
    for name, parameter in model.named_parameters():
        if name.endswith("attention.scale"):
            parameter.abs_()  # a negative scale has no root
    x, aug, vector = (
        torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
        for seed, shape in ((5, (2, 3, 8, 24)), (9, (2, 9)), (8, (2, 5)))
    )
    expected = model(x, torch.tensor([0.5, 3.0]), Labels(None, aug, vector))
    assert torch.equal(case.run(model, case.x, case.y, case.t), expected)
    assert not torch.equal(model(x, torch.tensor([0.5, 3.0])), expected)
    with pytest.raises(UserError, match="standard_normal"):
        seed_offset("zeros, mostly")
