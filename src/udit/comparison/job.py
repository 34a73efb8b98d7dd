"""``compare``: sizes, learning rates and members of a comparison, each in a process of its own, and then its report."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udit.comparison.config import Comparison, System, plain_name, short_amount, stages
from udit.comparison.evaluator import JudgeEvaluator
from udit.comparison.records import Member, Sized, read_member
from udit.comparison.solve import solve, training_seconds
from udit.comparison.summary import Summary, summarise
from udit.comparison.task import Task, chosen, tasks_of
from udit.comparison.worker import DONE, EVALUATOR, FAILED, STOPPED, TAKEN
from udit.errors import UserError
from udit.files import check_room, write_text
from udit.run.config import Run
from udit.run.recipes import load_run, to_yaml
from udit.spec.base import parse
from udit.training.folder import RunLock
from udit.training.signals import StopFlag

POLL = 0.1
"""Seconds between looks at the processes."""
AGAIN = 10.0
"""Seconds after which a task that another process works on is asked for again."""
GRACE = 30.0
"""Seconds that processes which were asked to end have for it; what they have saved is complete in any case."""


@dataclass
class Plan:
    """What there is to do, and what cannot be done."""

    comparison: Comparison
    tasks: list[Task] = field(default_factory=list)
    sizes: list[Sized] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each system that cannot take part, and later for each member that failed."""

    @property
    def members(self) -> list[Task]:
        """The tasks that end in a member."""
        return [task for task in self.tasks if task.kind == "member"]


@dataclass(frozen=True)
class Compared:
    """How far a comparison has come."""

    summary: Summary | None
    """Of the finished members; None without any."""
    sizes: list[Sized]
    members: list[Member]
    missing: list[str]
    """Members that are not finished, in words."""
    problems: list[str]
    """What went wrong, a line each."""
    signal: int = 0
    """The signal that asked it to end, or 0."""


def compare(
    comparison: Comparison,
    out: Path | str,
    *,
    jobs: int = 1,
    threads: int = 1,
    train: bool = True,
    stop: StopFlag | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Compared:
    """Trains and scores the systems of a comparison; started again, it goes on where it was.

    Finished members are not trained again, whichever machine has trained them: those that share the folder work on one
    comparison together, and ``OUT/records`` may come from elsewhere.

    Args:
        comparison: what is compared.
        out: its folder.
        jobs: members at a time.
        threads: of each of them. Times are of processor time, and so comparable, with one thread.
        train: False only reads what is finished.
        stop: a request ends all processes after the step they are in.
        tell: called with a line for each size and each finished task.

    Returns:
        The scores side by side, and what is missing or failed.

    Raises:
        UserError: no system can take part, the base recipe is wrong, or the data allow no scores.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value < 1:
            raise UserError(f"--{name} is {value}; it is 1 or more")
    folder, flag = Path(out), stop or StopFlag()
    check_room(folder, 0)
    plan = plan_of(comparison, folder, threads, tell, flag)
    write_text(folder / "comparison.yaml", to_yaml(comparison.model_dump(mode="json")))
    if train and not flag.signal and any(not (folder / task.record).is_file() for task in plan.members):
        _prepare(plan, folder, tell)
        _Processes(plan, folder, jobs, threads, flag, tell).run()
    return collected(plan, folder, flag.signal)


def collected(plan: Plan, folder: Path, signal_number: int = 0) -> Compared:
    """The finished members of a plan and their summary."""
    members, missing, problems = [], [], list(plan.problems)
    for task in plan.members:
        path = folder / task.record
        if not path.is_file():
            missing.append(task.title)
            continue
        try:
            members.append(read_member(path))
        except UserError as error:
            problems.append(str(error))
    alike, unlike = comparable(members)
    summary = summarise(plan.comparison, alike) if alike else None
    return Compared(summary, plan.sizes, alike, missing, problems + unlike, signal_number)


def comparable(members: list[Member]) -> tuple[list[Member], list[str]]:
    """Members that may be on one axis, and a line for each of the others.

    The first member says who scores, and the first of each seed which images and noise there are.
    """
    alike: list[Member] = []
    told = []
    for member in members:
        first = next((other for other in alike), member)
        peer = next((other for other in alike if other.seed == member.seed), member)
        differing = [
            name
            for name, own, others in (
                ("the evaluator", member.evaluator, first.evaluator),
                ("the order of images", member.sample_ids_sha256, peer.sample_ids_sha256),
                ("noise and times", member.noise_sha256, peer.noise_sha256),
            )
            if own != others
        ]
        differing += ["the protocol"] if _differ(member.protocol, first.protocol) else []
        if differing:
            told.append(
                f"{member.system}, seed {member.seed}, is left out: {' and '.join(differing)} are not those of "
                f"{(peer if peer is not member else first).system}; remove its record to train it with these"
            )
        else:
            alike.append(member)
    return alike, told


def _differ(own: Any, other: Any) -> bool:
    """Whether two protocols differ in what both have; a key of one alone is of a later version, with its default."""
    if isinstance(own, dict) and isinstance(other, dict):
        return any(_differ(own[key], other[key]) for key in own.keys() & other.keys())
    return bool(own != other)


def plan_of(
    comparison: Comparison,
    folder: Path,
    threads: int = 1,
    tell: Callable[[str], object] = lambda line: None,
    stop: StopFlag | None = None,
) -> Plan:
    """All tasks of a comparison; sizes that were solved before are read from its folder.

    Raises:
        UserError: the base recipe is wrong, or no system can take part.
    """
    plan = Plan(comparison)
    fingerprint = ""
    for system in comparison.systems:
        try:
            run = load_run(comparison.base, comparison.overrides, model=system.model)
        except UserError as error:
            plan.problems.append(f"{system.name}: {error}")
            continue
        stages(comparison, run.training.steps, run.training.lr_warmup)
        fingerprint = fingerprint or run.source().fingerprint
        for amount in comparison.amounts:
            if stop is not None and stop.signal:
                return plan
            try:
                size = _sized(system, run, comparison, amount, folder, threads)
            except UserError as error:
                plan.problems.append(str(error))
                continue
            tell(f"{system.name} at {short_amount(amount)}: {size.changed}; {size.measured:,.6g} ({size.error:+.2%})")
            plan.sizes.append(size)
            plan.tasks += tasks_of(comparison, size, run, fingerprint)
    if not plan.tasks:
        raise UserError("; ".join(plan.problems))
    plan.tasks.sort(key=lambda task: task.kind == "member")  # a rate serves several members
    return plan


def _sized(system: System, run: Run, comparison: Comparison, amount: float, folder: Path, threads: int) -> Sized:
    """The size of a system, as it was solved before or now."""
    decides: dict[str, Any] = {
        "model": chosen(run.model),
        "budget": comparison.budget,
        "amount": amount,
        "fixed": system.fixed_depth,
    }
    if comparison.budget == "seconds":
        decides |= {"steps": run.training.steps, "batch_size": run.training.batch_size}
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / "sizes" / f"{plain_name(system.name)}-{short_amount(amount)}-{digest}.json"
    if path.is_file():
        return parse(Sized, json.loads(path.read_text(encoding="utf-8")), where=path)
    measure = None
    if comparison.budget == "seconds":
        measure = training_seconds(run.training.steps, run.training.batch_size, threads)
    size = solve(system, run.model, comparison.budget, amount, measure)
    path.parent.mkdir(parents=True, exist_ok=True)
    size.write(path)
    return size


def _prepare(plan: Plan, folder: Path, tell: Callable[[str], object]) -> None:
    """Writes the tasks and the evaluator, which all processes read."""
    for name in ("tasks", "logs", "records", "rates"):
        (folder / name).mkdir(exist_ok=True)
    for task in plan.tasks:
        path = folder / "tasks" / f"{task.id}.json"
        if not path.is_file():
            task.write(path)
    evaluator, claim = JudgeEvaluator(folder / EVALUATOR), folder / "claims" / EVALUATOR
    claim.mkdir(parents=True, exist_ok=True)
    while not evaluator.judge.is_file():
        try:
            lock = RunLock(claim)
        except UserError:  # another machine makes it
            time.sleep(1)
            continue
        tell("training the judge of the data set")
        try:
            evaluator.prepare(plan.members[0].run_in(folder))
        finally:
            lock.release()


class _Processes:
    """The processes of a comparison on this machine, ``jobs`` at a time."""

    def __init__(
        self, plan: Plan, folder: Path, jobs: int, threads: int, stop: StopFlag, tell: Callable[[str], object]
    ) -> None:
        self.plan, self.folder, self.jobs, self.stop, self.tell = plan, folder, jobs, stop, tell
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.todo = [task for task in plan.tasks if not (folder / task.record).is_file()]
        self.running: dict[str, tuple[Task, subprocess.Popen[bytes], float]] = {}
        self.later: dict[str, float] = {}
        """When to ask again for a task that another process has."""
        self.failed: set[str] = set()
        self.count = len(self.todo)

    def run(self) -> None:
        """Does all tasks, waits for those that other machines do, and returns; a stop ends it before."""
        try:
            while (self.todo or self.running) and not self.stop.signal:
                for task in list(self._ready()):
                    self._start(task)
                self._look()
                time.sleep(POLL)
        finally:
            self._end()

    def _ready(self) -> Iterator[Task]:
        """Tasks that can begin now, as many as there is room for."""
        room = self.jobs - len(self.running)
        for task in list(self.todo):
            if (self.folder / task.record).is_file():  # by another machine meanwhile
                self.todo.remove(task)
            elif task.rates in self.failed:
                self._drop(task, f"{task.title}: there is no learning rate for it")
            elif room and self._may_begin(task):
                room -= 1
                yield task

    def _may_begin(self, task: Task) -> bool:
        rated = task.rates is None or (self.folder / "rates" / f"{task.rates}.json").is_file()
        return rated and time.monotonic() >= self.later.get(task.id, 0.0)

    def _start(self, task: Task) -> None:
        self.todo.remove(task)
        words = [sys.executable, "-m", "udit.comparison.worker", str(self.folder), task.id]
        with (self.folder / "logs" / f"{task.id}.log").open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        self.running[task.id] = task, process, time.monotonic()

    def _look(self) -> None:
        """What has become of the running processes."""
        for task, process, since in list(self.running.values()):
            code = process.poll()
            if code is None:
                continue
            del self.running[task.id]
            if code == TAKEN:
                self.later[task.id] = time.monotonic() + AGAIN
                self.todo.append(task)
            elif code == DONE:
                done = self.count - len(self.todo) - len(self.running)
                self.tell(f"[{done}/{self.count}] {task.title}: {self._result(task)}, {time.monotonic() - since:.0f} s")
            elif code != STOPPED or not self.stop.signal:
                self._drop(task, f"{task.title}: {self._reason(task, code)}")

    def _drop(self, task: Task, problem: str) -> None:
        """Counts a task as failed."""
        if task in self.todo:
            self.todo.remove(task)
        self.failed.add(task.id)
        self.plan.problems.append(problem)
        self.tell(problem)

    def _reason(self, task: Task, code: int) -> str:
        path = self.folder / "failures" / f"{task.id}.json"
        if code == FAILED and path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["error"])
        log = self.folder / "logs" / f"{task.id}.log"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}; {log} has more"
        return f"its process ended with exit code {code}; {log} has more"

    def _result(self, task: Task) -> str:
        values = json.loads((self.folder / task.record).read_text(encoding="utf-8"))
        if task.kind == "rates":
            return f"{values['lr']:g}"
        name = self.plan.comparison.score
        score = values["points"][-1]["scores"][name]
        return f"{name} {score['value']:.4g} ({score['low']:.4g} to {score['high']:.4g})"

    def _end(self) -> None:
        """Asks what still runs to end, and ends what does not."""
        for _, process, _ in self.running.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for _, process, _ in self.running.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # what it has saved is complete
                process.wait()
