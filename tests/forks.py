"""Commands of ``udit`` in processes of their own that start at once: forked from one that has imported everything.

A start of Python with torch takes seconds of processor time, more than all that a small run does. What is forked is a
process like any other: it has its own files, environment, signals and exit code, and is killed as any.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "diffusers.image_processor",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.schedulers.scheduling_flow_match_euler_discrete",
        "matplotlib.backends.backend_agg",
        "sklearn.datasets",
        "torch.distributed",
        "udit.cli.train",
        "udit.data.encode",
        "udit.evaluation.score",
        "udit.exporting.pipelines",
        "udit.training.trainer",
    ]
)


def start_server() -> None:
    """Starts the process that all others are forked from, unless it is there; torch's remarks are off in it.

    ``udit`` would turn them off before it imports torch.
    """
    with mock.patch.dict(os.environ, TORCH_CPP_LOG_LEVEL="ERROR", OMP_NUM_THREADS="1"):
        forkserver.ensure_running()


def _command(
    words: list[str], environment: dict[str, str], streams: dict[int, str], session: bool, traced: bool
) -> None:
    """In the new process: the command, with its own output files and environment."""
    from udit.cli import main

    if session:
        os.setsid()
    if traced:
        _wait_for_a_tracer()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in streams.items():
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    try:
        main(words)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _wait_for_a_tracer() -> None:
    """Until another process traces this one, which any may, even where Linux reserves that for parents.

    Raises:
        TimeoutError: none does, e.g. as the machine allows no tracing.
    """
    deadline = time.monotonic() + 60
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("no strace came within a minute")
        time.sleep(0.01)


class Forked:
    """A running ``udit WORDS``, with what of ``subprocess.Popen`` the tests use."""

    def __init__(
        self,
        words: list[str],
        environment: dict[str, str],
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        start_new_session: bool = False,
        traced: bool = False,
    ) -> None:
        """Starts it; what goes to a pipe is kept in a file. ``traced``: it waits until ``strace -p`` is there."""
        start_server()
        self._files: dict[int, Path] = {}
        for descriptor, wanted in ((1, stdout), (2, stderr)):
            if wanted == subprocess.PIPE:
                handle, name = tempfile.mkstemp(prefix="udit-test-")
                os.close(handle)
                self._files[descriptor] = Path(name)
        streams = {descriptor: str(self._files.get(descriptor, os.devnull)) for descriptor in (1, 2)}
        given = (words, environment, streams, start_new_session, traced)
        self._process: Any = FORKS.Process(target=_command, args=given)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that killed it, None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """As ``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it takes longer.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("udit", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Waits for its end; standard output and standard error, as far as they are kept."""
        self.wait(timeout)
        out, errors = (
            self._files[n].read_text(encoding="utf-8") if n in self._files and self._files[n].exists() else None
            for n in (1, 2)
        )
        for file in self._files.values():
            file.unlink(missing_ok=True)
        return out, errors
