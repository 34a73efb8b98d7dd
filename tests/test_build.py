"""From a name to weights, and from a network to its fused copy, which leaves the original unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

import udit
from conftest import TINY, batch, perturb, same_bits, snapshot
from udit import ops, rng
from udit.errors import UserError
from udit.models.build import SELECTIVE_BUDGET, checkpoint_activations, compile_blocks, configure, rebuild
from udit.models.udit.config import UDiTConfig
from udit.nn.blocks import Checkpointing
from udit.nn.specs import Downsampled, Mlp, RepConv


def forward(model: nn.Module, *args: Tensor) -> Tensor:
    with torch.no_grad():
        return model(*args)


# ---- building --------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bits_and_another_gives_others() -> None:
    a, b, c = (snapshot(udit.build("U-DiT-S", **TINY, seed=seed)) for seed in (3, 3, 4))
    assert same_bits(a, b)
    drawn = [name for name in a if a[name].unique().numel() > 1]
    assert len(drawn) > 50
    assert not any(torch.equal(a[name], c[name]) for name in drawn)


def test_initial_weights_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    a = snapshot(udit.build("U-DiT-S", **TINY))
    before = torch.get_rng_state()
    b = snapshot(udit.build("U-DiT-S", **TINY))
    assert same_bits(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_parameter_is_drawn_by_its_own_name() -> None:
    """So a deeper model starts from the same weights where names agree, whatever was built before."""
    shallow = snapshot(udit.build("U-DiT-S", **TINY))
    deep = snapshot(udit.build("U-DiT-S", **TINY | {"depths": (1, 3, 2)}))
    assert len(deep) > len(shallow)
    assert all(torch.equal(deep[name], value) for name, value in shallow.items())
    name = "conditioners.0.time.0.weight"
    drawn = 0.02 * torch.randn(shallow[name].shape, generator=rng.generator(0, f"init/{name}"))
    assert torch.equal(shallow[name], drawn)


def test_no_two_parameters_share_their_numbers() -> None:
    state = snapshot(udit.build("U-DiT-S", **TINY))
    starts = [
        tuple((value / value.std()).flatten()[:4].tolist()) for value in state.values() if value.unique().numel() > 4
    ]
    assert len(starts) == len(set(starts)) > 50


def test_initial_weights_follow_their_rules() -> None:
    """Zero gates and head, zero biases, logit_scale ln 10, N(0, 0.02) conditioners, Xavier for the rest."""
    model = udit.build("U-DiT-S", depths=(1, 1, 1), num_classes=50)
    for name, value in model.named_parameters():
        if name.startswith("out.") or "modulation" in name or name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("logit_scale"):
            torch.testing.assert_close(value, torch.full_like(value, 10).log(), msg=name)
        elif name.startswith("conditioners."):
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(value)
            if name == "stem.weight":
                fan_in, fan_out = value[0].numel(), value.shape[0]
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert value.abs().max().item() <= bound, name
            spread = 8 * bound / (3 * value.numel()) ** 0.5
            assert value.std().item() == pytest.approx(bound / 3**0.5, abs=spread), name


def test_meta_device_allocates_nothing() -> None:
    assert all(parameter.is_meta for parameter in udit.build("U-DiT-L", device="meta").parameters())


def test_building_goes_where_torch_is_told_to_unless_a_device_is_named() -> None:
    expected = snapshot(udit.build("U-DiT-S", **TINY))
    with torch.device("meta"):
        empty = udit.build("U-DiT-S", **TINY)
        assert same_bits(snapshot(udit.build("U-DiT-S", **TINY, device="cpu")), expected)
        with torch.device("cpu"):
            assert same_bits(snapshot(udit.build("U-DiT-S", **TINY)), expected)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert all(parameter.is_meta for parameter in udit.fuse(empty).parameters())
    empty.to_empty(device="cpu").load_state_dict(expected)
    assert same_bits(snapshot(empty), expected)


def test_float64_default_dtype_does_not_leak_into_weights() -> None:
    expected = snapshot(udit.build("U-DiT-S", **TINY))
    torch.set_default_dtype(torch.float64)
    try:
        assert same_bits({k: v.float() for k, v in snapshot(udit.build("U-DiT-S", **TINY)).items()}, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_config_and_name_build_the_same_network() -> None:
    config = configure("U-DiT-S", **TINY)
    assert isinstance(config, UDiTConfig)
    assert same_bits(snapshot(udit.build(config)), snapshot(udit.build("U-DiT-S", **TINY)))
    assert udit.build(config, device="meta").config == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"numclasses": 5}, "did you mean 'num_classes'?"),
        ({"depth": (1, 1, 1)}, "did you mean 'depths'?"),
        ({"input_sizes": 8}, "did you mean 'input_size'?"),
        ({"in_chanels": 1}, "did you mean 'in_channels'?"),
        ({"width": "16"}, "it takes a whole number"),
        ({"width": 0}, "greater than 0"),
        ({"num_classes": -1}, "it must be at least 0"),
        ({"attention": {"kernal": 3}}, "did you mean 'kernel'?"),
        ({"family": "DiT"}, "family is 'DiT'"),
    ],
)
def test_overrides_are_checked_against_the_config(overrides: dict[str, Any], said: str, one_line: Callable) -> None:
    with pytest.raises(UserError) as caught:
        udit.build("U-DiT-S", **overrides)
    assert said in one_line(caught.value)


@pytest.mark.parametrize("name", ["U-DiT-s", "UDiT-S", "U-DiT-S ", "u-dit-s"])
def test_unknown_name_gives_the_nearest_known_one(name: str, one_line: Callable) -> None:
    with pytest.raises(UserError, match="no model") as caught:
        udit.build(name)
    assert "did you mean 'U-DiT-S'?" in one_line(caught.value)
    assert "U-DiT-S" in udit.list_models()


def test_rebuild_refuses_keys_that_do_not_match(tiny: nn.Module) -> None:
    state = dict(tiny.state_dict())
    del state["out.bias"]
    with pytest.raises(RuntimeError, match=r"out\.bias"):
        rebuild(tiny.config, state)


# ---- fusing ----------------------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "as published": {},
    "vanilla": {"attention": Downsampled(cosine=False, rope=False), "ffn": Mlp(ratio=2)},
    "no filter": {"attention": Downsampled(kernel=0, shortcut=False)},
    "filter without shortcut": {"attention": Downsampled(kernel=3, shortcut=False)},
    "other branches": {"ffn": RepConv(branches=(7, 1), ratio=1.5)},
    "no reparameterisation": {"ffn": RepConv(branches=(5,), reparam=False)},
    "other sub-grids": {"attention": Downsampled(factor=4, kernel=7), "input_size": 16},
}


@pytest.mark.parametrize("form", FORMS)
def test_fused_model_agrees_and_the_argument_keeps_its_bits(form: str) -> None:
    model = perturb(udit.build("U-DiT-S", **TINY | FORMS[form]))
    before, training = snapshot(model), model.training
    fused = udit.fuse(model)
    x, t, y = batch(model)
    expected = forward(model, x, t, y)
    assert (forward(fused, x, t, y) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert same_bits(snapshot(model), before)
    assert model.training is training


def test_fused_model_is_a_new_model_of_parameters_in_eval_mode(tiny: nn.Module) -> None:
    fused = udit.fuse(tiny.train())
    assert fused is not tiny
    assert type(fused) is type(tiny)
    assert not any(module.training for module in fused.modules())
    assert list(fused.state_dict()) == [name for name, _ in fused.named_parameters()]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in fused.parameters())
    assert tiny.training
    own = {p.untyped_storage().data_ptr() for p in tiny.parameters()}
    assert not own & {p.untyped_storage().data_ptr() for p in fused.parameters()}
    before = snapshot(tiny)
    perturb(fused)
    assert same_bits(snapshot(tiny), before)


def test_fused_model_has_fewer_parameters_by_the_folded_ones() -> None:
    """Each pair of matrices becomes one, three depthwise kernels one; the attention's shortcut adds no parameters."""
    model = udit.build("U-DiT-S", **TINY)
    saved = 0
    for width, blocks in ((16, 2), (32, 2), (32, 2)):
        hidden = 2 * width
        matrices = 2 * (width * width + width)
        depthwise = hidden * (9 + 1 + 2)
        saved += blocks * (matrices + depthwise)
    count = sum(p.numel() for p in model.parameters())
    assert count - sum(p.numel() for p in udit.fuse(model).parameters()) == saved


def test_fusing_twice_is_copying(tiny: nn.Module) -> None:
    once = udit.fuse(tiny)
    twice = udit.fuse(once)
    assert twice is not once
    assert same_bits(snapshot(once), snapshot(twice))
    assert once.config == twice.config


def test_fused_config_builds_the_fused_network(tiny: nn.Module) -> None:
    fused = udit.fuse(tiny)
    config = type(fused.config).model_validate_json(fused.config.model_dump_json())
    assert config == fused.config == tiny.config.folded()
    again = udit.build(config)
    again.load_state_dict(load(save(fused.state_dict())))
    inputs = batch(tiny)
    assert torch.equal(forward(again, *inputs), forward(fused, *inputs))


def test_fused_weights_are_what_the_paper_folds(tiny: nn.Module) -> None:
    block, folded = tiny.encoder[1].blocks[0], udit.fuse(tiny).encoder[1].blocks[0]
    first, second = block.ffn.expand
    torch.testing.assert_close(folded.ffn.expand.weight, second.weight @ first.weight)
    torch.testing.assert_close(folded.ffn.expand.bias, second.weight @ first.bias + second.bias)
    k5, k3, k1 = (conv.weight for conv in block.ffn.depthwise)
    kernel = k5.clone()
    kernel[:, :, 1:4, 1:4] += k3
    kernel[:, :, 2:3, 2:3] += k1 + 1
    torch.testing.assert_close(folded.ffn.depthwise[0].weight, kernel)
    shortcut = block.attention.filter.weight.clone()
    shortcut[:, :, 2, 2] += 1
    torch.testing.assert_close(folded.attention.filter.weight, shortcut)


def test_composed_training_forward_equals_running_the_branches(tiny: nn.Module) -> None:
    ffn = tiny.encoder[0].blocks[0].ffn
    x = torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        z = nn.functional.gelu(ffn.expand(x)).permute(0, 3, 1, 2)
        z = z + sum(conv(z) for conv in ffn.depthwise)
        torch.testing.assert_close(ffn(x), ffn.contract(z.permute(0, 2, 3, 1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fusing_keeps_the_dtype(tiny: nn.Module, dtype: torch.dtype) -> None:
    fused = udit.fuse(tiny.to(dtype))
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert same_bits(snapshot(fused.double()), snapshot(fused))


def test_fused_model_learns(tiny: nn.Module) -> None:
    fused = udit.fuse(tiny)
    fused(*batch(fused)).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


# ---- nothing but training changes weights ----------------------------------------------------------------------------

OPERATIONS = ("train", "eval", "save and load", "deepcopy", "fuse", "forward", "export", "requires_grad", "zero_grad")


@pytest.mark.slow
@settings(max_examples=5)
@given(st.lists(st.sampled_from(OPERATIONS), min_size=50, max_size=50))
def test_no_sequence_of_calls_changes_a_bit_of_the_weights(operations: list[str]) -> None:
    """The release folds in place in ``eval()``; here neither order nor repetition matters."""
    model = perturb(udit.build("U-DiT-S", **TINY | {"width": 8, "heads": 1, "depths": (1,), "input_size": 4}), std=0.02)
    before, inputs = snapshot(model), batch(model, size=1)
    expected = forward(model, *inputs)
    fused = snapshot(udit.fuse(model))
    for operation in operations:
        if operation in ("train", "eval"):
            model = getattr(model, operation)()
        elif operation == "save and load":
            state = load(save(model.state_dict()))
            model = udit.build(model.config, seed=99)
            model.load_state_dict(state)
        elif operation == "deepcopy":
            model = copy.deepcopy(model)
        elif operation == "fuse":
            assert same_bits(snapshot(udit.fuse(model)), fused)
        elif operation == "export":
            twin = udit.build(model.config, seed=98)
            udit.import_published(twin, udit.export_published(model))
            model = twin
        elif operation == "forward":
            assert torch.equal(forward(model, *inputs), expected)
        elif operation == "requires_grad":
            model.requires_grad_(False).requires_grad_(True)
        else:
            model.zero_grad()
    assert same_bits(snapshot(model), before)


def test_saved_file_is_bit_identical_after_eval_and_forward(tiny: nn.Module, tmp_path: Path) -> None:
    first = save(tiny.train().state_dict())
    forward(tiny.eval(), *batch(tiny))
    udit.fuse(tiny)
    assert save(tiny.state_dict()) == first


@pytest.mark.slow
def test_compiled_blocks_take_more_sizes_of_batches_than_dynamo_allows_by_itself() -> None:
    model = compile_blocks(udit.fuse(udit.build("U-DiT-S", **TINY)))
    x, t, y = batch(model, size=4)
    with torch.no_grad():
        whole = model(x, t, y)
        for count in (1, 2, 3):  # of three levels: more than eight shapes of blocks
            torch.testing.assert_close(model(x[:count], t[:count], y[:count]), whole[:count], atol=2e-5, rtol=1e-5)


def test_selective_recomputation_of_compiled_blocks_is_the_compilers() -> None:
    """The hooks of the eager one would break its graphs."""
    from torch._functorch import config as functorch

    for recompute, kept, share in (("selective", False, SELECTIVE_BUDGET), (True, True, 1.0), (False, False, 1.0)):
        model = udit.build("U-DiT-tiny")
        checkpoint_activations(model, recompute)  # type: ignore[arg-type]
        with ops.kernels("off"):  # torch's own operators, which the compiler knows
            compile_blocks(model)
        assert {m.checkpointing for m in model.modules() if isinstance(m, Checkpointing)} == {kept}
        assert functorch.activation_memory_budget == share  # type: ignore[attr-defined]
