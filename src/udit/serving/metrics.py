"""Counters of a server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
OUTCOMES = ("answered", "mistaken", "refused", "late", "cancelled", "lost", "failed")
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How often values were at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[sum(value > bound for bound in self.bounds)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        """Its cumulative counts."""
        out, so_far = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {so_far}')
        return [*out, f"{name}_sum{{{labels}}} {self.total:.6f}", f"{name}_count{{{labels}}} {so_far}"]


class Metrics:
    """Of one model; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = dict.fromkeys(OUTCOMES, 0)
        """By outcome."""
        self.images = 0
        """Drawn, whether or not anybody still waited for them."""
        self.steps = 0
        """Steps of batches."""
        self.starts = 0
        """Of worker processes."""
        self.latency = Histogram(SECONDS)
        """Seconds from a request's arrival to its images."""
        self.batches = Histogram(IMAGES)
        """Images of a batch."""

    def answer(self, outcome: str, seconds: float | None = None) -> None:
        """Counts a request."""
        with self._lock:
            self.requests[outcome] += 1
            if seconds is not None:
                self.latency.add(seconds)

    def batch(self, images: int) -> None:
        """Counts a batch that is drawn."""
        with self._lock:
            self.images += images
            self.batches.add(images)

    def text(self, model: str, gauges: Mapping[str, float]) -> list[str]:
        """Its lines.

        Args:
            model: the name that tells models apart.
            gauges: what is true now, by name.
        """
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        label = f'model="{escaped}"'
        with self._lock:
            lines = [f'udit_requests_total{{{label},outcome="{name}"}} {n}' for name, n in self.requests.items()]
            lines += [f"udit_images_total{{{label}}} {self.images}", f"udit_steps_total{{{label}}} {self.steps}"]
            lines += [f"udit_worker_starts_total{{{label}}} {self.starts}"]
            lines += self.latency.lines("udit_request_seconds", label)
            lines += self.batches.lines("udit_batch_images", label)
        return lines + [f"udit_{name}{{{label}}} {value:g}" for name, value in gauges.items()]


KINDS = {
    "udit_requests_total": "counter",
    "udit_images_total": "counter",
    "udit_steps_total": "counter",
    "udit_worker_starts_total": "counter",
    "udit_request_seconds": "histogram",
    "udit_batch_images": "histogram",
    "udit_open_requests": "gauge",
    "udit_waiting_requests": "gauge",
    "udit_worker_up": "gauge",
}


def page(lines: Sequence[str]) -> str:
    """Lines of all models, grouped by metric as the format wants it."""
    out = []
    for name, kind in KINDS.items():
        own = [line for line in lines if line.startswith((f"{name}{{", f"{name}_"))]
        out += [f"# TYPE {name} {kind}", *own]
    return "\n".join(out) + "\n"
