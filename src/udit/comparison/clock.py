"""The clock by which trainings are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

Kind = Literal["processor", "wall"]


def clock_of(device: str) -> tuple[Callable[[], float], Kind]:
    """Processor time where one thread does all the work, which other programs do not disturb; wall time otherwise."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor"
    return time.perf_counter, "wall"
