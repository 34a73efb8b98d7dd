"""Where and when something was measured."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import date
from typing import TypedDict

import torch

import udit
from udit.benchmarking.report import processor


class Facts(TypedDict):
    """Fields of a ``Measurement``."""

    command: str
    machine: str
    versions: str
    date: str


def facts(command: str) -> Facts:
    """This machine, now."""
    threads = torch.get_num_threads()
    return {
        "command": command,
        "machine": f"{processor()}, {threads} thread{'s' * (threads > 1)}, float32",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of a call, which other programs lengthen less than its wall time."""
    start = time.process_time()
    call()
    return time.process_time() - start
