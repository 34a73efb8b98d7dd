"""The rows of docs/claims.md: claims with their verdicts, from the records of what was measured; and measuring anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from udit.claims import attention, caching, comparisons, growth, sizes, spectra
from udit.claims.claim import UNMEASURED, Claim, Judged, Kind
from udit.claims.comparisons import Members
from udit.claims.table import CLAIMS
from udit.errors import UserError
from udit.training.signals import StopFlag

FILES = Path("benchmarks")
"""``comparison-NAME.yaml`` is what ``udit compare`` takes."""
WORK = Path("runs")
"""``comparison-NAME`` is where members are trained; what is finished is copied to the results."""
FINISHED = ("records", "rates", "sizes", "evaluator")
"""Folders of a comparison that can be committed: with them it goes on elsewhere."""


MODULES: dict[Kind, ModuleType] = {
    "attention": attention,
    "spectra": spectra,
    "caching": caching,
    "growth": growth,
    "sizes": sizes,
}
"""By the kind of measurement, each with RECORD, COMMAND, measure, judge and details; ``udit compare`` has its own."""


@dataclass(frozen=True)
class Row:
    """A claim, and what has been measured of it."""

    claim: Claim
    judged: Judged
    command: str
    scale: str
    """Empty where nothing is measured."""


class Results:
    """The records below a folder: ``claims/KIND.json`` and ``comparisons/NAME/records``.

    Raises:
        UserError: a record is damaged.
    """

    def __init__(self, folder: Path) -> None:
        """Reads all of them."""
        self.folder = folder
        self.measured = {kind: module.RECORD.read(self.file(kind)) for kind, module in MODULES.items()}
        self.members = Members.read(folder / "comparisons")

    def file(self, kind: Kind) -> Path:
        """Where a measurement is kept."""
        return self.folder / "claims" / f"{kind}.json"

    def rows(self) -> list[Row]:
        """All claims with their verdicts."""
        return [self.row(claim) for claim in CLAIMS]

    def row(self, claim: Claim) -> Row:
        """One claim with its verdict."""
        command = f"udit claims {claim.name}"
        if claim.kind == "comparisons":
            judged = comparisons.judge(claim.name, self.members)
            return Row(claim, judged, command, comparisons.scale(claim.name, self.members))
        record = self.measured[claim.kind]
        if record is None:
            return Row(claim, UNMEASURED, command, "")
        judged = MODULES[claim.kind].judge(claim.name, record)
        return Row(claim, judged, command, f"{record.scale}; {record.machine}, {record.versions}, {record.date}")


def measure(
    claim: Claim,
    folder: Path,
    *,
    jobs: int = 1,
    stop: StopFlag | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Results:
    """Measures what a claim is judged by, and writes the record; claims of one kind share it.

    Args:
        claim: of the table.
        folder: of the results.
        jobs: of a comparison: members that are trained at a time.
        stop: of a comparison: asks it to end after a step; the same call goes on.
        tell: called with a line for each number.

    Returns:
        All results, the new one among them.

    Raises:
        UserError: data are missing, or a comparison's file.
    """
    if claim.kind == "comparisons":
        for name in comparisons.TESTS[claim.name].comparisons:
            if stop is None or not stop.signal:
                _compare(name, folder, jobs, stop, tell)
    else:
        module = MODULES[claim.kind]
        record = module.measure(tell)
        target = folder / "claims" / f"{claim.kind}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        record.write(target)
    return Results(folder)


def _compare(name: str, folder: Path, jobs: int, stop: StopFlag | None, tell: Callable[[str], object]) -> None:
    """Trains the members of one comparison that have no record yet, and copies theirs to the results."""
    from udit.comparison.config import read_comparison
    from udit.comparison.job import compare

    file, work, kept = FILES / f"comparison-{name}.yaml", WORK / f"comparison-{name}", folder / "comparisons" / name
    if not file.is_file():
        raise UserError(f"no file {file}; measure in a copy of the repository, which has it")
    _copy(kept, work)
    found = compare(read_comparison(file), work, jobs=jobs, stop=stop, tell=tell)
    _copy(work, kept)
    for problem in found.problems:
        tell(f"problem: {problem}")


def _copy(source: Path, target: Path) -> None:
    """Copies what is finished, where it is not there yet."""
    for path in (path for name in FINISHED for path in (source / name).glob("*")):
        there = target / path.parent.name / path.name
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def of_kind(rows: Sequence[Row], kind: Kind) -> list[Row]:
    """Rows that share a measurement."""
    return [row for row in rows if row.claim.kind == kind]
