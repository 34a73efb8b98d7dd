"""The memory of a training step is estimated before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import ErrorOf, succeeds
from runs import RECIPE, SMALL
from udit.analysis import Cost
from udit.benchmarking.meters import CPU
from udit.data.batches import Batch
from udit.dist import World
from udit.errors import UserError
from udit.models.catalog import find
from udit.run.config import Run
from udit.run.recipes import load_run, parse_yaml
from udit.training.learner import Learner
from udit.training.memory import DryRun, Memory, dry_run, estimate

WORDS = ["diffusion={kind: ddpm}", "sampling.sampler=ddim"]
ERROR = 0.08
"""Share of the measured peak by which the estimate may miss it: scratch memory within operators is not seen."""


def digits(*words: str) -> Run:
    return load_run("digits", words)


def tiny(*words: str) -> Run:
    return load_run(RECIPE, [*SMALL, *words])


def measured(run: Run) -> int:
    """Bytes of weights, optimiser and averages, and the most that is allocated in addition at one time in a step."""
    torch.manual_seed(0)
    learner = Learner(run, World())
    learner.share(0)
    size = run.training.batch_size // run.training.accumulation
    pixels = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8)
    micro = [
        Batch(pixels, torch.zeros(size, dtype=torch.int64), list(range(size)), list(range(size)))
        for _ in range(run.training.accumulation)
    ]
    learner.step(0, micro)  # the optimiser's moments are created
    most = CPU.dissect(lambda: learner.step(1, micro)).extra
    tensors = [t for part in learner.tensors().values() for t in part.values()]
    return most + sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model=U-DiT-tiny"],
        ["model=DiT-tiny", *WORDS, "training.batch_size=8", "training.accumulation=2"],
        ["model=HDiT-tiny", "training.precision=bfloat16"],
        ["model=U-DiT-tiny", "training.checkpoint_activations=true", "training.posthoc_ema.every=1"],
        ["model=U-DiT-tiny", "training.checkpoint_activations=selective"],
        ["init_from=demo:digits", "training.adapter={rank: 3, alpha: 6}"],
    ],
)
def test_estimate_is_what_a_step_takes(words: list[str]) -> None:
    run = digits(*words)
    assert estimate(run).total == pytest.approx(measured(run), rel=ERROR)


@pytest.mark.slow
def test_parts_are_those_of_the_weights_and_of_the_batch() -> None:
    one, two = estimate(tiny("training.batch_size=8")), estimate(tiny("training.batch_size=16"))
    assert (one.batch, two.batch) == (8, 16)
    assert one.gradients == one.averages == one.weights
    assert one.optimizer == 2 * one.weights
    assert one.activations < two.activations < 2.1 * one.activations
    assert one.total < one.weights + one.gradients + one.optimizer + one.averages + one.activations * 1.5
    assert estimate(tiny("training.batch_size=8", "training.checkpoint_activations=true")).activations < (
        one.activations / 2
    )


@pytest.mark.slow
def test_adapter_alone_has_gradients_an_optimiser_and_averages() -> None:
    whole, adapted = (
        estimate(digits("init_from=demo:digits", "training.batch_size=8", *words))
        for words in ([], ["training.adapter={rank: 3, alpha: 6}"])
    )
    own = adapted.weights - whole.weights
    assert 0 < own < 0.05 * whole.weights
    assert (adapted.gradients, adapted.optimizer, adapted.averages) == (own, 2 * own, own)
    assert adapted.total < whole.total


def test_selective_recomputation_keeps_less() -> None:
    """Of every family, ``test_recompute`` counts it."""
    kept, lean = (
        estimate(tiny("training.batch_size=8", f"training.checkpoint_activations={how}")).activations
        for how in ("false", "selective")
    )
    assert 0.3 * kept < lean < 0.8 * kept


def test_ranks_share_the_batch_and_send_gradients() -> None:
    alone, shared = estimate(tiny("training.batch_size=8")), estimate(tiny("training.batch_size=16"), ranks=2)
    assert shared.batch == 8
    assert (shared.activations, shared.gradients) == (alone.activations, 2 * alone.gradients)
    with pytest.raises(UserError, match="does not split over 3 ranks"):
        estimate(tiny("training.batch_size=16"), ranks=3)


@pytest.mark.slow
def test_dry_run_tells_the_memory_and_stays_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    said = succeeds(capsys, "train", RECIPE, *SMALL, "--dry-run")
    assert parse_yaml(said, "it") == tiny().plain()
    total = estimate(tiny()).total / 1e6
    assert "# memory of a training step, 6 images per backward pass, estimated from shapes:" in said
    assert said.splitlines()[-1].startswith(f"#   in all      {total:>12,.1f} MB at most")
    assert dry_run(tiny()) == DryRun(estimate(tiny()), 1, missing_data=None, loads_vae=False)


@pytest.mark.parametrize("root", [[], ["data.root=/nowhere"]])
def test_dry_run_works_without_the_images(
    capsys: pytest.CaptureFixture[str], error_of: ErrorOf, root: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udit.training.memory.estimate", lambda run, ranks: Memory(256, 1, 1, 2, 1, 9, 14))
    monkeypatch.setattr("udit.rehearsal.cost", lambda config: Cost(3, 2, 1))
    said = succeeds(capsys, "train", "imagenet256-latent", *root, "--dry-run")
    values = parse_yaml(said, "it")
    assert (values["model"]["num_classes"], values["model"]["in_channels"]) == (1000, 4)
    name = "/nowhere" if root else "PATH"
    assert f"# data.root is '{name}', no folder;" in said
    assert "until then 1000 classes are assumed" in said
    assert "# model: 3 weights (2 fused), 1 MACs for one image forward\n" in said
    assert "# time: not estimated, the data is missing\n" in said
    assert "and the VAE, unless its latents are read" in said
    assert "data.root is" in error_of("train", "imagenet256-latent", *root)


@pytest.mark.slow
def test_every_shipped_recipe_is_estimated(tmp_path: Path) -> None:
    for recipe in ("digits", "fashion-mnist", "folder", "imagefolder-64", "imagenet256-latent"):
        memory = estimate(load_run(recipe, absent=True))
        assert memory.total > memory.activations > memory.weights


@pytest.mark.slow
def test_residual_stream_in_float32_keeps_more_on_a_gpu() -> None:
    """Counted without one, of CUDA's operators."""
    words = "training.batch_size=8", "training.device=cuda", "training.precision=auto"
    half, full = (estimate(tiny(*words, f"training.residual={kind}")).activations for kind in ("bfloat16", "float32"))
    assert half < full < 2 * half
    assert estimate(tiny(*words, "training.precision=float32")).activations > half


@pytest.mark.slow
def test_estimate_for_a_gpu_is_what_is_counted_there() -> None:
    """By ``benchmarks/gpu/step_bytes.py``, which follows a step through CUDA's own libraries: 43.32 GB."""
    run = tiny("training.batch_size=256", "training.precision=bfloat16", "diffusion.kind=ddpm")
    run = run.model_copy(update={"model": find("U-DiT-S").config})
    assert estimate(run, device="cuda").activations == pytest.approx(43.32e9, rel=0.01)
