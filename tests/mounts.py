"""Real file systems to fail on: root passes over permissions, so tests of them mount."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest


@functools.cache
def private() -> tuple[str, ...]:
    """The command in front of one that may mount; its mounts vanish with it.

    A machine that lets nobody mount (no root, no user namespaces, no sudo) skips the test.
    """
    for words in (("unshare", "-m"), ("unshare", "-Urm"), ("sudo", "-nE", "unshare", "-m")):
        try:
            if not subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
                return words
        except OSError:
            continue
    pytest.skip("this machine lets nobody mount")


def shell(script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount.

    Args:
        script: its ``$1``, ``$2``... are ``arguments``.
        variables: of its environment, all of it.
    """
    words = [*private(), "bash", "-eu", "-c", script, "bash", *map(str, arguments)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=280)
