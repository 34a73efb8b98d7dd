"""The counts of docs/performance/gpu-count.json as a table of docs/gpu.md: python benchmarks/gpu/table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "performance" / "gpu-count.json"
HEAD = ("| | launches | GB moved | GB of activations kept |", "|---|---:|---:|---:|")


def counts() -> dict[str, Any]:
    """What ``count.py`` wrote."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def rows(found: dict[str, Any]) -> list[str]:
    """A line of Markdown for every model and form, sizes together and the largest first."""
    order = ("U-DiT-L", "U-DiT-B", "U-DiT-S", "U-DiT-L literal", "U-DiT-B literal", "U-DiT-S literal", "DiT-XL/2")
    lines = []
    for name in (name for name in order if name in found["models"]):
        title = f"{name.removesuffix(' literal')}, the literal network" if "literal" in name else name
        for form, row in found["models"][name].items():
            sizes = " | ".join(f"{row[key]:.1f}" if row[key] < 100 else f"{row[key]:,.0f}" for key in ("GB", "kept_GB"))
            lines.append(f"| {title}, {form} | {row['launches']:,} | {sizes} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*HEAD, *rows(counts())]))
