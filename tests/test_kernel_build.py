"""Building kernels: one line where it fails, one file for many processes, built again where it is truncated."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import needs_compiler
from udit import ops
from udit.ops import build

SOURCE = Path(ops.__file__).parent / "gating" / "cpu.cpp"
"""The kernel that compiles fastest."""


def library() -> build.Library:
    """A library that has not been used yet."""
    return build.Library("gated_sum", SOURCE)


def test_a_compiler_that_is_there_yields_a_kernel() -> None:
    """Otherwise every test of kernels would compare torch with itself."""
    assert library().available() is (build.find_compiler() is not None)


def test_a_missing_compiler_is_logged_once_and_torch_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level("INFO"):
        asked = library()
        assert not asked.available()
        assert not asked.available()
        assert not asked.loaded()
    assert [record.message for record in caplog.records] == [
        "no C++ compiler (CXX is 'no-such-compiler', which is not there): torch's own operators run in place of "
        "compiled ones, more slowly"
    ]


def test_a_compiler_that_fails_is_logged_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 1 && exit\necho 'error: no such\nheader' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("UDIT_CACHE", str(tmp_path / "cache"))
    assert not library().available()
    [record] = caplog.records
    assert record.message.endswith("slower operator runs: error: no such header")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiler = build.find_compiler()
    assert compiler is not None
    assert build.load("gated_sum", SOURCE, compiler, tmp_path / "file" / "kernels").gate_f32


@pytest.mark.slow
@needs_compiler
def test_processes_that_build_at_once_leave_one_kernel(tmp_path: Path) -> None:
    code = "from pathlib import Path; import sys; from udit.ops import build\n"
    code += "source, folder = map(Path, sys.argv[1:])\n"
    code += "assert build.load('gated_sum', source, build.find_compiler(), folder).gate_f32"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        command = [sys.executable, "-c", code, str(SOURCE), str(tmp_path)]
        for done in pool.map(lambda _: subprocess.run(command, env=os.environ, check=False), range(2)):
            assert done.returncode == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@needs_compiler
def test_a_truncated_kernel_is_built_again(tmp_path: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    path = tmp_path / f"gated_sum-{build.key(SOURCE, compiler)}.so"
    path.write_bytes(b"\x7fELF torn")
    assert build.load("gated_sum", SOURCE, compiler, tmp_path).gate_f32
    assert path.stat().st_size > 10_000
