"""Averages of any length are rebuilt from two, as the paper's formulas and ema-pytorch have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import Tensor, nn

import udit
from conftest import ErrorOf, same_bits, succeeds
from runs import newest, small_run, state_hash, train
from udit.errors import UserError
from udit.run.config import PosthocConfig
from udit.training.learner import Learner
from udit.training.posthoc import PowerAverages, Snapshots, gamma_of, overlaps, power_decay, solve
from udit.tuning.ema import sweep_ema

LENGTHS = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
"""The table: what `udit ema sweep` scores, and between."""


class Walk(nn.Module):
    """Weights on a random walk whose steps shrink, as in training."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(500))

    @torch.no_grad()
    def move(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        self.w += torch.randn(500, generator=generator) / (10 + step) ** 0.5


def precise(precision: str = "float32") -> PosthocConfig:
    return PosthocConfig(every=50, precision=precision)  # type: ignore[arg-type]


def norm_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def walked(folder: Path, steps: int, precision: str = "float32", extra: tuple[float, ...] = ()) -> PowerAverages:
    """Snapshots of a walk every 50 steps; returns averages of other lengths that were kept all along."""
    model = Walk()
    kept, truth = (
        PowerAverages(model, precise(precision)),
        PowerAverages(model, PosthocConfig(every=50, sigma_rels=extra or (0.07,))),
    )
    for step in range(1, steps + 1):
        model.move(step)
        kept.update(model, step)
        truth.update(model, step)
        if step % 50 == 0:
            kept.snapshot(folder, step)
    return truth


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_gamma_gives_a_profile_of_that_length(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    density = lambda x: (gamma + 1) * x**gamma  # noqa: E731
    mean = quad(lambda x: x * density(x), 0, 1)[0]
    variance = quad(lambda x: (x - mean) ** 2 * density(x), 0, 1)[0]
    assert variance**0.5 == pytest.approx(sigma_rel, rel=1e-6)


def test_gamma_of_the_papers_lengths() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    for bad in (0.0, -1.0, 0.2887, 1.0):
        with pytest.raises(UserError, match="sigma_rel is"):
            gamma_of(bad)


def test_overlaps_are_the_integrals() -> None:
    def profile(tau: float, step: float, gamma: float) -> float:
        return (gamma + 1) * tau**gamma / step ** (gamma + 1) if tau <= step else 0.0

    pairs = [((3.0, 2.0), (5.0, 7.0)), ((5.0, 7.0), (3.0, 2.0)), ((4.0, 1.0), (4.0, 9.0))]
    for (ta, ga), (tb, gb) in pairs:
        wanted = quad(lambda x: profile(x, ta, ga) * profile(x, tb, gb), 0, min(ta, tb))[0]  # noqa: B023
        found = overlaps(np.array([ta]), np.array([ga]), np.array([tb]), np.array([gb]))[0, 0]
        assert found == pytest.approx(wanted, rel=1e-9)
    assert np.isfinite(overlaps(np.array([1e6]), np.array([300.0]), np.array([5e5]), np.array([300.0]))).all()


def test_averages_are_power_functions_of_the_steps() -> None:
    model, gamma = Walk(), gamma_of(0.1)
    averages = PowerAverages(model, PosthocConfig(every=1, sigma_rels=(0.1,)))
    shares = np.zeros(0)
    for step in range(1, 301):
        decay = power_decay(step, gamma)
        shares = np.append(shares * decay, 1 - decay)
        model.w.data[:] = step
        averages.update(model, step)
    edges = (np.arange(301) / 300) ** (gamma + 1)
    assert shares == pytest.approx(np.diff(edges), abs=1e-12)  # the integral of p over each step, exactly
    assert float(averages.averages[0.1]["w"][0]) == pytest.approx(shares @ np.arange(1, 301), rel=1e-5)


def test_a_kept_length_is_rebuilt_from_its_own_snapshot() -> None:
    steps, gammas = np.repeat([100.0, 200.0], 2), np.tile([gamma_of(0.05), gamma_of(0.1)], 2)
    found = solve(steps, gammas, 200, gamma_of(0.1))
    assert found.weights == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert found.error < 1e-4


@pytest.mark.parametrize(("sigma_rel", "limit"), [(0.05, 1e-5), (0.07, 0.01), (0.1, 1e-5), (0.15, 0.01), (0.2, 0.02)])
def test_rebuilt_average_is_the_one_that_would_have_been_kept(tmp_path: Path, sigma_rel: float, limit: float) -> None:
    truth = walked(tmp_path, 1000, extra=(sigma_rel,))
    rebuilt = Snapshots(tmp_path).rebuild(sigma_rel)
    assert rebuilt.step == 1000
    assert norm_error(rebuilt.state["w"], truth.averages[sigma_rel]["w"]) < limit


def test_half_precision_costs_what_it_says(tmp_path: Path) -> None:
    """docs/evaluation.md has these numbers."""
    errors = {}
    for precision in ("float32", "float16", "bfloat16"):
        walked(tmp_path / precision, 1000, precision)
        errors[precision] = norm_error(
            Snapshots(tmp_path / precision).rebuild(0.07).state["w"],
            Snapshots(tmp_path / "float32").rebuild(0.07).state["w"],
        )
    assert errors["float16"] < 1e-3
    assert errors["float16"] < errors["bfloat16"] < 1e-2


# -- the oracle --------------------------------------------------------------------------------------------------------


def test_decay_is_the_oracles_one_step_on() -> None:
    """ema-pytorch takes 1 - 1 / (t + 1) where the paper has 1 - 1 / t; otherwise the recursion is the same."""
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = Walk()
    oracle = ema_pytorch.KarrasEMA(model, sigma_rel=0.1, update_every=1)
    ours = PowerAverages(model, PosthocConfig(every=1, sigma_rels=(0.1,)))
    for step in range(1, 40):
        model.move(step)
        oracle.update()
        ours.update(model, 1 if step == 1 else step + 1)
    assert norm_error(ours.averages[0.1]["w"], oracle.ema_model.w.detach()) < 1e-6


@pytest.mark.parametrize("step", [600, 350])
def test_rebuilt_average_of_any_length_is_the_oracles(tmp_path: Path, step: int) -> None:
    """From the same two averages at the same steps; to 1e-6 of the weights' norm."""
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = Walk()
    oracle = ema_pytorch.PostHocEMA(
        model,
        sigma_rels=(0.05, 0.1),
        update_every=1,
        checkpoint_every_num_steps=50,
        checkpoint_folder=str(tmp_path / "oracle"),
        checkpoint_dtype=torch.float32,
    )
    ours = PowerAverages(model, precise())
    for at in range(1, 601):
        model.move(at)
        oracle.update()
        if at % 50 == 0:
            for average, theirs in zip(ours.averages.values(), oracle.ema_models, strict=True):
                average["w"].copy_(theirs.ema_model.w.detach())
            ours.snapshot(tmp_path / "ours", at)
    snapshots = Snapshots(tmp_path / "ours")
    for sigma_rel in LENGTHS:
        wanted = oracle.synthesize_ema_model(sigma_rel=sigma_rel, step=step).ema_model.w.detach()
        assert norm_error(snapshots.rebuild(sigma_rel, step).state["w"], wanted) < 1e-6, sigma_rel


# -- in a run ------------------------------------------------------------------------------------------------------

POSTHOC = ("training.posthoc_ema.every=2", "training.posthoc_ema.precision=float32", "training.steps=9")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(out, *POSTHOC, "evaluation.judge_steps=5", "evaluation.batch_size=10")
    return out


def all_bits(out: Path) -> dict[str, Tensor]:
    return load_file(newest(out) / "posthoc.safetensors") | {
        f"{path.name}/{key}": value
        for path in sorted((out / "posthoc").iterdir())
        for key, value in load_file(path).items()
    }


@pytest.mark.slow
def test_averages_are_part_of_checkpoints_and_resume_to_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, out = Learner.begin, tmp_path / "cut"
    for cut in (4, 7):  # step 4 is lost, for step 3 was saved last; step 7 dies before it is done

        def step(self: Learner, done: int, *rest: object) -> object:
            if done == cut:  # noqa: B023
                raise KeyError("pulled the plug")
            return honest(self, done, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Learner, "begin", step)
        with pytest.raises(KeyError):
            train(out, *POSTHOC)
    monkeypatch.setattr(Learner, "begin", honest)
    train(out, *POSTHOC)
    assert state_hash(out) == state_hash(run)
    assert sorted(path.name for path in (out / "posthoc").iterdir()) == [
        f"step-{at:08d}.safetensors" for at in (2, 4, 6, 8, 9)
    ]
    assert same_bits(all_bits(out), all_bits(run))


def test_weights_do_not_know_of_it(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain", "training.steps=9")
    assert state_hash(tmp_path / "plain") == state_hash(run)
    assert not (tmp_path / "plain" / "posthoc").exists()


def test_it_is_not_switched_on_within_a_run(tmp_path: Path) -> None:
    train(tmp_path, "training.steps=2")
    with pytest.raises(UserError, match=r"training\.posthoc_ema was None"):
        train(tmp_path, "training.posthoc_ema.every=2")


def test_make_writes_a_model_of_any_length(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = succeeds(capsys, "ema", "make", str(run), str(tmp_path / "model"), "--sigma-rel", "0.07")
    assert "sigma_rel 0.07 at step 9" in said
    system = udit.load(tmp_path / "model")
    wanted = Snapshots(run / "posthoc").rebuild(0.07).state
    assert all(
        torch.equal(value, wanted[name]) for name, value in system.backbone.state_dict().items() if name in wanted
    )
    assert system.config.steps == 9


def test_python_gives_the_model_that_make_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (6, None):
        average = udit.posthoc_ema(run, 0.07, step)
        out = tmp_path / f"model-{step}"
        words = ["ema", "make", str(run), str(out), "--sigma-rel", "0.07", *(["--step", str(step)] if step else [])]
        said = succeeds(capsys, *words)
        assert average.step == (step or 9)
        assert f"sigma_rel 0.07 at step {average.step}, error of the profile {average.error:.2%}" in said
        written = udit.load(out)
        assert same_bits(average.system.backbone.state_dict(), written.backbone.state_dict())
        assert average.system.config == written.config
    assert udit.posthoc_ema(run, 0.1).spanned
    short = udit.posthoc_ema(run, 0.01)
    assert not short.spanned
    assert short.error > 0.05


@pytest.mark.slow
def test_sweep_scores_lengths_on_one_protocol(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ema", "sweep", str(run), "--sigma-rels", "0.05", "--sigma-rels", "0.1", "--n", "20", "--no-progress"]
    said = succeeds(capsys, *words)
    assert "not FID" in said
    assert (run / "evaluation" / "ema-sweep.png").stat().st_size > 1000
    found = [json.loads((run / "evaluation" / f"metrics-ema-{s}.json").read_text()) for s in ("0.05", "0.1")]
    assert found[0]["protocol"] == found[1]["protocol"]
    assert [f["subject"]["sigma_rel"] for f in found] == [0.05, 0.1]
    assert not list((run / "evaluation").glob("samples-*"))
    scored = sweep_ema(run, (0.05, 0.1), num_samples=20, progress=False)
    assert [length.sigma_rel for length in scored] == [0.05, 0.1]
    assert [length.scores.model_dump(mode="json") for length in scored] == found
    assert all(f"{length.scores.distance.value:.4f}" in said for length in scored)
    with pytest.raises(UserError, match="sigma_rels is empty"):
        sweep_ema(run, ())


def test_mistakes_are_refused(run: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    out = str(tmp_path / "model")
    assert "sigma_rel is 0.5" in error_of("ema", "make", str(run), out, "--sigma-rel", "0.5")
    assert "the first snapshot is of step 2" in error_of(
        "ema", "make", str(run), out, "--sigma-rel", "0.1", "--step", "1"
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.yaml").write_text((run / "run.yaml").read_text())
    assert "holds no snapshots" in error_of("ema", "make", str(bare), out, "--sigma-rel", "0.1")


def test_run_says_how_small_it_may_be() -> None:
    run = small_run(Path("out"), "training.posthoc_ema.every=2")
    assert run.training.posthoc_ema is not None
    assert run.training.posthoc_ema.sigma_rels == (0.05, 0.10)
    for slip in ("every=0", "sigma_rels=[]", "sigma_rels=[0.1, 0.4]", "precision=int8"):
        with pytest.raises(UserError):
            small_run(Path("out"), "training.posthoc_ema.every=2", f"training.posthoc_ema.{slip}")
