"""Two machines that a test makes itself: network namespaces, joined by one cable (a veth pair) and nothing else.

They share the file system, as machines of a cluster share a run folder. Root can make them, and so can anybody where
the system allows user namespaces.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from runs import environment

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = ("cable0", "cable1")
"""Names of the cable's ends."""
PORT = 29411
SYSTEM = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
"""An environment that finds ip and tc, which a user's may not."""


@functools.cache
def maker() -> tuple[str, ...]:
    """The command prefix that makes a network namespace; without the right to, the test is skipped and says so."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    for words in (("unshare", "-n"), ("unshare", "-Urn")):
        script = "ip link add end0 type veth peer name end1 && tc qdisc add dev end0 root tbf rate 1mbit burst 9kb"
        script += " latency 9ms"
        try:
            if not subprocess.run([*words, "sh", "-c", script], capture_output=True, env=SYSTEM).returncode:
                return words
        except OSError:
            continue
    pytest.skip("this machine lets nobody make network namespaces with veth and tc (no root, no user namespaces)")


class Nodes:
    """Two machines and the cable between them; a context that ends all that runs on them."""

    def __init__(self) -> None:
        words = maker()
        self._user = ("-U", "--preserve-credentials") if "-Urn" in words else ()
        mine = _space("self")
        self._keepers = [subprocess.Popen([*words, "sleep", "3600"])]
        self._wait(self._keepers[0], mine)
        self._keepers.append(subprocess.Popen([*self._inside(0), "unshare", "-n", "sleep", "3600"]))
        self._wait(self._keepers[1], _space(self._keepers[0].pid), mine)
        self.started: list[list[subprocess.Popen[str]]] = [[], []]

    def __enter__(self) -> Self:
        self.run(0, "ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        self.run(0, "ip", "link", "set", CABLE[1], "netns", str(self._keepers[1].pid))
        for node, (address, end) in enumerate(zip(ADDRESSES, CABLE, strict=True)):
            self.run(node, "ip", "address", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                self.run(node, "ip", "link", "set", device, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in (0, 1):
            self.kill(node)
        for keeper in self._keepers:
            keeper.kill()
            keeper.wait()

    def run(self, node: int, *words: str) -> None:
        """Runs a command on a machine, which must succeed."""
        subprocess.run([*self._inside(node), *words], check=True, capture_output=True, env=SYSTEM)

    def start(self, node: int, words: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[str]:
        """Starts a command on a machine; its output is appended to a file."""
        with log.open("a") as stream:
            process = subprocess.Popen(
                [*self._inside(node), *words],
                env=environment(GLOO_SOCKET_IFNAME=CABLE[node], **variables),
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.started[node].append(process)
        return process

    def torchrun(
        self, node: int, ranks: int, words: Sequence[str], log: Path, restarts: int = 3
    ) -> subprocess.Popen[str]:
        """Starts some ranks of a job of both machines; the first machine hosts the rendezvous."""
        settings = f"is_host={int(node == 0)},join_timeout=300,last_call_timeout=5"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={ranks}"]
        launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=job"]
        launcher += [f"--rdzv-conf={settings}", f"--local-addr={ADDRESSES[node]}", f"--max-restarts={restarts}"]
        return self.start(node, [*launcher, "-m", "udit", "--", *words], log)

    def cut(self) -> None:
        """Cuts the cable: whatever is sent is lost, and nobody is told."""
        for node, end in enumerate(CABLE):
            self.run(
                node, "tc", "qdisc", "replace", "dev", end, "root", "tbf", "rate", "8bit", "burst", "9", "limit", "9"
            )

    def slow(self, rate: str) -> None:
        """Limits the cable to a rate, e.g. "1mbit"."""
        for node, end in enumerate(CABLE):
            limits = ["rate", rate, "burst", "16kb", "latency", "400ms"]
            self.run(node, "tc", "qdisc", "replace", "dev", end, "root", "tbf", *limits)

    def heal(self) -> None:
        """Makes the cable whole again."""
        for node, end in enumerate(CABLE):
            self.run(node, "tc", "qdisc", "del", "dev", end, "root")

    def kill(self, node: int) -> None:
        """Ends all that was started on a machine, with what it started in turn, as a power cut does."""
        here = _space(self._keepers[node].pid)
        for entry in Path("/proc").iterdir():
            try:
                ours = entry.name.isdigit() and _space(entry.name) == here
                if ours and int(entry.name) != self._keepers[node].pid:
                    os.kill(int(entry.name), 9)
            except OSError:
                continue
        for process in self.started[node]:
            process.wait()
        self.started[node].clear()

    def _inside(self, node: int) -> list[str]:
        return ["nsenter", "-t", str(self._keepers[node].pid), *self._user, "-n"]

    @staticmethod
    def _wait(keeper: subprocess.Popen[bytes], *others: str) -> None:
        deadline = time.monotonic() + 20
        while _space(keeper.pid) in others:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _space(process: int | str) -> str:
    """The network namespace of a process."""
    return str(Path(f"/proc/{process}/ns/net").readlink())
