"""Real file systems for tests of failures: root ignores permissions, so these tests mount read-only or full ones."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest


@functools.cache
def private() -> tuple[str, ...]:
    """The command prefix under which mounting is allowed; its mounts end with it.

    Where mounting is not possible (no root, no user namespaces, no sudo) the test is skipped.
    """
    for words in (("unshare", "-m"), ("unshare", "-Urm"), ("sudo", "-nE", "unshare", "-m")):
        try:
            if not subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
                return words
        except OSError:
            continue
    pytest.skip("mounting is not possible on this machine")


def shell(script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount.

    Args:
        script: its ``$1``, ``$2``... are ``arguments``.
        variables: of its environment, all of it.
    """
    words = [*private(), "bash", "-eu", "-c", script, "bash", *map(str, arguments)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=280)
