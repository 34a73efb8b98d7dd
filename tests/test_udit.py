"""U-DiT: numbers of the official program, and the contract of backbones in detail."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from conftest import DATA, TINY, batch, perturb, same_bits, snapshot
from udit import ops
from udit.benchmarking.meters import CPU
from udit.diffusion.guidance import guide
from udit.errors import UserError
from udit.models.build import checkpoint_activations
from udit.models.udit.config import UDiTConfig
from udit.models.udit.network import UDiT
from udit.nn.attention import DownsampledAttention
from udit.nn.conditioning import timestep_features
from udit.nn.ffn import projected
from udit.nn.specs import Downsampled, Mlp
from udit.nn.tokens import rotary_table
from udit.ops.attention import join_grids, rotate, split_grids

# ---- numbers of the official program -------------------------------------------------------------------------------

GOLDEN = json.loads((DATA / "udit-goldens.json").read_text())
GOLDEN_CONFIG = UDiTConfig(width=16, heads=2, depths=(1, 1, 1, 1, 1), num_classes=10, input_size=16)


def golden_fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The golden weights: element j of the i-th name in sorted order is 0.2 sin(0.731 (i + 1) + 1.618 (j + 1))."""
    state = {}
    for i, name in enumerate(sorted(shapes)):
        if name.endswith("scale"):
            state[name] = torch.full(shapes[name], math.log(10))
        else:
            j = torch.arange(1, math.prod(shapes[name]) + 1, dtype=torch.float64)
            state[name] = (0.2 * torch.sin(0.731 * (i + 1) + 1.618 * j)).float().view(shapes[name])
    return state


def golden_input(*shape: int) -> Tensor:
    return torch.sin(0.05 * torch.arange(math.prod(shape), dtype=torch.float64)).float().view(shape)


def golden_model(config: UDiTConfig = GOLDEN_CONFIG) -> nn.Module:
    model = udit.build(config)
    shapes = {key: tuple(value.shape) for key, value in udit.export_published(model).items()}
    udit.import_published(model, golden_fill(shapes))
    return model.eval()


def assert_golden(out: Tensor, tag: str) -> None:
    record, flat = GOLDEN[tag], out.double().flatten()
    assert list(out.shape) == record["shape"]
    for index, value in record["samples"].items():
        assert flat[int(index)].item() == pytest.approx(value, abs=1e-4), index
    assert flat.abs().mean().item() == pytest.approx(record["absmean"], abs=1e-4)
    assert flat.sum().item() == pytest.approx(record["sum"], abs=1e-4 * math.sqrt(flat.numel()))


T, Y = torch.tensor([7, 803]), torch.tensor([3, 9])


@torch.no_grad()
def test_official_output_of_the_unfused_network() -> None:
    assert_golden(golden_model().train()(golden_input(2, 4, 16, 16), T, Y), "udit-tiny (train form)")


@torch.no_grad()
def test_official_output_of_the_fused_network() -> None:
    assert_golden(udit.fuse(golden_model())(golden_input(2, 4, 16, 16), T, Y), "udit-tiny (folded eval)")


@torch.no_grad()
def test_official_output_of_the_vanilla_variant() -> None:
    config = GOLDEN_CONFIG.replace(attention=Downsampled(cosine=False, rope=False), ffn=Mlp(ratio=2))
    model = golden_model(config)
    assert_golden(model(golden_input(2, 4, 16, 16), T, Y), "udit-tiny vanilla")
    assert_golden(udit.fuse(model)(golden_input(2, 4, 16, 16), T, Y), "udit-tiny vanilla")


@torch.no_grad()
def test_official_output_of_guidance_over_three_channels() -> None:
    x, t = golden_input(2, 4, 16, 16)[:1], torch.tensor([803, 803])
    cond, uncond = golden_model()(x.repeat(2, 1, 1, 1), t, torch.tensor([3, 10])).chunk(2)
    first = guide(cond, uncond, 2.5, channels=3)
    second = torch.cat([first[:, :3], uncond[:, 3:]], dim=1)  # the release leaves the other channels to each half
    assert_golden(torch.cat([first, second]), "udit-tiny forward_with_cfg(2.5), y=[3,10]")


@torch.no_grad()
def test_official_output_of_attention_alone() -> None:
    attention = DownsampledAttention(Downsampled(), width=16, heads=2)
    ours = {"downsampler.layer": "filter", "to_out": "out", "to_qkv": "qkv"}
    shapes = {name: tuple(value.shape) for name, value in attention.state_dict().items()}
    theirs = {
        next((name.replace(own, key) for key, own in ours.items() if name.startswith(f"{own}.")), name): name
        for name in shapes
    }
    filled = golden_fill({key: shapes[name] for key, name in theirs.items()})
    attention.load_state_dict({theirs[key]: value for key, value in filled.items()})
    x = golden_input(1, 16, 8, 8).permute(0, 2, 3, 1)
    out = attention(x, attention.positions(8, 8, x.device)).permute(0, 3, 1, 2)
    assert_golden(out, "udit attn only (C16,h2,8x8)")


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_timestep_features_are_cosines_then_sines() -> None:
    t = torch.tensor([0.0, 1.0, 7.5])
    features = timestep_features(t)
    assert features.shape == (3, 256)
    assert torch.equal(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    torch.testing.assert_close(features[:, 0], t.cos())
    torch.testing.assert_close(features[:, 128], t.sin())
    torch.testing.assert_close(features[2, 127], torch.tensor(math.cos(7.5 * 10000 ** (-127 / 128))))


def test_sub_grids_interleave_the_map() -> None:
    x = torch.arange(16.0).view(1, 4, 4, 1)
    grids = split_grids(x, factor=2, groups=1, heads=1)[0, :, 0, :, 0]
    assert grids.tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_joining_grids_undoes_splitting(b: int, h: int, w: int, factor: int, heads: int) -> None:
    x = torch.randn(b, h * factor, w * factor, heads * 4)
    [grids] = split_grids(x, factor, 1, heads)
    assert torch.equal(join_grids(grids, factor, h * factor, w * factor), x)


def test_rotary_table_knows_rows_from_columns() -> None:
    table = rotary_table(3, 5, 8)
    assert table.shape == (2, 15, 8)
    column, row = 4, 2
    for j, frequency in enumerate((1.0, 10000**-0.5)):
        for pair, place in ((2 * j, column), (2 * j + 1, row)):
            angle = torch.tensor(place * frequency)
            torch.testing.assert_close(table[0, 14, 2 * pair], angle.cos())
            torch.testing.assert_close(table[1, 14, 2 * pair + 1], angle.sin())


def test_rotation_keeps_norms_and_sees_only_differences_of_positions() -> None:
    table, q, k = rotary_table(4, 4, 8), torch.randn(8), torch.randn(8)
    turned_q, turned_k = rotate(q.expand(16, 8), table), rotate(k.expand(16, 8), table)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16))
    logits = (turned_q @ turned_k.T).view(4, 4, 4, 4)  # row, column of q; row, column of k
    torch.testing.assert_close(logits[1:, 1:, 1:, 1:], logits[:-1, :-1, :-1, :-1])
    assert not torch.allclose(logits[0, 1, 0, 0], logits[1, 0, 0, 0], atol=1e-3)


@given(
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 3e4, 1e18]),
    st.sampled_from([0.0, 1e-8, 1.0, 3e4]),
    st.sampled_from([-50.0, 0.0, 2.3, 100.0]),
    st.booleans(),
)
def test_cosine_attention_is_a_finite_mean_of_values(
    dtype: torch.dtype, size_q: float, size_k: float, scale: float, rope: bool
) -> None:
    """Zero rows and rows whose squares overflow float16 included."""
    q, k, v = (torch.randn(2, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    largest = torch.finfo(dtype).max
    q, k, v = (x.clamp(-largest, largest).to(dtype) for x in (size_q * q, size_k * k, v))
    table = rotary_table(3, 3, 16) if rope else None
    out = ops.attend(q, k, v, torch.full((2,), scale), table)
    assert out.dtype == dtype
    assert out.isfinite().all()
    slack = 4 * torch.finfo(dtype).eps * v.abs().max()
    assert (out <= v.amax(-2, keepdim=True) + slack).all()
    assert (out >= v.amin(-2, keepdim=True) - slack).all()


def test_cosine_attention_ignores_the_length_of_queries_and_keys() -> None:
    q, k, v = (torch.randn(1, 2, 9, 16) for _ in range(3))
    scale = torch.zeros(2)
    torch.testing.assert_close(ops.attend(q, k, v, scale, None), ops.attend(100 * q, 0.01 * k, v, scale, None))


def test_cosine_attention_bounds_its_scale() -> None:
    q, k, v = (torch.randn(1, 1, 9, 16) for _ in range(3))
    hot = [ops.attend(q, k, v, torch.tensor([s]), None) for s in (4.6052, 6.0, 1e4)]
    assert torch.equal(hot[0], hot[1])
    assert torch.equal(hot[0], hot[2])


# ---- the contract ----------------------------------------------------------------------------------------------------


def forward(model: nn.Module, *args: Any) -> Tensor:
    with torch.no_grad():
        return model(*args)


@pytest.mark.slow
@pytest.mark.parametrize("depths", [(1,), (1, 2, 1), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1)], ids=len)
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_any_number_of_levels_runs(depths: tuple[int, ...], learn_sigma: bool) -> None:
    size = 2 ** ((len(depths) + 1) // 2)
    model = udit.build("U-DiT-S", **TINY | {"depths": depths, "input_size": size, "learn_sigma": learn_sigma})
    perturb(model)
    x, t, y = batch(model)
    out = forward(model, x, t, y)
    assert out.shape == (3, 4 if learn_sigma else 2, size, size)
    torch.testing.assert_close(out, forward(udit.fuse(model), x, t, y), atol=1e-5, rtol=1e-5)


def test_widths_follow_the_levels() -> None:
    model = udit.build("U-DiT-S", device="meta", depths=(1, 1, 1, 1, 1, 1, 1), input_size=32)
    widths = [stage.blocks[0].attention.qkv.in_features for stage in [*model.encoder, *reversed(model.decoder)]]
    assert widths == [96, 192, 384, 768, 384, 192, 192]


@pytest.mark.parametrize("size", [(8, 12), (4, 16), (16, 8)])
def test_any_rectangle_of_whole_sub_grids_runs(tiny: nn.Module, size: tuple[int, int]) -> None:
    x, t, y = torch.randn(2, 2, *size), torch.tensor([3, 900]), torch.tensor([0, 5])
    out = forward(tiny, x, t, y)
    assert out.shape == (2, 4, *size)
    torch.testing.assert_close(out, forward(udit.fuse(tiny), x, t, y), atol=1e-5, rtol=1e-5)


def test_transposing_a_rectangle_is_not_transposing_the_output(tiny: nn.Module) -> None:
    """Rows and columns are told apart, so a table keyed by the number of tokens alone would be wrong."""
    x, t = torch.randn(1, 2, 4, 8), torch.tensor([500])
    straight, turned = forward(tiny, x, t), forward(tiny, x.mT, t).mT
    assert straight.shape == turned.shape
    assert (straight - turned).abs().max() > 1e-3


def test_output_at_initialisation_is_exactly_zero() -> None:
    model = udit.build("U-DiT-S", **TINY)
    assert not forward(model, *batch(model)).any()
    assert not forward(udit.fuse(model), *batch(model)).any()


def test_no_label_is_the_null_label(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    null = torch.full_like(y, tiny.config.null_label)
    assert torch.equal(forward(tiny, x, t), forward(tiny, x, t, null))
    assert not torch.equal(forward(tiny, x, t), forward(tiny, x, t, y))


def test_unconditional_model_has_no_label_table_and_takes_no_labels() -> None:
    model = perturb(udit.build("U-DiT-S", **TINY | {"num_classes": 0}))
    assert not any("label" in name for name in model.state_dict())
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([0, 999])
    assert forward(model, x, t).shape == (2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"unconditional .* pass y=None"):
        model(x, t, torch.tensor([0, 1]))


def test_one_label_per_level_reaches_its_own_level(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    assert torch.equal(forward(tiny, x, t, y[:, None].expand(-1, 2)), forward(tiny, x, t, y))
    null = torch.full_like(y, 5)
    outs = [forward(tiny, x, t, torch.stack(pair, dim=1)) for pair in ((y, y), (y, null), (null, y), (null, null))]
    for i, a in enumerate(outs):
        assert all(not torch.equal(a, b) for b in outs[:i])
    assert torch.equal(outs[3], forward(tiny, x, t))


def test_time_changes_the_output_and_may_be_fractional(tiny: nn.Module) -> None:
    x, _, y = batch(tiny)
    whole, half = (forward(tiny, x, torch.full((3,), t), y) for t in (500, 500.5))
    assert torch.equal(whole, forward(tiny, x, torch.full((3,), 500.0), y))
    assert 0 < (whole - half).abs().max() < 0.5 * (whole - forward(tiny, x, torch.full((3,), 100), y)).abs().max()


def test_gradient_reaches_every_parameter(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    y[0] = tiny.config.null_label
    weights = torch.randn(3, 4, 8, 8)
    (tiny(x, t, y) * weights).sum().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("label.weight"):
            seen = parameter.grad.abs().sum(dim=1) > 0
            assert seen.nonzero().flatten().tolist() == sorted({*y.tolist()}), name
        else:
            assert parameter.grad.abs().max() > 0, name


def test_gradients_are_right_to_finite_differences() -> None:
    model = perturb(udit.build("U-DiT-S", **TINY | {"width": 8})).double()
    x, t, y = batch(model, size=1)
    x = x.double()
    names = ["encoder.1.blocks.1.ffn.depthwise.1.weight", "encoder.0.blocks.0.attention.logit_scale"]
    names += ["decoder.0.blocks.0.ffn.expand.0.weight", "encoder.0.blocks.1.attention.filter.weight", "out.bias"]
    model(x, t, y).square().sum().backward()
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        direction = torch.randn_like(parameter)
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter += sign * 1e-5 * direction
                values.append(model(x, t, y).square().sum().item())
        measured = (values[0] - values[1]) / 2e-5
        limit = 1e-6 * (parameter.grad.norm() * direction.norm()).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(measured, abs=limit), name


def test_checkpointed_activations_give_identical_gradients(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    grads = []
    for enabled in (False, True, "selective"):
        checkpoint_activations(tiny, enabled)
        assert all(stage.checkpointing is enabled for stage in [*tiny.encoder, *tiny.decoder])
        tiny.train().zero_grad()
        tiny(x, t, y).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in tiny.parameters()])
    for gradients in zip(*grads, strict=True):
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.slow
def test_selective_checkpointing_takes_less_memory_and_recomputes_no_product(tiny: nn.Module) -> None:
    x, t, y = batch(tiny, size=16)

    def step() -> None:
        tiny(x, t, y).sum().backward()

    products, peaks = [], []
    for mode in (False, "selective"):
        checkpoint_activations(tiny.train(), mode)
        with FlopCounterMode(display=False) as counter:
            step()
        counts = counter.get_flop_counts()["Global"]
        operators = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.udit.linear
        products.append([counts.get(operator, 0) for operator in operators])
        peaks.append(CPU.dissect(step).extra)
    assert products[0] == products[1]
    assert peaks[1] < 0.8 * peaks[0]


def test_checkpointing_recomputes_blocks_in_backward(tiny: nn.Module) -> None:
    calls = []
    tiny.encoder[1].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enabled, expected in ((False, 1), (True, 2)):
        calls.clear()
        checkpoint_activations(tiny, enabled)
        tiny.train()(*batch(tiny)).sum().backward()
        assert len(calls) == expected


def test_sample_does_not_depend_on_its_batch(tiny: nn.Module) -> None:
    x, t, y = batch(tiny, size=5)
    together = forward(tiny, x, t, y)
    for i in range(5):
        alone = forward(tiny, x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(forward(tiny, x[order], t[order], y[order]), together[order], atol=2e-5, rtol=1e-5)


def test_train_and_eval_leave_weights_and_output_alone(tiny: nn.Module) -> None:
    before, inputs = snapshot(tiny), batch(tiny)
    outs = [forward(form, *inputs) for _ in range(2) for form in (tiny.train(), tiny.eval())]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert same_bits(snapshot(tiny), before)


def test_state_is_parameters_alone(tiny: nn.Module) -> None:
    assert list(tiny.state_dict()) == [name for name, _ in tiny.named_parameters()]
    assert not list(tiny.buffers())


def test_no_layer_is_subclassed_twice() -> None:
    model = udit.build("U-DiT-S", **TINY, device="meta")
    for module in model.modules():
        kind = type(module)
        assert kind.__module__.startswith("torch.") or kind.__bases__ == (nn.Module,), kind


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
def test_half_precision_stays_near_single(tiny: nn.Module, dtype: torch.dtype, limit: float) -> None:
    """Limits are eight roundings of the dtype; three are measured."""
    x, t, y = batch(tiny)
    exact = forward(tiny, x, t, y)
    half = forward(copy.deepcopy(tiny).to(dtype), x.to(dtype), t, y)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < limit * exact.abs().max()


def test_autocast_to_bfloat16_stays_near_single(tiny: nn.Module) -> None:
    inputs = batch(tiny)
    exact = forward(tiny, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = forward(tiny, *inputs)
    assert (half.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e3])
def test_inputs_of_extreme_size_stay_finite(tiny: nn.Module, dtype: torch.dtype, size: float) -> None:
    x, t, y = batch(tiny)
    for model in (tiny, udit.fuse(tiny)):
        assert forward(copy.deepcopy(model).to(dtype), size * x.to(dtype), t, y).isfinite().all()


def test_double_precision_agrees_with_single_to_rounding(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    exact = forward(copy.deepcopy(tiny).double(), x.double(), t, y)
    assert exact.dtype == torch.float64
    assert (forward(tiny, x, t, y) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_parts_of_the_forward_make_the_whole(tiny: nn.Module) -> None:
    """Step caching keeps what ``deep`` returned; conditions depend on (t, y) alone."""
    x, t, y = batch(tiny)
    with torch.no_grad():
        cond = tiny.condition(t, y)
        h, skip = tiny.enter(x, cond)
        assert torch.equal(tiny.leave(tiny.deep(h, cond), skip, cond), tiny(x, t, y))


@pytest.mark.slow
def test_exported_program_computes_the_same(tiny: nn.Module) -> None:
    """Bit-identical, with torch's depthwise convolution on both sides: an exported program has no other."""
    fused, inputs = udit.fuse(tiny), batch(tiny)
    program = torch.export.export(fused, inputs)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "udit" in name]
    assert any("conv2d" in name for name in names)
    with ops.kernels("off"):
        assert torch.equal(program.module()(*inputs), forward(fused, *inputs))


@pytest.mark.slow
def test_exported_program_takes_any_batch() -> None:
    tiny = perturb(udit.build("U-DiT-S", **TINY | {"depths": (1,)}))
    fused = udit.fuse(tiny)
    size = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fused, batch(tiny, size=3), dynamic_shapes=({0: size},) * 3).module()
    for count in (1, 3, 8):
        inputs = batch(tiny, size=count, seed=count)
        torch.testing.assert_close(program(*inputs), forward(fused, *inputs), atol=2e-5, rtol=1e-5)


def test_a_chain_of_matrices_runs_in_the_order_of_fewer_operations() -> None:
    """And gives the same either way: one by one for few rows, as their product for many."""
    chain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16))
    for rows, multiplications in ((4, 4 * (64 + 128)), (400, 400 * 128 + 8 * 8 * 16)):
        x = torch.randn(rows, 8)
        with FlopCounterMode(display=False) as counter:
            out = projected(x, chain)
        torch.testing.assert_close(out, chain(x))
        assert counter.get_total_flops() == 2 * multiplications


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (8, 10), (2, 2), (7, 7)])
def test_size_the_levels_cannot_halve_is_refused(tiny: nn.Module, size: tuple[int, int], one_line: Callable) -> None:
    with pytest.raises(ValueError, match="multiples of 4") as caught:
        tiny(torch.randn(1, 2, *size), torch.tensor([1]))
    assert f"{size[0]}x{size[1]}" in one_line(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"heads": 5}, "width 96 does not split over 5 heads"),
        ({"width": 40, "heads": 4}, "10 channels per head; RoPE needs a multiple of 4"),
        ({"depths": (1, 1)}, "a U needs an odd number"),
        ({"width": 15, "heads": 1, "attention": Downsampled(rope=False)}, "width 15 is odd"),
        ({"input_size": (32, 36)}, "an input of 32x36 cannot pass 3 levels"),
    ],
)
def test_config_that_cannot_be_built_is_refused(overrides: dict[str, Any], said: str, one_line: Callable) -> None:
    with pytest.raises(UserError) as caught:
        udit.build("U-DiT-S", device="meta", **overrides)
    assert said in one_line(caught.value)


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (12, 2)])
def test_attention_alone_checks_its_heads(width: int, heads: int) -> None:
    with pytest.raises(UserError, match="heads"):
        Downsampled().build(width, heads)


def test_network_class_is_reached_through_its_config() -> None:
    with torch.device("meta"):
        assert type(GOLDEN_CONFIG.build()) is UDiT
