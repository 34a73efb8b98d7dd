"""The process of one task: ``python -m udit.comparison.worker OUT TASK``.

A task is claimed by a lock on a file, which is freed when its process ends, however it ends. So any number of machines
that share the folder can work on one comparison.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from pathlib import Path

from udit import dist
from udit.comparison.evaluator import JudgeEvaluator
from udit.comparison.member import choose_rate, train_member
from udit.comparison.records import Failure, Member, RateChoice
from udit.comparison.task import Task
from udit.errors import RunError, UserError, one_line, ran_out_of_memory
from udit.progress import say_on_stderr
from udit.spec.base import parse
from udit.training.folder import RunLock
from udit.training.signals import StopFlag

DONE, FAILED, TAKEN, STOPPED = 0, 1, 75, 130
"""Exit codes: finished, failed (``failures/TASK.json`` says why), another process works on it, and was asked to end."""
EVALUATOR, MODELS, WORK = "evaluator", "models", "work"
"""Folders of a comparison."""


def read_task(out: Path, name: str) -> Task:
    """A task of a comparison's folder."""
    path = out / "tasks" / f"{name}.json"
    return parse(Task, json.loads(path.read_text(encoding="utf-8")), where=path)


def read_rate(out: Path, name: str) -> RateChoice:
    """The rate that a task has chosen."""
    path = out / "rates" / f"{name}.json"
    return parse(RateChoice, json.loads(path.read_text(encoding="utf-8")), where=path)


def work_on(out: Path, name: str) -> int:
    """Does a task, unless it is done or another process does it; returns an exit code."""
    task = read_task(out, name)
    claim = out / "claims" / name
    claim.mkdir(parents=True, exist_ok=True)
    try:
        lock = RunLock(claim)
    except UserError:
        return TAKEN
    try:
        if (out / task.record).is_file():
            return DONE
        with StopFlag() as stop:
            return _record(task, out, stop)
    except (UserError, RunError) as error:
        return _failed(task, out, str(error))
    except Exception as error:  # one member's end must not be that of the others
        logging.getLogger(__name__).exception("%s failed", task.title)
        short = "out of memory" if ran_out_of_memory(error) else f"{type(error).__name__}: {one_line(error)}"
        return _failed(task, out, f"{short}; {out / 'logs' / name}.log has more")
    finally:
        lock.release()


def _record(task: Task, out: Path, stop: StopFlag) -> int:
    work = out / WORK / task.id
    work.mkdir(parents=True, exist_ok=True)
    found: RateChoice | Member | None
    if task.kind == "rates":
        found = choose_rate(task, work, stop)
    else:
        rate = None if task.rates is None else read_rate(out, task.rates)
        found = train_member(task, work, out / MODELS, JudgeEvaluator(out / EVALUATOR), rate, stop)
    if found is None:
        return STOPPED
    path = out / task.record
    path.parent.mkdir(exist_ok=True)
    found.write(path)
    (out / "failures" / f"{task.id}.json").unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    return DONE


def _failed(task: Task, out: Path, error: str) -> int:
    folder = out / "failures"
    with contextlib.suppress(OSError):  # of a full disk; the exit code says it as well
        folder.mkdir(exist_ok=True)
        Failure(member=task.title, error=error).write(folder / f"{task.id}.json")
    return FAILED


def main() -> None:
    """Reads the command line."""
    say_on_stderr(prefix="")
    dist.keep_freed_memory()
    sys.exit(work_on(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
