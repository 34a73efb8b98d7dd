"""Measurements as JSON, with a description of the machine, and as Markdown tables."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from udit import __version__, ops
from udit.benchmarking.measure import Result
from udit.files import write_text

HEADER = ("", "median ms", "spread", "speed", "TFLOP", "of peak", "peak MB", "first call s")
EXTRA = {
    "graphs": "graphs",
    "graph_breaks": "graph breaks",
    "waited": "waited for data",
    "launches": "launches",
    "idle": "GPU idle",
}
"""Columns that appear only in tables with a value for them."""


def machine(device: torch.device | None = None, precision: str = "float32") -> dict[str, Any]:
    """The machine, the software and the date of a measurement; of one on a CUDA ``device`` also the GPU."""
    kind = device.type if device else "cpu"
    gpu = {"GPU": torch.cuda.get_device_name(device), "CUDA": torch.version.cuda} if kind == "cuda" else {}
    return {
        **gpu,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "dtype": precision,
        "torch": torch.__version__,
        "udit": __version__,
        "python": platform.python_version(),
        "kernels": ops.describe(kind),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name, where the system reports it, and its kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(found, platform.processor() or platform.machine())} ({platform.machine()})"


class Record:
    """The rows of a measurement, in files that are complete after each row."""

    def __init__(
        self,
        command: str,
        json_file: Path | None = None,
        markdown_file: Path | None = None,
        device: torch.device | None = None,
        precision: str = "float32",
    ) -> None:
        """Takes the command that measures, the files to write, if any, and where and in what it measures."""
        self.command = command
        self.device, self.precision = device, precision
        self.json_file, self.markdown_file = json_file, markdown_file
        self.results: list[Result] = []
        self.found: dict[str, Any] = {}
        """Command, machine and rows as plain values."""

    def add(self, result: Result) -> None:
        """Adds a row and writes the files.

        Raises:
            OSError: a file cannot be written.
        """
        self.results.append(result)
        self.found = {"command": self.command} | plain(self.results, self.device, self.precision)
        if self.json_file:
            write_text(self.json_file, json.dumps(self.found, indent=1) + "\n")
        if self.markdown_file:
            write_text(self.markdown_file, self.markdown())

    def markdown(self) -> str:
        """Tables of all rows."""
        return markdown(self.found)


def plain(results: Sequence[Result], device: torch.device | None = None, precision: str = "float32") -> dict[str, Any]:
    """Rows and machine as plain values, for JSON."""
    rows = [
        dataclasses.asdict(result) | {"median": result.median, "share_of_peak": result.share_of_peak}
        for result in results
    ]
    return {"machine": machine(device, precision), "results": rows}


def comparisons(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Rows of ``plain``'s result that were timed together: one kind of work for one model and its baselines."""
    groups: list[list[dict[str, Any]]] = []
    for row in found["results"]:
        last = groups[-1] if groups else []
        if not last or row["work"] != last[0]["work"] or row["subject"] == last[0]["subject"]:
            groups.append([])
        groups[-1].append(row)
    return groups


def markdown(found: dict[str, Any]) -> str:
    """Tables of ``plain``'s result, one a comparison; speed is relative to the first row of each."""
    facts = found["machine"].items()
    lines = [", ".join(f"{key} {value}" for key, value in facts) + "."]
    for rows in comparisons(found):
        lines += ["", f"**{rows[0]['work']}** (matrix product: {rows[0]['peak'] / 1e9:.0f} GFLOP/s)", ""]
        extra = [key for key in EXTRA if any(row.get(key) is not None for row in rows)]
        header = [*HEADER, *(EXTRA[key] for key in extra)]
        lines += ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
        lines += ["| " + " | ".join(_cells(row, rows[0], extra)) + " |" for row in rows]
        for key, title in (("kinds", "Where the time goes"), ("levels", "By part of the network")):
            known = [row for row in rows if row[key]]
            if known:
                lines += ["", f"{title}:", ""]
                lines += [f"- {row['subject']}: " + _shares(row[key]) for row in known]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], first: dict[str, Any], extra: Sequence[str]) -> list[str]:
    spread = (max(row["seconds"]) - min(row["seconds"])) / row["median"]
    share = row["share_of_peak"]
    return [
        row["subject"],
        f"{row['median'] * 1e3:.1f}",
        f"{spread:.0%}",
        f"{first['median'] / row['median']:.2f}x",
        "-" if row["flops"] is None else f"{row['flops'] / 1e12:.4f}",
        "-" if share is None else f"{share:.0%}",
        f"{row['peak_bytes'] / 1e6:.0f}",
        f"{row['first_call']:.1f}",
        *(_extra(row.get(key)) for key in extra),
    ]


def _extra(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}" if isinstance(value, float) else str(value)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
