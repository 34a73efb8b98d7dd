"""What one training does: its folder, its options, and steps that must not reach the weights."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import udit
from conftest import quick
from runs import environment, finished_at, image_folder, metrics, newest, small_run, state_hash, steady_adam, train
from udit import ops
from udit.checkpoint import CheckpointStore
from udit.data.batches import Batch
from udit.data.sources import InMemory
from udit.diffusion.objective import Losses
from udit.errors import RunError, UserError
from udit.images import read_settings
from udit.run.recipes import load_run, read_yaml
from udit.training import preview
from udit.training.ema import EMA, decay_at
from udit.training.learner import Learner
from udit.training.records import Outcome
from udit.training.signals import StopFlag

OneLine = Callable[[BaseException], str]


def weights(out: Path, part: str = "model") -> dict[str, Tensor]:
    """Tensors of the newest checkpoint."""
    found = CheckpointStore(out / "checkpoints").newest()
    assert found is not None
    return found.tensors(part)


def corrupt_losses(monkeypatch: pytest.MonkeyPatch, corrupted: Callable[[Batch], Tensor | None]) -> list[list[int]]:
    """Multiplies the losses of some batches by a factor per sample; returns the ids of all batches, as they come."""
    honest = Learner.losses
    seen: list[list[int]] = []

    def losses(self: Learner, batch: Batch) -> Losses:
        seen.append(batch.ids)
        result, factor = honest(self, batch), corrupted(batch)
        return result if factor is None else Losses(result.loss * factor, result.mse, result.vb)

    monkeypatch.setattr(Learner, "losses", losses)
    return seen


def step_of(batch: Batch) -> int:
    """Steps done before a batch of ``SMALL``, six images each."""
    return batch.positions[0] // 6


# -- the run folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seven steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train(out, "training.steps=7", "training.sample_every=4", curve=True) == finished_at(out, 7)
    return out


def test_folder_holds_what_the_design_says(finished: Path) -> None:
    names = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    events = {name for name in names if name.startswith("tensorboard/events.out.tfevents.")}
    checkpoint = ("ema.safetensors", "manifest.json", "model.safetensors", "optim.safetensors")
    assert len(events) == 1
    assert names - events == {
        "run.yaml",
        "run.lock",
        "pictures.txt",
        "metrics.jsonl",
        "loss.png",
        "samples/step-00000004.png",
        "samples/step-00000007.png",
        *(f"checkpoints/step-{step:08d}/{file}" for step in (6, 7) for file in checkpoint),
        *(f"model/{file}" for file in ("config.json", "model.safetensors", "model.raw.safetensors", "README.md")),
    }


def test_run_yaml_is_the_complete_run_and_starts_it_again(finished: Path) -> None:
    run = small_run(finished, "training.steps=7", "training.sample_every=4")
    assert read_yaml(finished / "run.yaml") == run.plain()
    assert load_run(str(finished / "run.yaml")) == run


def test_manifest_names_everything_that_matters(finished: Path) -> None:
    manifest = json.loads((newest(finished) / "manifest.json").read_text())
    assert list(manifest) == [
        *(
            "schema",
            "step",
            "skipped_in_a_row",
            "watch",
            "alarms",
            "data",
            "machine",
            "versions",
            "run",
            "files",
            "digest",
        )
    ]
    assert manifest["step"] == 7
    facts = {"torch": torch.__version__, "ranks": 1, "threads": 1, "kernels": ops.describe()}
    assert manifest["machine"] == facts
    assert manifest["versions"]["udit"] == udit.__version__
    assert manifest["run"] == read_yaml(finished / "run.yaml")
    assert set(manifest["files"]) == {"model.safetensors", "ema.safetensors", "optim.safetensors"}


def test_every_step_has_one_line_with_its_learning_rate(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["lr"] for line in lines] == pytest.approx([0.0005, 0.001, 0.0015, 0.002, 0.002, 0.002, 0.002])
    assert all({"loss", "mse", "vb", "grad_norm"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 7]
    for line in lines:
        assert line["loss"] == pytest.approx(line["mse"] + line["vb"])  # type: ignore[operator]


def test_log_every_thins_the_log_but_not_what_was_shown(tmp_path: Path) -> None:
    train(tmp_path, "training.steps=7", "training.log_every=3", "training.sample_every=5")
    assert [line["step"] for line in metrics(tmp_path)] == [3, 5, 6, 7]


def test_tensorboard_shows_the_same_scalars(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(finished / "tensorboard"))
    shown.Reload()
    lines = metrics(finished)
    for key in ("loss", "grad_norm", "lr"):
        assert [event.step for event in shown.Scalars(key)] == [1, 2, 3, 4, 5, 6, 7]
        assert [event.value for event in shown.Scalars(key)] == pytest.approx([line[key] for line in lines])


def test_grid_contains_its_settings(finished: Path) -> None:
    settings = read_settings(finished / "samples" / "step-00000007.png")
    assert settings is not None
    assert settings["seeds"] == list(range(40))
    assert settings["labels"] == [i % 10 for i in range(40)]
    assert settings["sampling"]["steps"] == 1
    with Image.open(finished / "loss.png") as curve:
        assert curve.size == (720, 420)


def test_model_folder_holds_the_average_and_the_raw_weights_of_the_last_step(finished: Path) -> None:
    for choice, part in (("ema", "ema"), ("raw", "model")):
        system = udit.load(finished / "model", weights=choice)
        for name, tensor in weights(finished, part).items():
            assert torch.equal(system.backbone.state_dict()[name], tensor)
    assert udit.load(finished / "model").config.steps == 7


def test_average_lags_behind_and_follows_the_decay(tmp_path: Path) -> None:
    train(tmp_path, "training.steps=1")
    run = small_run(tmp_path)
    first = udit.build(run.model, seed=0).state_dict()
    raw, average = weights(tmp_path), weights(tmp_path, "ema")
    decay = decay_at(1, run.training.ema_decay)
    assert decay == pytest.approx(2 / 11)
    for name in raw:
        torch.testing.assert_close(average[name], decay * first[name] + (1 - decay) * raw[name])


def test_decay_warms_up_and_then_stays() -> None:
    assert [decay_at(step, 0.99) for step in (1, 2, 90)] == pytest.approx([2 / 11, 3 / 12, 91 / 100])
    assert decay_at(10_000, 0.99) == 0.99


def test_average_is_a_second_network(tiny: torch.nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    ema = EMA(tiny)
    ema.update(tiny, 0.5)
    with torch.no_grad():
        next(tiny.parameters()).add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


# -- the same run, and others --------------------------------------------------------------------------------------


def test_same_run_gives_the_same_bits_and_another_seed_does_not(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", "training.steps=7", "training.sample_every=4")
    train(tmp_path / "other", "training.steps=7", "seed=1")
    assert state_hash(tmp_path / "again") == state_hash(finished)
    assert metrics(tmp_path / "again") == metrics(finished)
    grid = Path("samples", "step-00000007.png")
    assert (tmp_path / "again" / grid).read_bytes() == (finished / grid).read_bytes()
    assert state_hash(tmp_path / "other") != state_hash(finished)


def test_accumulated_parts_equal_one_big_batch(tmp_path: Path) -> None:
    with steady_adam():
        for parts in (1, 2, 6):
            train(tmp_path / str(parts), "training.steps=4", f"training.accumulation={parts}")
    whole = metrics(tmp_path / "1")
    for parts in (2, 6):
        for line, other in zip(metrics(tmp_path / str(parts)), whole, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


OPTIONS: dict[str, list[str]] = {
    "bfloat16, activations recomputed": ["training.precision=bfloat16", "training.checkpoint_activations=true"],
    "flow, unclipped": ["diffusion.kind=flow", "sampling.sampler=flow-euler", "training.clip_norm=null"],
    "selected activations recomputed": ["training.checkpoint_activations=selective"],
    "unconditional, nothing held out": ["model.num_classes=0", "data.test_share=0"],
    "labels dropped by level": ["training.independent_level_dropout=true", "sampling.guidance=2"],
    "fixed variance, no warm-up": ["model.learn_sigma=false", "training.lr_warmup=0", "training.weight_decay=0.1"],
}


@pytest.mark.parametrize("option", quick(OPTIONS, list(OPTIONS)[:2]))
def test_option_trains_and_resumes_to_the_same_bits(tmp_path: Path, option: str) -> None:
    train(tmp_path / "whole", "training.steps=5", *OPTIONS[option])
    train(tmp_path / "cut", "training.steps=2", *OPTIONS[option])
    train(tmp_path / "cut", "training.steps=5", *OPTIONS[option])
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "whole", "ema").values())


def test_recomputing_activations_changes_nothing(finished: Path, tmp_path: Path) -> None:
    train(tmp_path, "training.steps=7", "training.checkpoint_activations=true")
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, weights(finished)[name])


def test_unconditional_run_has_no_labels(tmp_path: Path) -> None:
    train(tmp_path, "training.steps=1", "model.num_classes=0")
    system = udit.load(tmp_path)
    assert system.config.id2label == ()
    assert next(system.generate([0, 1])).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("workers", [1, 2])
def test_reading_workers_change_no_bit(tmp_path: Path, workers: int) -> None:
    data = image_folder(tmp_path / "data")
    train(tmp_path / "here", "training.steps=4", *data)
    train(tmp_path / "there", "training.steps=4", f"training.workers={workers}", *data)
    assert state_hash(tmp_path / "there") == state_hash(tmp_path / "here")


@pytest.mark.slow
def test_compiling_changes_losses_by_rounding_only(finished: Path, tmp_path: Path) -> None:
    train(tmp_path, "training.steps=3", "training.compile=true")
    for line, eager in zip(metrics(tmp_path), metrics(finished), strict=False):
        assert line["loss"] == pytest.approx(eager["loss"], rel=1e-3)


@pytest.mark.slow
def test_share_of_the_time_that_a_step_waited_for_its_images_is_reported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paces(out: Path) -> list[tuple[float, float]]:
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [(line["waited"], line["images_per_second"]) for line in lines]

    image = InMemory.image

    def slow(self: InMemory, i: int) -> NDArray[np.uint8]:
        time.sleep(0.05)
        return image(self, i)

    monkeypatch.setattr(InMemory, "image", slow)
    monkeypatch.setattr(preview, "validation_loss", lambda *_: None)
    train(tmp_path, "training.steps=2")
    assert paces(tmp_path)[-1][0] > 0.5 > statistics.median(waited for waited, _ in paces(finished))
    assert all(rate < 20 for _, rate in paces(tmp_path))


def test_data_is_read_before_anything_is_written(tmp_path: Path, one_line: OneLine) -> None:
    data = image_folder(tmp_path / "data")
    damaged = tmp_path / "data" / "dog" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UserError, match=r"dog/5\.png' cannot be read") as error:
        train(tmp_path / "out", *data)
    one_line(error.value)
    assert not (tmp_path / "out").exists()


# -- losses and gradients that are not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_loss_is_skipped_and_its_samples_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    train(before, "training.steps=3")
    factor = torch.tensor([1.0, value, 1, 1, value, 1])
    seen = corrupt_losses(monkeypatch, lambda batch: factor if step_of(batch) == 3 else None)
    with caplog.at_level(logging.WARNING):
        train(after, "training.steps=4")
    names = [f"digit {i}" for i in sorted((seen[3][1], seen[3][4]))]
    assert f"step 4 skipped: no finite loss or gradient with samples {', '.join(names)}" in caplog.messages
    assert state_hash(after) == state_hash(before)
    assert [line["step"] for line in metrics(after)] == [1, 2, 3, 4]
    assert metrics(after)[3]["skipped_samples"] == names
    assert "loss" not in metrics(after)[3]


def test_non_finite_gradient_of_a_finite_loss_is_skipped_and_the_batch_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "before", "training.steps=2")
    backward = Learner._backward

    def poisoned(self: Learner, batch: Batch, *arguments: Any) -> Losses:
        losses = backward(self, batch, *arguments)
        if step_of(batch) == 2:
            gradient = next(p.grad for p in self.model.parameters() if p.grad is not None)
            gradient.view(-1)[0] = float("nan")
        return losses

    monkeypatch.setattr(Learner, "_backward", poisoned)
    train(tmp_path / "after", "training.steps=3")
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")
    [message] = [m for m in caplog.messages if "skipped" in m]
    assert message.count("digit ") == 6


def test_one_bad_micro_batch_skips_the_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "before", "training.steps=2", "training.accumulation=3")
    corrupt_losses(monkeypatch, lambda batch: torch.tensor(float("nan")) if batch.positions[0] == 14 else None)
    train(tmp_path / "after", "training.steps=3", "training.accumulation=3")
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")


def test_training_goes_on_after_two_bad_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = (1, 2, 4, 5)
    corrupt_losses(monkeypatch, lambda batch: torch.tensor(float("nan")) if step_of(batch) in bad else None)
    assert train(tmp_path, "training.steps=7") == finished_at(tmp_path, 7)
    assert [line["step"] for line in metrics(tmp_path) if "skipped_samples" in line] == [2, 3, 5, 6]
    assert all(torch.isfinite(t).all() for part in ("model", "ema", "optim") for t in weights(tmp_path, part).values())


def test_three_bad_steps_in_a_row_stop_the_run_with_the_weights_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    train(tmp_path / "before", "training.steps=2")
    with monkeypatch.context() as patch:
        seen = corrupt_losses(patch, lambda batch: torch.tensor(float("nan")) if step_of(batch) >= 2 else None)
        with pytest.raises(RunError) as error:
            train(tmp_path / "after", "training.steps=9")
        assert len(seen) == 5
    line = one_line(error.value)
    assert "stopped after step 5: 3 steps in a row" in line
    assert f"digit {seen[-1][0]}" in line
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")
    assert newest(tmp_path / "after").name == "step-00000005"
    # mended, the same command goes on from there
    assert train(tmp_path / "after", "training.steps=9") == finished_at(tmp_path / "after", 9)
    assert [line["step"] for line in metrics(tmp_path / "after")] == list(range(1, 10))


def test_bad_steps_are_counted_across_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt_losses(monkeypatch, lambda batch: torch.tensor(float("nan")) if step_of(batch) >= 1 else None)
    train(tmp_path, "training.steps=3")
    with pytest.raises(RunError, match="stopped after step 4: 3 steps in a row"):
        train(tmp_path, "training.steps=9")


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_leaves_and_resumes_to_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def ask(batch: Batch) -> None:
        if step_of(batch) == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, StopFlag() as stop:
        corrupt_losses(patch, ask)
        outcome = train(tmp_path, "training.steps=7", stop=stop)
    assert outcome == Outcome(outcome.step, finished=False, out=tmp_path, signal=number)
    assert 4 <= outcome.step <= 5
    assert newest(tmp_path).name == f"step-{outcome.step:08d}"
    assert not (tmp_path / "model").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert train(tmp_path, "training.steps=7") == finished_at(tmp_path, 7)
    assert state_hash(tmp_path) == state_hash(finished)


FLAG = """
import sys, time
from udit.training import signals
signals.PATIENCE = float(sys.argv[1])
with signals.StopFlag() as stop:
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    while not stop.signal: time.sleep(0.01)
    sys.stdout.write(f"{int(stop.signal)}\\n"); sys.stdout.flush()
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_later_signal_stops_at_once_and_a_doubled_one_does_not(number: signal.Signals) -> None:
    for patience in (0.0, 60.0):
        words = [sys.executable, "-c", FLAG, str(patience)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.value}\n"
            process.send_signal(number)
            if patience:
                time.sleep(0.5)  # a moment in which it could die
                assert process.poll() is None
                process.kill()
            else:
                assert process.wait(20) == -number
