"""Clients of `udit serve` on 127.0.0.1, and the server in a process of its own, for benchmarks and tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 150.0
"""Seconds after which a request counts as hung."""


@dataclass
class Reply:
    """An HTTP answer, and the seconds until it was there; status 0 if the connection was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


async def exchange(port: int, data: bytes) -> Reply:
    """Sends bytes over a connection of their own, and reads until it is closed.

    Raises:
        TimeoutError: there was no answer within PATIENCE.
    """
    begun = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        got = b""
        try:
            writer.write(data)
            await writer.drain()
            got = await reader.read(-1)
        except (ConnectionError, BrokenPipeError):
            pass
        finally:
            writer.close()
    seconds = time.perf_counter() - begun
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/1.1 ") else 0
    headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
    return Reply(status, headers, body, seconds)


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes."""
    fields = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(body))}
    if body:
        fields["content-type"] = "application/json"
    fields |= {key.replace("_", "-"): value for key, value in headers.items()}
    head = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + body


async def post(port: int, values: Any) -> Reply:
    """Asks for images."""
    return await exchange(port, http("POST", "/sample", json.dumps(values).encode()))


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(int(pid))
        return found

    def memory(self) -> dict[str, float]:
        """MB of resident memory."""
        return {"server": resident(self.process.pid), "worker": sum(map(resident, self.workers()))}

    def spread(self) -> None:
        """Puts server and clients on one core, and the worker on another."""
        first, *others = sorted(os.sched_getaffinity(1))
        if not others:
            return
        for pid, core in (
            (os.getpid(), first),
            (self.process.pid, first),
            *((pid, others[0]) for pid in self.workers()),
        ):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {core})


def resident(pid: int) -> float:
    """MB that a process holds in memory."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    return 0.0


@contextlib.contextmanager
def served(model: str, *options: str) -> Iterator[Served]:
    """`udit serve` of a model until the end of the block, where Ctrl-C must end it with exit code 0."""
    command = [sys.executable, "-m", "udit", "serve", model, "--port", "0", *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found is None:
                log.seek(0)
                raise SystemExit(f"no server: {log.read().decode()}")
            yield Served(process, int(found[1]))
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, "Ctrl-C ends the server with exit code 0"
            log.seek(0)
            _, trace, rest = log.read().decode(errors="replace").partition("Traceback")
            assert not trace, f"a traceback in the server's log: {rest[:3000]}"
        finally:
            process.kill()
            process.wait()
