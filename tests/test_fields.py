"""Fields of numbers, and conditions beside the noisy image: next states, enlarging, filling in, colouring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udit
from conftest import perturb
from runs import image_folder, metrics, small_run, state_hash, train
from udit.data.condition import Averaged, Luminance, Masked
from udit.data.config import FieldsData
from udit.data.fields import load
from udit.diffusion.beside import Beside
from udit.errors import UserError
from udit.models.catalog import CATALOG
from udit.rollout import roll_out

OneLine = Callable[[BaseException], str]


def waves(path: Path, **more: Any) -> list[str]:
    """Writes four trajectories of five states, the last one for tests; returns the settings of a run on them."""
    random = np.random.default_rng(0)
    start = random.normal(size=(4, 1, 2, 8, 8))
    scale = np.array([2.0, 300.0]).reshape(1, 1, 2, 1, 1)
    states = np.concatenate([np.roll(start, k, axis=-1) for k in range(5)], axis=1) * scale + 5
    flat = states.reshape(-1, 2, 8, 8).astype(np.float32)
    arrays = {"fields": flat[:15], "trajectory": np.repeat([0, 1, 2], 5)}
    arrays |= {"test_fields": flat[15:], "test_trajectory": np.full(5, 3)}
    np.savez(path, **{key: value for key, value in (arrays | more).items() if value is not None})
    return ["data.kind=fields", f"data.path={path}", "data.test_share=null"]


NEXT = ["data.condition=previous", "diffusion.kind=flow", "sampling.sampler=flow-euler"]


def test_the_first_state_of_a_trajectory_has_none_before(tmp_path: Path) -> None:
    waves(tmp_path / "w.npz")
    alone = load(FieldsData(path=tmp_path / "w.npz"))
    pairs = load(FieldsData(path=tmp_path / "w.npz", condition="previous"))
    assert (len(alone), alone.before, len(pairs)) == (20, None, 16)
    assert pairs.before is not None
    assert not set(pairs.rows) & {0, 5, 10, 15}
    for i in (0, 7, 15):
        before = torch.from_numpy(pairs.fields[pairs.before[i]])
        assert torch.equal(torch.from_numpy(pairs.image(i)), before.roll(1, -1))
    assert [str(pairs.names[int(i)]) for i in pairs.held_out] == [
        f"field {row} of trajectory 3" for row in range(16, 20)
    ]
    assert alone.fingerprint != pairs.fingerprint


DAMAGE = {
    "nan": ({"fields": np.full((2, 1, 8, 8), np.nan, np.float32)}, "holds nan in field 0, channel 0, row 0, column 0"),
    "large": ({"fields": np.full((2, 1, 8, 8), 1e300)}, "holds 1e+300 in field 0"),
    "bytes": ({"fields": np.zeros((2, 1, 8, 8), np.uint8)}, "is uint8 [2, 1, 8, 8]; fields are floats [N, C, H, W]"),
    "flat": ({"fields": np.zeros((2, 8, 8), np.float32)}, "fields are floats [N, C, H, W]"),
    "none": ({"fields": None}, "it needs an array named fields"),
    "trajectory": ({"trajectory": np.zeros(3, np.int64)}, "has a whole number for each of the 15 fields"),
    "test": ({"test_fields": np.zeros((5, 1, 8, 8), np.float32)}, "of another shape than fields"),
    "same": ({"fields": np.ones((15, 2, 8, 8), np.float32)}, "channel 0 of fields in"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_fields_are_one_line(tmp_path: Path, one_line: OneLine, name: str) -> None:
    arrays, told = DAMAGE[name]
    with pytest.raises(UserError) as refused:
        small_run(tmp_path / "out", *waves(tmp_path / "w.npz", **arrays), *NEXT).data.build()
    assert told in one_line(refused.value)


def test_a_model_keeps_the_normalisation_and_continues_states(tmp_path: Path) -> None:
    words = [*waves(tmp_path / "w.npz"), *NEXT, "training.steps=2", "sampling.steps=2"]
    train(tmp_path / "run", *words)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["condition"] == {"kind": "previous"}
    assert config["model"]["in_channels"] == config["model"]["condition_channels"] == 2
    fields = np.load(tmp_path / "w.npz")["fields"].astype(np.float64)
    assert config["codec"]["mean"] == pytest.approx(fields.mean((0, 2, 3)), rel=1e-5)
    assert config["codec"]["std"] == pytest.approx(fields.std((0, 2, 3)), rel=1e-5)
    assert "val_loss" in metrics(tmp_path / "run")[-1]
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()
    system = udit.load(tmp_path / "run")
    states = torch.from_numpy(np.load(tmp_path / "w.npz")["test_fields"][:3])
    first, second = roll_out(system, states, 2)
    assert first.dtype == torch.float32
    assert first.shape == second.shape == states.shape
    assert not torch.equal(first, first.round()), "nothing is rounded to bytes"
    (again,) = roll_out(system, states[2:], 1, seeds=[2])
    assert torch.allclose(first[2], again[0], rtol=1e-4, atol=1e-2)
    images = udit.generate(tmp_path / "run", condition=tmp_path / "w.npz", seeds=[4, 5])
    images.save_npz(tmp_path / "made.npz")
    made = np.load(tmp_path / "made.npz")["fields"]
    assert (made.shape, made.dtype) == ((2, 2, 8, 8), np.float32)
    images.save_pngs(tmp_path / "pngs")
    assert (tmp_path / "pngs" / "grid.png").is_file()


def test_resuming_is_exact(tmp_path: Path) -> None:
    words = [*waves(tmp_path / "w.npz"), *NEXT]
    train(tmp_path / "unbroken", *words, "training.steps=6")
    train(tmp_path / "resumed", *words, "training.steps=3")
    train(tmp_path / "resumed", *words, "training.steps=6")
    assert state_hash(tmp_path / "unbroken") == state_hash(tmp_path / "resumed")


def test_averages_are_as_large_as_their_squares() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    made = Averaged(2)(x, None, [])
    assert made[0, 0].tolist() == [[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2


def test_a_rectangle_is_hidden_by_the_key_alone() -> None:
    x = torch.randn(3, 2, 12, 8)
    keys = [(0, 5), (0, 6), (1, 5)]
    mask = Masked(0.25, 0.75)
    made = mask(x, None, keys)
    assert torch.equal(made[1:2], mask(x[1:2], None, keys[1:2]))
    hidden = made[:, 2:]
    assert torch.equal(made[:, :2], x * (1 - hidden))
    assert len({tuple(each.flatten().tolist()) for each in hidden}) == 3
    for each in hidden[:, 0]:
        rows, columns = each.amax(1), each.amax(0)
        assert torch.equal(each, rows[:, None] * columns), "a rectangle"
        assert 3 <= rows.sum() <= 9
        assert 2 <= columns.sum() <= 6


def test_grey_is_the_mean_of_channels() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(Luminance()(x, None, [])[:, 0], x.mean(1))


@pytest.mark.parametrize("kind", ["low-resolution", "mask"])
def test_images_are_trained_and_sampled_beside_a_condition(tmp_path: Path, kind: str) -> None:
    data = image_folder(tmp_path / "data", 6)
    train(tmp_path / "run", *data, f"data.condition.kind={kind}", "training.steps=2", "sampling.guidance=2")
    system = udit.load(tmp_path / "run")
    perturb(system.backbone)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    condition = system.condition_of(images)
    for steps in (1, 2):
        sampling = system.config.sampling.replace(steps=steps, cache=steps)
        together = torch.cat(list(system.generate([0, 1, 2], [0, 1, 0], condition=condition, sampling=sampling)))
        alone = torch.cat(list(system.generate([1], [1], condition=condition[1:2], sampling=sampling)))
        assert (together[1].int() - alone[0].int()).abs().max() <= 1
    other = torch.cat(list(system.generate([0], [0], condition=condition[2:])))
    assert not torch.equal(other[0], torch.cat(list(system.generate([0], [0], condition=condition[:1])))[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, row in CATALOG.items() if name.endswith("-tiny") and row.config.clip_frames is None]
)
def test_every_family_sees_a_condition(name: str) -> None:
    config = CATALOG[name].config.replace(condition_channels=3)
    network = udit.build(config, device="meta")
    shape = config.condition_shape
    y = None if shape is None else torch.zeros(2, *shape, dtype=torch.float32 if shape else torch.long, device="meta")
    x = torch.empty(2, config.in_channels, *config.size, device="meta")
    beside = torch.empty(1, 3, *config.size, device="meta")
    out = Beside(network, beside)(x, torch.zeros(2, device="meta"), y)
    assert out.shape == (2, config.out_channels, *config.size)


def test_what_cannot_be_seen_beside_is_one_line(tmp_path: Path, one_line: OneLine) -> None:
    images = image_folder(tmp_path / "data", 3)
    fields = waves(tmp_path / "w.npz")
    for words, told in (
        ([*images, "data.condition=previous"], "data.kind folder has no order in time"),
        ([*images, "data.condition=grey"], "the images are grey already; set data.channels=3"),
        ([*images, "data.condition.kind=low-resolution", "data.condition.factor=3"], "take a factor of both sides"),
        ([*images, "data.condition=mask", "codec.kind=space-to-depth"], "set codec.kind=identity"),
        ([*images, "data.condition=blurred"], "data.condition.kind is 'blurred'"),
        ([*images, "codec.kind=field", "codec.mean=[0]", "codec.std=[1]"], "whose images are of 8 bits"),
        ([*images, "model.condition_channels=1"], "model.condition_channels is 1 and data.condition has 0"),
        ([*fields, "codec.kind=identity"], "fields are no images of 8 bits; leave codec out"),
        ([*fields, "codec.mean=[0]"], "codec.mean has 1 numbers and the fields have 2 channels"),
    ):
        with pytest.raises(UserError) as refused:
            small_run(tmp_path / "out", *words)
        assert told in one_line(refused.value), words


def test_a_missing_or_needless_condition_is_one_line(tmp_path: Path, one_line: OneLine) -> None:
    words = [*waves(tmp_path / "w.npz"), *NEXT, "training.steps=1", "model.width=4"]
    train(tmp_path / "run", *words)
    system = udit.load(tmp_path / "run")
    asked: list[tuple[Callable[[], Any], str]] = [
        (lambda: udit.generate(tmp_path / "run"), "sees a condition of 2 channels beside the noisy image"),
        (lambda: system.steps([0]), "sees 2 channels beside the noisy image and was given none"),
        (
            lambda: system.steps([0], condition=torch.zeros(2, 2, 8, 8)),
            "condition is [2, 2, 8, 8] and the model takes [1",
        ),
        (lambda: next(roll_out(system, torch.zeros(1, 1, 8, 8), 1)), "states are float32 [1, 1, 8, 8]"),
        (lambda: udit.export(system, "onnx", tmp_path / "graph"), "exports do not have yet"),
        (lambda: udit.generate("demo:digits", condition=tmp_path / "w.npz"), "sees nothing beside the noisy image"),
    ]
    for ask, told in asked:
        with pytest.raises(UserError) as refused:
            ask()
        assert told in one_line(refused.value)
