"""Counts parameters and MACs of every row of the catalogue and writes src/udit/models/costs.json (two minutes).

A row is known by the digest of its config, so that a row that is changed is counted anew wherever it is asked for.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from udit.analysis import config_digest, cost
from udit.models.catalog import CATALOG
from udit.progress import progress_bar

OUT = Path(__file__).parents[1] / "src" / "udit" / "models" / "costs.json"


def main() -> None:
    """Writes the file, a line for each config."""
    lines = {}
    with progress_bar(len(CATALOG), "count", "model", show=True, leave=False) as bar:
        for entry in CATALOG.values():
            counted = ", ".join(map(str, astuple(cost(entry.config))))
            lines[config_digest(entry.config)] = f"[{counted}]"
            bar.update()
    body = ",\n".join(f' "{digest}": {numbers}' for digest, numbers in lines.items())
    OUT.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
