"""Ablations of U-DiT's paper as configs: the contract of every attention, in U-DiT's and DiT's blocks, and costs."""

from __future__ import annotations

import copy
import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import TINY, batch, perturb, same_bits, snapshot
from peers import learns
from udit.analysis import cost
from udit.errors import UserError
from udit.models.ablation import ABLATIONS, DIT_UNETS
from udit.models.build import checkpoint_activations
from udit.models.catalog import find
from udit.models.udit.config import UDiTConfig
from udit.nn.specs import BridgedWindow, Downsampled, Full, KVDownsampled, Mlp, RepConv, Window
from udit.run.config import model_from

U_SHELL = UDiTConfig(**TINY)
DIT_SHELL = find("DiT-S/2").config.replace(
    width=16, depth=3, heads=2, patch=1, in_channels=2, num_classes=5, input_size=8
)
PLAIN = {"cosine": False, "rope": False}
ATTENTIONS = {
    "full": Full(),
    "full plain": Full(**PLAIN),
    "kv": KVDownsampled(),
    "kv plain": KVDownsampled(kernel=0, shortcut=False, **PLAIN),
    "windows": Window(size=4),
    "windows plain": Window(size=4, shift=False, **PLAIN),
    "ordinary": Downsampled(kernel=3, dense=True),
    "bridged": BridgedWindow(size=4, kernel=3),
}
SHELLS = {
    **{f"U {name}": U_SHELL.replace(attention=spec.model_dump()) for name, spec in ATTENTIONS.items()},
    **{f"DiT {name}": DIT_SHELL.replace(attention=spec.model_dump()) for name, spec in ATTENTIONS.items()},
    "DiT downsampled": DIT_SHELL.replace(attention=Downsampled().model_dump()),
}
RECTANGLES = {"full": (6, 10), "kv": (4, 12), "windows": (8, 16), "ordinary": (4, 12)}
"""Sizes off the square that the U shell of two levels takes, by attention."""


def near(out: Tensor, expected: Tensor, limit: float = 1e-5) -> bool:
    return bool((out - expected).abs().max() < limit * expected.abs().max())


@pytest.fixture(params=SHELLS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return perturb(udit.build(SHELLS[request.param]))


# ---- the contract of every attention ---------------------------------------------------------------------------------


@torch.no_grad()
def test_fusing_keeps_the_output_and_modes_keep_the_weights(model: nn.Module) -> None:
    before, given = snapshot(model), batch(model)
    out = model.train()(*given)
    assert torch.equal(model.eval()(*given), out)
    assert near(udit.fuse(model)(*given), out)
    assert same_bits(snapshot(model), before)
    plain = json.loads(json.dumps(model.config.model_dump(mode="json")))
    assert model_from(plain) == model.config


@pytest.mark.slow
def test_training_reaches_every_parameter(model: nn.Module) -> None:
    y = batch(model)[2]
    before, after = learns(udit.build(model.config), y)
    assert after < before


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model: nn.Module) -> None:
    given = batch(model)
    alone = torch.cat([model(*(part[i : i + 1] for part in given)) for i in range(3)])
    assert near(alone, model(*given), 2e-5)


@torch.no_grad()
def test_half_precision_is_close(model: nn.Module) -> None:
    x, t, y = batch(model)
    exact = model(x, t, y)
    half = copy.deepcopy(model).bfloat16()(x.bfloat16(), t, y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x, t, y)
    assert half.dtype == torch.bfloat16
    assert near(half.float(), exact, 0.05)
    assert near(mixed.float(), exact, 0.05)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients(model: nn.Module) -> None:
    grads = []
    for enabled in (False, True):
        model.train().zero_grad()
        checkpoint_activations(model, enabled)
        model(*batch(model)).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


QUICK, EXPORTED = ("U kv", "U windows"), ("U full", "U ordinary", "DiT windows")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED)])
@torch.no_grad()
def test_exported_program_takes_any_batch(name: str) -> None:
    config = SHELLS[name].replace(**{"depths": (1,)} if name.startswith("U") else {"depth": 2})
    model = udit.fuse(perturb(udit.build(config)))
    size = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, batch(model), dynamic_shapes=({0: size},) * 3).module()
    given = batch(model, size=5)
    assert near(program(*given), model(*given), 2e-5)


@pytest.mark.parametrize("name", RECTANGLES)
@torch.no_grad()
def test_rectangles_run_and_rows_are_not_columns(name: str) -> None:
    model = perturb(udit.build(SHELLS[f"U {name}"]))
    x, t = torch.randn(2, 2, *RECTANGLES[name]), torch.tensor([3, 900])
    straight, across = model(x, t), model(x.mT, t).mT
    assert straight.shape == (2, 4, *RECTANGLES[name])
    assert near(udit.fuse(model)(x, t), straight)
    assert not near(straight, across, 1e-3)


# ---- every option has an effect ------------------------------------------------------------------------------------

KNOBS: list[tuple[Any, dict[str, Any]]] = [
    (Full(), {"rope": False}),
    (Full(cosine=False), {"rope": False}),
    (KVDownsampled(), {"rope": False}),
    (KVDownsampled(), {"factor": 1}),
    (KVDownsampled(), {"shortcut": False}),
    (Downsampled(), {"rope": False}),
    (Downsampled(), {"factor": 1}),
    (Downsampled(), {"shortcut": False}),
    (Downsampled(dense=True), {"shortcut": False}),
    (Window(size=4), {"rope": False}),
    (Window(size=4), {"size": 2}),
    (Window(size=4), {"shift": False}),
]


@pytest.mark.parametrize(("spec", "change"), KNOBS, ids=str)
@torch.no_grad()
def test_an_option_changes_the_output_of_the_same_weights(spec: Any, change: dict[str, Any]) -> None:
    model = perturb(udit.build(U_SHELL.replace(attention=spec.model_dump())))
    other = udit.build(U_SHELL.replace(attention=spec.replace(**change).model_dump()))
    other.load_state_dict(model.state_dict())
    assert not near(other(*batch(model)), model(*batch(model)), 1e-4)


@pytest.mark.parametrize("spec", [Full(), KVDownsampled(), Downsampled(), Window(size=4)], ids=lambda spec: spec.kind)
@torch.no_grad()
def test_cosine_similarity_has_a_learned_scale_and_the_scaled_product_none(spec: Any) -> None:
    cosine = perturb(udit.build(U_SHELL.replace(attention=spec.model_dump())))
    scaled = udit.build(U_SHELL.replace(attention=spec.replace(cosine=False).model_dump()))
    shared = {key: value for key, value in cosine.state_dict().items() if not key.endswith("logit_scale")}
    assert len(cosine.state_dict()) - len(shared) == sum(2 * depth for depth in U_SHELL.depths)
    scaled.load_state_dict(shared)
    assert not near(scaled(*batch(cosine)), cosine(*batch(cosine)), 1e-4)


# ---- the paper's chain ---------------------------------------------------------------------------------------------


def differences(one: UDiTConfig, other: UDiTConfig) -> set[str]:
    a, b = ({**c.model_dump(), "ffn": c.ffn, "attention": c.attention.model_dump()} for c in (one, other))
    a |= {f"attention.{key}": value for key, value in a.pop("attention").items()}
    b |= {f"attention.{key}": value for key, value in b.pop("attention").items()}
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_rows_of_table_9_add_one_change_each() -> None:
    chain = ["vanilla", "cosine", "rope", "dwconv", ""]
    configs = [ABLATIONS[f"U-DiT-T-like-{name}".removesuffix("-")] for name in chain]
    changed = [differences(*pair) for pair in pairwise(configs)]
    assert changed == [{"attention.cosine"}, {"attention.rope"}, {"ffn"}, {"ffn"}]
    assert [config.ffn for config in configs[2:]] == [Mlp(ratio=2), RepConv(branches=(5,), reparam=False), RepConv()]


def test_downsamplers_of_table_7_differ_in_the_filter_alone() -> None:
    of = {name: ABLATIONS[f"U-DiT-T-like-{name}"] for name in ("unshuffle", "depthwise", "vanilla", "ordinary")}
    assert differences(of["unshuffle"], of["depthwise"]) == {"attention.kernel"}
    assert differences(of["depthwise"], of["vanilla"]) == {"attention.shortcut"}
    assert differences(of["depthwise"], of["ordinary"]) == {"attention.dense"}
    assert isinstance(ABLATIONS["DiT-UNet-T-like"].attention, Full)
    assert isinstance(ABLATIONS["DiT-UNet-T-like-kv"].attention, KVDownsampled)


@cache
def macs_of(name: str) -> int:
    return cost(find(name).config).macs


@pytest.mark.slow
def test_macs_of_the_chain_are_in_the_order_of_the_papers_tables() -> None:
    """The paper prints 1.40, .91, .89, .91, .91, 2.22 and .95 billion; its sizes are unpublished, so only the order."""
    macs = {name: macs_of(name) for name in ABLATIONS}
    u, full = "U-DiT-T-like", macs["DiT-UNet-T-like"]
    assert macs[f"{u}-unshuffle"] < macs[f"{u}-depthwise"] == macs[f"{u}-vanilla"] < full < macs[f"{u}-ordinary"]
    assert macs[f"{u}-vanilla"] == macs[f"{u}-cosine"] == macs[f"{u}-rope"] < macs[f"{u}-dwconv"] == macs[u] < full
    assert macs["DiT-UNet-T-like-kv"] < full
    levels = [(48, 1024, 1), (96, 256, 2), (192, 64, 4), (96, 256, 2), (96, 1024, 1)]
    attention = sum(2 * depth * 2 * width * pixels**2 for width, pixels, depth in levels)
    assert full - macs[f"{u}-unshuffle"] == attention * 3 // 4


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_dit_unet_costs_what_dit_does_within_two_percent(size: str) -> None:
    config = DIT_UNETS[f"DiT-UNet-{size}"]
    assert abs(macs_of(f"DiT-UNet-{size}") / macs_of(f"DiT-{size}/2") - 1) < 0.02
    assert (config.attention, config.ffn) == (Full(cosine=False, rope=False), Mlp(ratio=2))
    assert config.depths == UDiTConfig().depths


@pytest.mark.slow
def test_the_docs_print_the_macs_that_are_counted() -> None:
    lines = (Path(__file__).parents[1] / "docs" / "ablations.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if "T-like" in line and line[0] == "|"]
    assert [name for name, _, _ in rows] == list(ABLATIONS)
    assert [printed for _, _, printed in rows] == [f"{macs_of(name) / 1e9:.3f}" for name in ABLATIONS]


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "size", "said"),
    [
        (U_SHELL.replace(attention=Full().model_dump()), (7, 8), "H and W must be multiples of 2, e.g. 8x8"),
        (U_SHELL.replace(attention=KVDownsampled().model_dump()), (6, 8), "must be multiples of 4"),
        (U_SHELL.replace(attention=Window(size=4).model_dump()), (12, 12), "windows of 4x4 do not tile .* of 6x6"),
        (DIT_SHELL.replace(attention=Window(size=4).model_dump()), (6, 8), "windows of 4x4 do not tile .* of 6x8"),
        (DIT_SHELL.replace(attention=Downsampled().model_dump()), (7, 8), "makes 7x8 patches.* multiples of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shell: Any, size: tuple[int, int], said: str, one_line: Any) -> None:
    with pytest.raises(UserError, match=said) as caught:
        shell.replace(input_size=size)
    one_line(caught.value)
    with pytest.raises(ValueError, match=said):
        udit.build(shell)(torch.randn(1, 2, *size), torch.tensor([1]))


@pytest.mark.parametrize("name", [name for name in SHELLS if name != "DiT full plain"])
def test_ablations_have_no_published_names(name: str, one_line: Any) -> None:
    with pytest.raises(UserError, match="the release has") as caught:
        SHELLS[name].published_keys()
    one_line(caught.value)


def test_unknown_kind_of_attention_gives_the_nearest() -> None:
    with pytest.raises(UserError, match=r"attention.kind is 'windows'; did you mean 'window'"):
        udit.build("U-DiT-S", attention={"kind": "windows"})
    assert udit.build("U-DiT-S", device="meta", attention={"rope": False}).config.attention == Downsampled(rope=False)
