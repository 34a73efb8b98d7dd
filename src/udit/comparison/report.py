"""The report of a comparison."""

from __future__ import annotations

from pathlib import Path

from udit.comparison.config import Comparison
from udit.comparison.job import Compared


def write_report(comparison: Comparison, found: Compared, out: Path) -> Path | None:
    """Placeholder until the page is there."""
    return None
