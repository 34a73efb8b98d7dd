"""Weights of the release are imported under its own names, completely or not at all, and never corrupted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import udit
from conftest import TINY, batch, perturb, release_keys, same_bits, snapshot
from udit.errors import UserError
from udit.models.published import clean_keys
from udit.models.udit.config import UDiTConfig
from udit.nn.specs import Downsampled, Mlp, RepConv

# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_key_map_is_a_bijection_with_the_release_in_its_order(size: str) -> None:
    config = udit.build(f"U-DiT-{size.upper()}", device="meta").config
    theirs, ours = release_keys(size), config.published_keys()
    assert [(key, list(shape)) for key, (_, shape) in ours.items()] == list(theirs.items())
    state = udit.build(config, device="meta").state_dict()
    assert sorted(name for name, _ in ours.values()) == sorted(state)
    for name, shape in ours.values():
        assert math.prod(shape) == state[name].numel(), name
        assert [side for side in shape if side > 1] == [side for side in state[name].shape if side > 1], name


FORMS = {
    "as published": {},
    "vanilla": {"attention": Downsampled(cosine=False, rope=False), "ffn": Mlp(ratio=2)},
    "no reparameterisation": {"ffn": RepConv(branches=(5,), reparam=False)},
    "no filter": {"attention": Downsampled(kernel=0, shortcut=False)},
    "no shortcut": {"attention": Downsampled(shortcut=False)},
    "unconditional": {"num_classes": 0},
    "one level": {"depths": (1,)},
    "three levels": {"depths": (1, 2, 1, 1, 2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_exported_weights_come_back_bit_identical(form: str) -> None:
    model = perturb(udit.build("U-DiT-S", **TINY | FORMS[form]))
    exported = udit.export_published(model)
    again = udit.build(model.config, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        udit.import_published(again, exported)
    assert same_bits(snapshot(again), snapshot(model))


def test_exported_tensors_are_copies(tiny: nn.Module) -> None:
    before = snapshot(tiny)
    for value in udit.export_published(tiny).values():
        value.zero_()
    assert same_bits(snapshot(tiny), before)


def test_imported_tensors_are_copies(tiny: nn.Module) -> None:
    exported = udit.export_published(tiny)
    again = udit.build(tiny.config, seed=1)
    udit.import_published(again, exported)
    for value in exported.values():
        value.zero_()
    assert same_bits(snapshot(again), snapshot(tiny))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_taken_off(tiny: nn.Module, prefix: str) -> None:
    state = {prefix + key: value for key, value in udit.export_published(tiny).items()}
    again = udit.build(tiny.config, seed=1)
    udit.import_published(again, state)
    assert same_bits(snapshot(again), snapshot(tiny))
    assert clean_keys({f"{prefix}a.module.b": torch.ones(1)}).keys() == {"a.module.b"}


def test_import_casts_to_the_dtype_of_the_model(tiny: nn.Module) -> None:
    halves = {key: value.half() for key, value in udit.export_published(tiny).items()}
    again = udit.build(tiny.config, seed=1)
    udit.import_published(again, halves)
    expected = {key: value.half().float() for key, value in tiny.state_dict().items()}
    assert same_bits(snapshot(again), expected)


def test_fused_model_has_no_published_names(tiny: nn.Module, one_line: Callable) -> None:
    with pytest.raises(UserError, match="fused U-DiT has no published form") as caught:
        udit.export_published(udit.fuse(tiny))
    one_line(caught.value)


def test_ablation_the_release_lacks_has_no_published_names() -> None:
    with pytest.raises(UserError, match="not factor 4"):
        UDiTConfig(attention=Downsampled(factor=4)).published_keys()


# ---- all or nothing --------------------------------------------------------------------------------------------------


def _drop(state: dict[str, Tensor]) -> None:
    del state["output.bias"]


def _drop_many(state: dict[str, Tensor]) -> None:
    for key in [key for key in state if "latent" in key]:
        del state[key]


def _add(state: dict[str, Tensor]) -> None:
    state["pos_embed"] = torch.zeros(1)


def _other_size(state: dict[str, Tensor]) -> None:
    state["output.weight"] = torch.zeros(16, 32, 3, 3)


def _transposed(state: dict[str, Tensor]) -> None:
    """As many numbers in another shape."""
    state["latent.0.attn1.to_qkv.weight"] = state["latent.0.attn1.to_qkv.weight"].mT


def _nan(state: dict[str, Tensor]) -> None:
    state["x_embedder.proj.weight"][0, 0, 0, 0] = math.nan


def _infinite(state: dict[str, Tensor]) -> None:
    state["final_layer.out_proj.bias"][-1] = -math.inf


SPOILERS = [
    (_drop, "missing: output.bias"),
    (_drop_many, r"missing: latent\S+, latent\S+, latent\S+, latent\S+, latent\S+ and 41 more"),
    (_add, "unexpected: pos_embed"),
    (_other_size, r"wrong shape: output.weight is \[16, 32, 3, 3\], not \[32, 32, 3, 3\]"),
    (_transposed, r"wrong shape: latent.0.attn1.to_qkv.weight is \[32, 96\], not \[96, 32\]"),
    (_nan, "NaN or infinity in x_embedder.proj.weight"),
    (_infinite, "NaN or infinity in final_layer.out_proj.bias"),
]


@pytest.mark.parametrize(("alter", "said"), SPOILERS, ids=[f.__name__.strip("_") for f, _ in SPOILERS])
def test_bad_state_is_refused_and_the_model_keeps_its_bits(
    tiny: nn.Module, alter: Callable, said: str, one_line: Callable
) -> None:
    state = udit.export_published(tiny)
    alter(state)
    again = udit.build(tiny.config, seed=1)
    before = snapshot(again)
    with pytest.raises(UserError, match=said) as caught:
        udit.import_published(again, state)
    one_line(caught.value)
    assert same_bits(snapshot(again), before)


# ---- damage by the release's eval() ----------------------------------------------------------------------------------


def branches(state: dict[str, Tensor]) -> list[str]:
    """Names of the re-parameterised convolutions, without the branch's number."""
    return [key.removesuffix(".0.weight") for key in state if key.endswith("dwconv.0.weight")]


def trained(spread: float = 0.1) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model as training leaves it: branches that share every update where their kernels overlap; and its weights."""
    model = perturb(udit.build("U-DiT-S", **TINY))
    state = udit.export_published(udit.build("U-DiT-S", **TINY))
    fresh, state = state, udit.export_published(model)
    for i, key in enumerate(branches(state)):
        update = spread * torch.randn(fresh[f"{key}.0.weight"].shape, generator=torch.Generator().manual_seed(i))
        for branch, cut in enumerate((0, 1, 2)):
            end = 5 - cut
            state[f"{key}.{branch}.weight"] = fresh[f"{key}.{branch}.weight"] + update[:, :, cut:end, cut:end]
    udit.import_published(model, state)
    return model, state


def evaluated(state: dict[str, Tensor], times: float) -> dict[str, Tensor]:
    """What the release's ``eval()`` leaves in a checkpoint: folded branches added to the first, in place, each time."""
    altered = {key: value.clone() for key, value in state.items()}
    for key in branches(state):
        k5, k3, k1 = (altered[f"{key}.{i}.weight"] for i in range(3))
        for _ in range(math.ceil(times)):
            share = min(1.0, times)
            k5 += share * F.pad(k3, [1] * 4)
            k5 += share * F.pad(k1, [2] * 4)
            k5[:, :, 2, 2] += share
    return altered


@pytest.mark.parametrize("times", [1, 2, 3])
def test_checkpoint_saved_after_the_release_eval_is_refused(times: int, one_line: Callable) -> None:
    model, state = trained()
    before = snapshot(model)
    with pytest.raises(UserError, match=rf"after {times} eval\(\).*repair=True") as caught:
        udit.import_published(model, evaluated(state, times))
    one_line(caught.value)
    assert same_bits(snapshot(model), before)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_corrupted_checkpoint_is_repaired_to_rounding(times: int) -> None:
    model, state = trained()
    altered = evaluated(state, times)
    given = {key: value.clone() for key, value in altered.items()}
    repaired = udit.build(model.config, seed=1)
    udit.import_published(repaired, altered, repair=True)
    assert same_bits(altered, given)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(repaired.state_dict()[name], value, atol=2e-6, rtol=0)
    inputs = batch(model)
    with torch.no_grad():
        torch.testing.assert_close(repaired(*inputs), model(*inputs), atol=1e-4, rtol=1e-4)


def test_corrupted_weights_would_have_changed_the_output() -> None:
    """Shows that the damage matters."""
    model, state = trained()
    other = udit.build(model.config)
    own = other.state_dict()
    altered = evaluated(state, 1)
    for key, (name, _) in model.config.published_keys().items():
        own[name].copy_(altered[key].reshape(own[name].shape))
    inputs = batch(model)
    with torch.no_grad():
        assert (other(*inputs) - model(*inputs)).abs().max() > 0.1


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_healthy_checkpoint_passes_silently_and_untouched(spread: float, repair: bool) -> None:
    model, state = trained(spread)
    again = udit.build(model.config, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        udit.import_published(again, state, repair=repair)
    assert same_bits(snapshot(again), snapshot(model))


@pytest.mark.parametrize("excess", [0.37, 0.1])
def test_early_average_with_a_decayed_excess_is_warned_about(excess: float) -> None:
    """An average that began as a corrupted copy: 0.9999 ** 10,000 = 0.37 of the excess is left after 10,000 steps."""
    model, state = trained()
    again = udit.build(model.config, seed=1)
    with pytest.warns(UserWarning, match=r"centres of dwconv\.0 lie 0\.\d\d above") as caught:
        udit.import_published(again, evaluated(state, excess))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_average_that_forgot_its_beginning_passes_silently() -> None:
    """0.9999 ** 100,000 = 4.5e-5."""
    model, state = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        udit.import_published(model, evaluated(state, 4.5e-5))


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_no_training_pass_silently(seed: int) -> None:
    """Reference files fill every weight with independent N(0, 0.04**2)."""
    model = udit.build("U-DiT-S", **TINY)
    generator = torch.Generator().manual_seed(seed)
    state = {k: 0.04 * torch.randn(v.shape, generator=generator) for k, v in udit.export_published(model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        udit.import_published(model, state)


def test_wide_models_are_judged_too() -> None:
    """At full width the Xavier bounds are narrower; damage must still be detected, and intact weights still pass."""
    config = UDiTConfig(depths=(1, 1, 1), num_classes=2)
    state = udit.export_published(udit.build(config))
    model = udit.build(config, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        udit.import_published(model, state)
    with pytest.raises(UserError, match=r"after 1 eval\(\)"):
        udit.import_published(model, evaluated(state, 1))
