"""What reference files may hold besides an image's output: further outputs and inputs, clips, sequences, tables.

Small networks of the catalogue stand in for those of the official programs; the expected arrays are computed here, step
by step as docs/parity.md defines them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from udit.errors import UserError
from udit.models.dit.config import DiTConfig
from udit.models.parity import Described, channel_axis, flow_direction
from udit.models.uvit.config import UViTConfig
from udit.nn.specs import Context
from udit.parity import Report, check_file, network
from udit.parity.network import _Case

Arrays = dict[str, np.ndarray]
Checked = Callable[[Arrays, Described], Report]
SEED = 5
DIT = DiTConfig(width=16, depth=2, heads=2, in_channels=2, num_classes=3, input_size=8, learn_sigma=False)


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checked:
    """Checks arrays as those of a given network."""

    def check(arrays: Arrays, described: Described) -> Report:
        monkeypatch.setattr(network, "systems", lambda: {"stand-in": lambda words, size: described})
        np.savez(tmp_path / "case.npz", **arrays)  # type: ignore[arg-type]
        return check_file(tmp_path / "case.npz")

    return check


def failed(report: Report) -> set[str]:
    return {check.name.split(" ")[0] for check in report.checks if not check.ok}


def normal(offset: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(SEED + offset).standard_normal(shape).astype(np.float32))


def inputs(shape: tuple[int, ...], labels: bool = True, **words: Any) -> Arrays:
    return {
        "model": np.array([json.dumps({"system": "stand-in", **words})]),
        "seed": np.array([SEED]),
        "x_shape": np.array(shape),
        "t": np.array([3, 900]),
        "y": np.array([0, 2]) if labels else np.zeros(0, dtype=np.int64),
        "std": np.array([0.2]),
        "base_keys": np.zeros(0),
        "base_values": np.zeros(0),
        "out": np.zeros(0),
    }


def filled(arrays: Arrays, described: Described) -> nn.Module:
    """The network with the weights that a file prescribes."""
    return _Case(arrays, described, None, "cpu", torch.float32).network("").train()


def judged(arrays: Arrays, model: nn.Module, name: str, out: Tensor, probe: int, leaves: dict[str, Tensor]) -> Arrays:
    """The arrays of one output: itself, loss, gradients."""
    model.zero_grad(set_to_none=True)
    loss = (out * normal(probe, *out.shape)).mean()
    loss.backward(retain_graph=True)
    prefix = "" if name == "out" else f"{name}_"
    keys = model.config.published_keys().items()  # type: ignore[union-attr]
    own = dict(model.named_parameters())
    norms = {key: float(own[ours].grad.norm()) for key, (ours, _) in keys if ours in own and own[ours].grad is not None}
    held = arrays | {name: out.detach().numpy(), f"{prefix}loss": np.array([loss.item()])}
    held |= {f"{prefix}grad_{key}": leaf.grad.numpy().copy() for key, leaf in leaves.items() if leaf.grad is not None}
    held |= {f"{prefix}grad_norm_names": np.array(list(norms)), f"{prefix}grad_norms": np.array(list(norms.values()))}
    for leaf in leaves.values():
        leaf.grad = None
    return held


def assert_each_array_is_judged(arrays: Arrays, described: Described, checked: Checked, names: set[str]) -> None:
    report = checked(arrays, described)
    assert report.ok, str(report)
    assert names <= {check.name.split(" ")[0] for check in report.checks}
    for name in names:
        altered = checked(arrays | {name: arrays[name] * np.float32(1.001)}, described)
        assert name in failed(altered), name


# ---- further outputs -------------------------------------------------------------------------------------------------


def middle(model: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A DiT's output, and its map halfway."""
    cond = model.condition(t, y)
    x, skip = model.enter(x, cond)
    x = model.deep(x, cond)
    return model.leave(x, skip, cond), x.flatten(1, 2)


@pytest.fixture
def aligned() -> tuple[Arrays, Described]:
    described = Described(DIT, outputs=middle)
    arrays = inputs((2, 2, 8, 8))
    model, x = filled(arrays, described), normal(0, 2, 2, 8, 8).requires_grad_()
    out, aux = middle(model, x, torch.tensor([3, 900]), torch.tensor([0, 2]))
    arrays = judged(arrays, model, "out", out, 2, {"x": x})
    return judged(arrays, model, "aux0", aux, 10, {"x": x}) | {"aux0_f64_max_abs_err": np.array(1e-6)}, described


def test_further_outputs_have_losses_and_gradients_of_their_own(
    aligned: tuple[Arrays, Described], checked: Checked
) -> None:
    arrays, described = aligned
    kinds = {"", "_loss", "_grad_x", "_grad_norms"}
    assert_each_array_is_judged(arrays, described, checked, {f"aux0{kind}" for kind in kinds} | {"out", "grad_x"})
    assert len(arrays["aux0_grad_norm_names"]) < len(arrays["grad_norm_names"]), "the head has no part in it"
    assert [floor.name for floor in checked(arrays, described).floors] == ["aux0"]


def test_an_output_the_network_lacks_is_an_unknown_array(aligned: tuple[Arrays, Described], checked: Checked) -> None:
    arrays, described = aligned
    assert failed(checked(arrays | {"aux1": arrays["aux0"]}, described)) == {"aux1"}
    alone = failed(checked(arrays, Described(DIT)))
    assert alone == {name for name in arrays if name.startswith("aux0")}


# ---- further inputs --------------------------------------------------------------------------------------------------


def test_gradients_of_further_inputs_are_judged(checked: Checked) -> None:
    config = UViTConfig(
        width=16, depth=2, heads=2, in_channels=2, num_classes=0, input_size=8, context=Context(tokens=3, width=4)
    )
    described = Described(config, condition=lambda y, draw: y + draw("pooled", 4, 4)[:, None])
    arrays = inputs((2, 2, 8, 8), labels=False)
    model, x = filled(arrays, described), normal(0, 2, 2, 8, 8).requires_grad_()
    context, pooled = normal(3, 2, 3, 4).requires_grad_(), normal(4, 2, 4).requires_grad_()
    out = model(x, torch.tensor([3, 900]), context + pooled[:, None])
    arrays = judged(arrays, model, "out", out, 2, {"x": x, "context": context, "pooled": pooled})
    names = {"out", "loss", "grad_x", "grad_context", "grad_pooled"}
    assert_each_array_is_judged(arrays, described, checked, names)
    assert failed(checked(arrays | {"grad_text": arrays["grad_context"]}, described)) == {"grad_text"}


# ---- clips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, None])
def test_channels_of_another_axis_are_guided_and_differentiated(channels: int | None, checked: Checked) -> None:
    """The file's axes are batch, rows, columns, channels; the network's own are always batch, channels, ..."""
    described = Described(DIT, channel_axis=3)
    arrays = inputs((2, 8, 8, 2), cfg4_channels=channels)
    model, x = filled(arrays, described), normal(0, 2, 8, 8, 2).requires_grad_()
    t, y = torch.tensor([3, 900]), torch.tensor([0, 2])
    arrays = judged(arrays, model, "out", model(x.permute(0, 3, 1, 2), t, y).permute(0, 2, 3, 1), 2, {"x": x})
    with torch.no_grad():
        cond, null = (model(x.permute(0, 3, 1, 2), t, label).permute(0, 2, 3, 1) for label in (y, torch.tensor([3, 3])))
    guided = null + 4 * (cond - null)
    halves = [torch.cat([guided[..., :channels], half[..., channels or 2 :]], dim=-1) for half in (cond, null)]
    arrays["cfg4"] = torch.cat(halves).numpy()
    assert_each_array_is_judged(arrays, described, checked, {"out", "cfg4", "grad_x", "loss"})


def test_layouts_of_clips() -> None:
    assert [channel_axis({"layout": layout}) for layout in ("b c f h w", "b f c h w")] == [1, 2]
    with pytest.raises(UserError, match=r'the file says "?\'f c\'') as caught:
        channel_axis({"layout": "f c"})
    assert "\n" not in str(caught.value)


# ---- token sequences -------------------------------------------------------------------------------------------------


def test_sequences_are_the_networks_output_times_the_mask_s_values(checked: Checked) -> None:
    def sequence(model: nn.Module, tokens: Tensor, t: Tensor, y: Tensor, grid: Tensor, mask: Tensor) -> Tensor:
        cond = model.conditioner(t, y)[:, None]
        return tokens @ model.embed.weight.mT + cond + grid.sum(1)[..., None]

    described = Described(DIT, sequence=sequence)
    arrays = inputs((2, 2, 8, 8))
    model, t, y = filled(arrays, described), torch.tensor([3, 900]), torch.tensor([0, 2])
    grid = np.arange(20).reshape(2, 2, 5)
    mask = np.array([[1, 1, 2, 3, 0], [1, 2, 2, 0, 0]])
    with torch.no_grad():
        arrays["out"] = model(normal(0, 2, 2, 8, 8), t, y).numpy()
        made = sequence(model, normal(7, 2, 5, 8), t, y, torch.from_numpy(grid), torch.from_numpy(mask))
    arrays |= {"seq_x_shape": np.array([2, 5, 8]), "seq_grid": grid, "seq_mask": mask}
    arrays["seq_out"] = made.numpy() * mask[..., None]
    assert_each_array_is_judged(arrays, described, checked, {"out", "seq_out"})
    assert failed(checked(arrays | {"seq_mask": np.minimum(mask, 1)}, described)) == {"seq_out"}
    assert failed(checked(arrays, Described(DIT))) == {"seq_out"}
    lacking = {name: value for name, value in arrays.items() if name != "seq_grid"}
    assert "seq_out (without seq_grid)" in str(checked(lacking, described))


# ---- one number ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.array([0.1, 0.2]), np.array(["text"])], ids=["two", "text"])
def test_a_standard_deviation_that_is_no_number_fails(value: np.ndarray, checked: Checked) -> None:
    report = checked(inputs((2, 2, 8, 8)) | {"std": value}, Described(DIT))
    assert not report.ok
    assert "std (holds " in str(report)


@pytest.mark.parametrize(("noise", "reverse"), [(None, False), (0, True), (1, False), (1000, False)])
def test_direction_of_a_flow_from_the_time_of_pure_noise(noise: int | None, reverse: bool) -> None:
    assert flow_direction({"noise_at": noise}) == {"reversed_flow": reverse}
    with pytest.raises(UserError, match="the file says 7"):
        flow_direction({"noise_at": 7})
