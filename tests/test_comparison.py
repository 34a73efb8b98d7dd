"""Comparisons at equal budget: sizes, fairness, members that go on, what is alike, and the numbers of the report."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runs import RECIPE, environment, image_folder
from udit.cli import main
from udit.comparison import worker
from udit.comparison.config import TOLERANCE, Comparison, System, plain_name, stages
from udit.comparison.evaluator import Judged
from udit.comparison.job import Compared, comparable, compare, plan_of
from udit.comparison.member import noise, sample_ids, train_member
from udit.comparison.records import EvaluatorFacts, Member, Point, Score, Sized, read_member
from udit.comparison.report import write_report
from udit.comparison.solve import solve
from udit.comparison.summary import Curve, Estimate, _between, _reached, student, summarise
from udit.comparison.task import Task, chosen
from udit.comparison.words import interval, number
from udit.errors import UserError
from udit.images import grid, png_bytes
from udit.models.catalog import find
from udit.nn.specs import Window
from udit.run.recipes import to_yaml
from udit.training import preview
from udit.training.folder import RunLock
from udit.training.signals import StopFlag

MODEL = {"family": "U-DiT", "width": 8, "heads": 1, "depths": [1]}
"""A network of one block."""
STEPS = ["training.steps=8", "training.batch_size=4", "training.lr_warmup=0", "training.save_every=2"]


@dataclass(frozen=True)
class Fixed:
    """An evaluator that takes no time."""

    def prepare(self, run: object) -> None:
        """Needs nothing."""

    def score(self, folder: Path) -> Judged:
        """The digest of the weights as a score, so that other weights score differently."""
        import udit

        (folder / "evaluation").mkdir()
        weights = udit.load(folder).fingerprint
        value = int(weights[:6], 16) / 2**24
        facts = EvaluatorFacts(name="fixed", sha256="0", reference_sha256="1", real={"distance": 0.5})
        score = Score(value=value, low=value, high=value)
        return Judged({"distance": score}, facts, weights, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 2)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw no loss curve, which takes longer than all their steps."""
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)


@pytest.fixture
def small(tmp_path: Path) -> Comparison:
    """Two systems on random images."""
    data = tuple(image_folder(tmp_path / "images"))
    systems = ({"name": "one", "model": MODEL}, {"name": "DiT", "model": {"name": "DiT-tiny", "depth": 1, "width": 16}})
    return Comparison(
        base=RECIPE, overrides=(*STEPS, *data), systems=systems, amounts=(97e3,), seeds=(0, 1), fractions=(0.5, 1)
    )


def member_task(comparison: Comparison, out: Path, system: int = 0) -> Task:
    """The first member of a system of the comparison."""
    plan = plan_of(comparison, out)
    assert not plan.problems
    return plan.members[system * len(comparison.seeds)]


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budget"),
    [("U-DiT-tiny", "macs"), ("DiT-tiny", "parameters"), ("U-ViT-tiny", "macs"), ("DiCo-tiny", "macs")],
)
def test_sizes_meet_the_budget_within_two_per_cent(name: str, budget: str) -> None:
    """What is counted is the solved model's own count, and its heads are ones that the network takes."""
    system = System(name=name, model={"name": name})
    amount = {"macs": 2.5e6, "parameters": 1.5e5}[budget]
    found = solve(system, find(name).config, budget, amount)  # type: ignore[arg-type]
    assert abs(found.measured / amount - 1) <= TOLERANCE
    assert found.measured == getattr(found, budget)


@pytest.mark.slow
def test_a_depth_that_is_given_stays() -> None:
    """Only width, heads and FFN change then."""
    system = System(name="DiT", model={"name": "DiT-tiny", "depth": 3})
    config = find("DiT-tiny").config.replace(depth=3)
    assert solve(system, config, "macs", 2e6).model["depth"] == 3


def test_a_budget_that_no_size_meets_is_one_line() -> None:
    """It names the system, the budget and the nearest size."""
    system = System(name="DiT", model={"name": "DiT-tiny"})
    with pytest.raises(UserError, match=r"^DiT cannot meet a budget of 50 MACs per sample within 2%.*nearest") as error:
        solve(system, find("DiT-tiny").config, "macs", 50)
    assert "\n" not in str(error.value)


def test_a_budget_of_seconds_is_met_by_what_is_measured() -> None:
    """Any measure that grows with the model serves; here the count of weights stands in for a clock."""
    system = System(name="DiT", model={"name": "DiT-tiny"})
    found = solve(
        system, find("DiT-tiny").config, "seconds", 10.0, lambda config: config.width**2 * config.ffn.ratio / 1e3
    )  # type: ignore[attr-defined]
    assert abs(found.measured / 10 - 1) <= TOLERANCE


# ---- fairness --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_members_of_a_seed_have_the_same_images_and_noise(small: Comparison, tmp_path: Path) -> None:
    """Whatever the network; another seed has others."""
    one, other = (member_task(small, tmp_path, system).run_in(tmp_path) for system in (0, 1))
    assert sample_ids(one) == sample_ids(other)
    assert noise(one) == noise(other)
    assert one.model.family != other.model.family
    assert sample_ids(one) != sample_ids(one.replace(seed=1))
    assert noise(one) != noise(one.replace(seed=1))


@pytest.mark.slow
def test_a_network_that_draws_other_noise_is_not_on_the_same_axis(small: Comparison, tmp_path: Path) -> None:
    """A U that drops labels by itself at each level draws more numbers, and so other noise."""
    run = member_task(small, tmp_path).run_in(tmp_path)
    levels = run.replace(
        model=run.model.replace(depths=(1, 1, 1)), training=run.training.replace(independent_level_dropout=True)
    )
    assert noise(run) != noise(levels)


@pytest.mark.slow
def test_adding_seeds_systems_or_a_folder_changes_no_member(small: Comparison, tmp_path: Path) -> None:
    """Their names are digests of what decides them, so that finished ones are found again."""
    before = {task.id for task in plan_of(small, tmp_path / "a").members}
    more = small.replace(seeds=(0, 1, 2), systems=(*small.systems, System(name="three", model=MODEL)))
    after = {task.id for task in plan_of(more, tmp_path / "b").members}
    assert before < after
    changed = small.replace(overrides=(*small.overrides, "sampling.steps=3"))
    assert before.isdisjoint(task.id for task in plan_of(changed, tmp_path / "a").members)


# ---- members ---------------------------------------------------------------------------------------------------------


class StopsSoon(StopFlag):
    """A flag that is set after it was looked at a few times, each time between two steps."""

    looks = 0

    @property
    def signal(self) -> int:
        """SIGTERM from the fifth look on."""
        self.looks += 1
        return 15 if self.looks > 4 else 0

    @signal.setter
    def signal(self, value: int) -> None:
        """It is set by looks alone."""


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_a_member_that_is_stopped_and_started_again_ends_with_the_same_scores(
    small: Comparison, tmp_path: Path
) -> None:
    """Its weights at each score are those of a member that ran through; what was scored is not scored again."""
    task = member_task(small, tmp_path / "out")
    through = train_member(task, tmp_path / "a", tmp_path / "models-a", Fixed(), None, StopFlag())
    assert through is not None
    scored = []

    class Counting(Fixed):
        def score(self, folder: Path) -> Judged:
            scored.append(folder.name)
            return super().score(folder)

    pieces, found = 0, None
    while found is None and pieces < 20:
        pieces += 1
        found = train_member(task, tmp_path / "b", tmp_path / "models-b", Counting(), None, StopsSoon())
    assert found is not None
    assert pieces > 1
    assert [(p.step, p.weights, p.scores) for p in found.points] == [
        (p.step, p.weights, p.scores) for p in through.points
    ]
    assert scored == ["branch-0", "branch-1"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_a_branch_decays_to_zero_and_the_training_goes_on_at_a_constant_rate(small: Comparison, tmp_path: Path) -> None:
    """The last rate of each branch is a small share of the training's."""
    task = member_task(small, tmp_path / "out")
    found = train_member(task, tmp_path / "a", tmp_path / "models", Fixed(), None, StopFlag())
    assert found is not None
    assert [(stage.branch, stage.step) for stage in stages(small, 8)] == [(3, 4), (6, 8)]

    def rates(folder: str) -> list[float]:
        lines = (tmp_path / "a" / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["lr"] for line in lines]

    assert rates("trunk") == [found.lr] * 6
    assert rates("branch-1")[:7] == [found.lr] * 7
    assert rates("branch-1")[7] < found.lr
    assert [point.macs for point in found.points] == [task.size.macs * 3 * 4 * step for step in (4, 8)]


@pytest.mark.slow
def test_a_task_that_another_process_works_on_is_left_to_it(small: Comparison, tmp_path: Path) -> None:
    """The lock is the claim; once it is free the task can be done."""
    task = member_task(small, tmp_path)
    (tmp_path / "tasks").mkdir()
    task.write(tmp_path / "tasks" / f"{task.id}.json")
    claim = tmp_path / "claims" / task.id
    claim.mkdir(parents=True)
    lock = RunLock(claim)
    assert worker.work_on(tmp_path, task.id) == worker.TAKEN
    lock.release()


@pytest.mark.slow
def test_a_member_that_fails_says_why_in_one_line(small: Comparison, tmp_path: Path) -> None:
    """Its data are gone: the others are not concerned."""
    task = member_task(small, tmp_path)
    broken = task.replace(run=task.run | {"data": task.run["data"] | {"root": str(tmp_path / "gone")}})
    (tmp_path / "tasks").mkdir()
    broken.write(tmp_path / "tasks" / f"{task.id}.json")
    assert worker.work_on(tmp_path, task.id) == worker.FAILED
    failure = json.loads((tmp_path / "failures" / f"{task.id}.json").read_text(encoding="utf-8"))
    assert "gone" in failure["error"]
    assert "\n" not in failure["error"]


@pytest.mark.slow
def test_an_unknown_system_does_not_hold_up_the_others(small: Comparison, tmp_path: Path) -> None:
    """It is one line of the report; without any other system it is an error."""
    plan = plan_of(small.replace(systems=("U-DiT-tinny", *small.systems)), tmp_path)
    assert len(plan.problems) == 1
    assert "U-DiT-tiny" in plan.problems[0]
    assert {task.size.system for task in plan.members} == {"one", "DiT"}
    with pytest.raises(UserError, match="U-DiT-tinny"):
        plan_of(small.replace(systems=("U-DiT-tinny",)), tmp_path)


def test_branches_begin_after_the_warm_up(small: Comparison, tmp_path: Path) -> None:
    """Else the rate would fall while it rises."""
    with pytest.raises(UserError, match=r"training.lr_warmup is 5 .* begins at step 3"):
        plan_of(small.replace(overrides=(*small.overrides, "training.lr_warmup=5")), tmp_path)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def made(system: str, seed: int, values: tuple[float, ...], pace: float = 1.0, **changes: object) -> Member:
    """A record with some scores."""
    size = Sized(
        system=system,
        budget="macs",
        amount=1e6,
        model={},
        measured=1e6,
        macs=1_000_000,
        parameters=9,
        changed="width 8",
    )
    points = tuple(
        Point(
            fraction=(place + 1) / len(values),
            step=100 * (place + 1),
            macs=1e9 * (place + 1),
            seconds=pace * 100 * (place + 1),
            val_loss=0.1,
            weights="ab" * 8,
            scores={"distance": Score(value=value, low=value - 1, high=value + 1)},
        )
        for place, value in enumerate(values)
    )
    facts = EvaluatorFacts(name="judge", sha256="0", reference_sha256="1", real={"distance": 0.5})
    protocol = {"run": {"evaluation": {"num_samples": 9}, "sampling": {"sampler": "ddim", "steps": 4, "guidance": 2.0}}}
    image = base64.b64encode(png_bytes(grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)))).decode()
    values_of = {
        "comparison": "c",
        "system": system,
        "seed": seed,
        "size": size,
        "lr": 1e-3,
        "rate": None,
        "steps": 300,
        "batch_size": 4,
        "step_seconds": pace,
        "clock": "processor",
        "points": points,
        "sample_ids_sha256": f"ids {seed}",
        "noise_sha256": f"noise {seed}",
        "evaluator": facts,
        "protocol": protocol,
        "machine": "m",
        "versions": "v",
        "date": "2026-01-01",
        "model_folder": "models/x",
        "images": image,
    }
    return Member(**(values_of | changes))  # type: ignore[arg-type]


def of_two(seeds: int) -> tuple[Comparison, list[Member]]:
    """A comparison of two systems, a and b, of which a is better by 2 at each seed and twice as fast."""
    comparison = Comparison(base="x", systems=("a", "b"), amounts=(1e6,), reach=12.0)
    members = [made("a", seed, (20 + seed, 10 + 5 * seed), 0.5) for seed in range(seeds)]
    members += [made("b", seed, (22 + seed + 0.1 * seed, 12 + 5 * seed + 0.1 * seed)) for seed in range(seeds)]
    return comparison, members


def test_differences_seed_by_seed_separate_what_means_do_not() -> None:
    """Both systems vary between seeds by far more than they differ; their differences hardly vary."""
    panel = summarise(*of_two(3)).panels[0]
    assert [one.system for one in panel.standings] == ["a", "b"]
    assert panel.standings[0].final.high > panel.standings[1].final.low
    assert panel.pairs[0].difference.value == pytest.approx(-2.1)
    assert panel.pairs[0].separates
    assert panel.standings[1].behind
    assert panel.verdict == "a wins; its difference from every other system leaves out zero."


def test_with_one_seed_the_intervals_of_the_samples_must_not_meet() -> None:
    """10 +- 1 and 12 +- 1 touch."""
    panel = summarise(*of_two(1)).panels[0]
    assert not panel.pairs[0].separates
    assert "do not separate it from b" in panel.verdict


def test_with_one_seed_a_score_without_an_interval_separates_nothing() -> None:
    """Recall has none of its samples; 72.1 % (72.1 % to 72.1 %) would look as if it were known exactly."""
    comparison, members = of_two(1)
    plain = [
        one.replace(
            points=tuple(
                point.replace(scores={"recall": Score(value=v, low=v, high=v)})
                for point in one.points
                for v in [point.scores["distance"].value / 100]
            )
        )
        for one in members
    ]
    panel = summarise(comparison.replace(score="recall"), plain).panels[0]
    assert panel.pairs[0].difference.value > 0
    assert not panel.pairs[0].separates
    assert interval(panel.standings[0].final, "recall") == number(panel.standings[0].final.value, "recall")


def test_the_interval_of_a_mean_is_students() -> None:
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.303."""
    found = student([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3))


def test_scores_at_equal_seconds_are_read_between_scores() -> None:
    """b has its second score at 200 s, when a has long ended: they are compared at a's 100 s."""
    panel = summarise(*of_two(3)).panels[0]
    assert panel.seconds == 100
    assert panel.standings[0].same_seconds is not None
    assert panel.standings[0].same_seconds.value == pytest.approx(15)
    assert panel.standings[1].same_seconds is not None
    assert panel.standings[1].same_seconds.value == pytest.approx(23.1)
    assert _between([(1, 0.0), (100, 2.0)], 10) == pytest.approx(1.0)
    assert _between([(1, 0.0), (100, 2.0)], 0.5) is None


def test_steps_to_reach_a_score_lie_between_scores() -> None:
    """Half-way between 20 and 10 in value is half-way between 100 and 400 in the logarithm of steps."""
    points = [Estimate(value=value, low=value, high=value, seeds=1) for value in (20.0, 10.0)]
    curve = Curve(fractions=(0.25, 1), steps=(100, 400), macs=(1, 2), seconds=(1, 2), estimates=tuple(points))
    assert _reached(curve, 15.0, lower=True) == pytest.approx(200)
    assert _reached(curve, 25.0, lower=True) == 100
    assert _reached(curve, 5.0, lower=True) is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"protocol": {"run": {"sampling": {"steps": 5}}}}, "the protocol"),
        ({"noise_sha256": "x"}, "noise and times"),
        ({"sample_ids_sha256": "x"}, "the order of images"),
        (
            {"evaluator": EvaluatorFacts(name="judge", sha256="2", reference_sha256="1", real={})},
            "the evaluator",
        ),
    ],
)
def test_two_unlike_protocols_do_not_share_an_axis(changes: dict[str, object], what: str) -> None:
    """The unlike member is left out with one line; the others stay."""
    members = [made("a", 0, (2.0, 1.0)), made("b", 0, (2.0, 1.0), **changes), made("c", 0, (2.0, 1.0))]
    alike, told = comparable(members)
    assert [one.system for one in alike] == ["a", "c"]
    assert len(told) == 1
    assert told[0].startswith(f"b, seed 0, is left out: {what}")


def test_a_key_of_a_later_version_keeps_members_on_one_axis() -> None:
    """What an older record lacks had its default."""
    later = made("b", 0, (2.0, 1.0))
    run = later.protocol["run"] | {"evaluation": {"num_samples": 9, "new": 0}}
    alike, told = comparable([made("a", 0, (2.0, 1.0)), later.replace(protocol={"run": run})])
    assert len(alike) == 2
    assert told == []


def test_a_digest_is_of_kinds_and_of_what_is_not_a_default() -> None:
    """Two kinds of attention with the same options are two; a default says nothing."""
    config = find("DiT-tiny").config
    full, windows = config, config.replace(attention=Window(cosine=False, rope=False, size=8))
    assert chosen(full)["family"] == "DiT"
    assert chosen(full) != chosen(windows)
    assert "time" not in chosen(full)
    assert chosen(windows)["attention"] == {"cosine": False, "rope": False, "kind": "window"}


def test_a_member_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Records are committed, and read on another day."""
    one = made("a", 0, (2.0, 1.0))
    one.write(tmp_path / "a.json")
    assert read_member(tmp_path / "a.json") == one
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        read_member(tmp_path / "a.json")


# ---- report ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_is_one_file_that_asks_for_no_other(tmp_path: Path) -> None:
    """Equal members make equal bytes; names are escaped; what failed is said beside what did not."""
    comparison, members = of_two(2)
    comparison = comparison.replace(name="a <b> & c")
    found = Compared(
        summarise(comparison, members), [one.size for one in members[::2]], members, ["late"], ["broken <x>"]
    )
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        assert write_report(comparison, found, tmp_path / out) == tmp_path / out / "report.html"
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt; &amp; c" in page
    assert "broken &lt;x&gt;" in page
    assert "Not finished: late." in page
    assert not re.search(r"<script|<link|@import|(?:src|href)=['\"](?!data:|#)", page)
    assert page.count("<svg ") == 1
    assert (tmp_path / "one" / "distance-1M.png").stat().st_size > 1000


def test_without_a_finished_member_there_is_no_report(tmp_path: Path) -> None:
    """And no file of one."""
    comparison, _ = of_two(1)
    assert write_report(comparison, Compared(None, [], [], [], []), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_systems_are_told_apart_without_colour() -> None:
    """Each has a marker of its own, and none of the colours is one that some eyes take for another's."""
    from udit.comparison import plots

    assert len(set(plots.MARKERS)) == len(plots.MARKERS) == len(plots.COLOURS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fractions": (0.5, 0.25, 1.0)}, "rise and end with 1"),
        ({"fractions": (0.5,)}, "rise and end with 1"),
        ({"seeds": (1, 1)}, "seeds has 1 more than once"),
        ({"systems": ("a", "a")}, "systems has a more than once"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(changes: dict[str, object], told: str) -> None:
    """In one line."""
    values = {"base": "digits", "systems": ("a",), "amounts": (1e6,)}
    with pytest.raises(UserError, match=told):
        Comparison(**values).replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--base RECIPE is missing"),
        (["--base", "digits", "--systems", "DiT-tiny"], "a budget, e.g. --macs 20e6 is missing"),
        (["--base", "digits", "--macs", "1e6", "--parameters", "1e5"], "--macs and --parameters are given"),
        (["--base", "digits", "--macs", "ten"], "--macs is 'ten'"),
        (["training.steps=4"], "'training.steps=4' is no file"),
        (["--base", "digits", "--systems", "DiT-tiny", "--macs", "1e6", "--seeds", "0.5"], "seeds"),
        (["gone.yaml"], "gone.yaml"),
    ],
)
def test_the_command_says_what_is_missing_or_wrong(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, and no folder."""
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_of_systems_make_names_of_files() -> None:
    """A slash is no folder."""
    assert plain_name("DiT-S/2") == "DiT-S-2"


@pytest.mark.parametrize("name", ["jobs", "threads"])
def test_jobs_and_threads_are_one_or_more(name: str, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(UserError, match=f"--{name} is 0"):
        compare(of_two(1)[0], tmp_path / "out", **{name: 0})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_comparison_that_is_killed_ends_with_the_same_members_and_repeats_none(tmp_path: Path) -> None:
    """SIGKILL of the command after its first member; the second is at work, and its process ends by itself."""
    data = image_folder(tmp_path / "images", each=40)
    few = ["evaluation.num_samples=20", "evaluation.judge_steps=4", "evaluation.bootstrap=10"]
    values = {"base": RECIPE, "overrides": [*STEPS, *data, *few], "systems": [{"name": "one", "model": MODEL}]}
    file = tmp_path / "comparison.yaml"
    file.write_text(to_yaml(values | {"amounts": [97e3], "seeds": [0, 1]}), encoding="utf-8")

    def started(out: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "udit", "compare", str(file), "--out", str(out)]
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, env=environment(**cache), **pipes)  # type: ignore[call-overload,no-any-return]

    def members(out: Path) -> dict[str, dict[str, object]]:
        """What does not depend on a clock."""
        found = {}
        for path in sorted((out / "records").glob("*.json")):
            one = read_member(path).model_dump(exclude={"step_seconds", "date"})
            one["points"] = [
                {key: value for key, value in point.items() if key != "seconds"} for point in one["points"]
            ]
            found[path.name] = one
        return found

    through = started(tmp_path / "a")
    told = through.communicate(timeout=280)[0]
    assert through.returncode == 0, told
    killed = started(tmp_path / "b")
    until = time.monotonic() + 280
    while not (first := list((tmp_path / "b" / "records").glob("*.json"))) and time.monotonic() < until:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    stamp = first[0].stat().st_mtime_ns
    again = started(tmp_path / "b")
    told = again.communicate(timeout=280)[0]
    assert again.returncode == 0, told
    assert "[2/2]" not in told
    assert first[0].stat().st_mtime_ns == stamp
    assert members(tmp_path / "b") == members(tmp_path / "a")
    assert len(members(tmp_path / "a")) == 2
    assert (tmp_path / "b" / "report.html").is_file()
