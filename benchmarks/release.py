"""Checks a release: ``make release-check``. Builds wheel and sdist and installs them as a stranger would.

    python benchmarks/release.py                       # all of it; needs the package registry, and 15 GB of disk
    python benchmarks/release.py --only tree,wheel     # some checks
    python benchmarks/release.py --work FOLDER --only install:python3.12,extras:text   # pieces; FOLDER has the wheel
    python benchmarks/release.py --python python3.14   # another interpreter, beside those that are found

Each check prints "ok" or what is wrong; the exit code is the number of those that are wrong. Not part of CI: it
downloads gigabytes where torch is not cached.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13")
LARGEST = 10_000_000
"""Most bytes of a wheel."""
FIRST_SAMPLE = 60.0
"""Most seconds from the end of the installation to the first images, compiling the kernels included."""
WITHOUT_A_USE = {"docs", "browser", "dev", "all"}
"""Extras for work on udit itself, and their sum."""


class Wrong(Exception):
    """A check that does not hold."""


def run(*words: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """Output of a command.

    Raises:
        Wrong: it failed.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=clean | env)
    if done.returncode:
        raise Wrong(f"`{' '.join(map(str, words))}`: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout + done.stderr


def tree(work: Path) -> Iterator[str]:
    """Nothing is uncommitted; the generated pages are of this code; version, changelog and citation agree."""
    run(sys.executable, "benchmarks/reference.py", PYTHONPATH=str(ROOT / "src"))
    if dirty := run("git", "status", "--porcelain").strip():
        raise Wrong(f"uncommitted, or generated anew by benchmarks/reference.py: {dirty}")
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/udit/__init__.py").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    found = {"__init__": version, "CHANGELOG": newest, "CITATION.cff": cited}
    numbers = {where: match[1].strip() if match else None for where, match in found.items()}
    if len(set(numbers.values())) != 1:
        raise Wrong(f"versions differ: {numbers}")
    yield f"version {numbers['__init__']} everywhere, nothing uncommitted, pages as generated"


def wheel(work: Path) -> Iterator[str]:
    """Wheel and sdist are built, and hold what they should; the sdist builds the same wheel."""
    tools = environment(work / "tools", sys.executable)
    run(tools, "-m", "pip", "install", "-q", "build", "twine")
    dist = work / "dist"
    run(tools, "-m", "build", "-q", "--outdir", dist, ROOT)
    run(tools, "-m", "twine", "check", *dist.iterdir())
    [built], [source] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = set(zipfile.ZipFile(built).namelist())
    kinds = ("py", "cpp", "h", "json", "yaml", "safetensors")
    files = (path for kind in kinds for path in (ROOT / "src").rglob(f"*.{kind}"))
    needed = [path.relative_to(ROOT / "src").as_posix() for path in files]
    if missing := [name for name in needed if name not in names]:
        raise Wrong(f"not in the wheel: {missing[:5]}")
    if strange := [name for name in names if not name.startswith(("udit/", "udit-"))]:
        raise Wrong(f"in the wheel and not of the package: {strange[:5]}")
    if built.stat().st_size > LARGEST:
        raise Wrong(f"the wheel has {built.stat().st_size:,} bytes, more than {LARGEST:,}")
    run("tar", "-xzf", source, "-C", work)
    again = work / "again"
    run(tools, "-m", "build", "-q", "--wheel", "--outdir", again, work / source.name.removesuffix(".tar.gz"))
    [rebuilt] = again.glob("*.whl")
    if set(zipfile.ZipFile(rebuilt).namelist()) != names:
        raise Wrong("the sdist builds a wheel of other files")
    sizes = [f"{one.name}: {one.stat().st_size:,} bytes" for one in (built, source)]
    yield f"{'; '.join(sizes)}; {len(names)} files in the wheel"


def install(work: Path, python: str) -> Iterator[str]:
    """Core extras alone in a new environment: import, help, first images, and the same without a compiler."""
    [built] = (work / "dist").glob("*.whl")
    interpreter = find(python)
    if interpreter is None:
        yield f"{python}: not here, not tried"
        return
    name = Path(python).name
    place = environment(work / name, interpreter)
    began = time.perf_counter()
    run(place, "-m", "pip", "install", "-q", *_pins(), built)
    installed = time.perf_counter() - began
    yield f"{python}: installed in {installed:.0f} s; {first_images(place, work / f'{name}-first')}"


def _pins() -> list[str]:
    """torch as it is pinned: without a pin the newest one for a GPU is downloaded, where another is at hand."""
    pin = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return [pin[0]] if pin else []


def find(python: str) -> str | None:
    """A command that runs: the one of that name, or pyenv's newest, whose own command may be switched off."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    of_pyenv = sorted(
        versions.glob(f"*/bin/{Path(python).name}"), key=lambda path: [*map(int, re.findall(r"\d+", str(path)))]
    )
    for candidate in (python, *map(str, reversed(of_pyenv))):
        if shutil.which(candidate) and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def first_images(place: Path, where: Path) -> str:
    """Times of an import, of the help and of the first images with and without a compiler."""
    where.mkdir()
    cache = {"UDIT_CACHE": str(where / "cache"), "OMP_NUM_THREADS": "1"}
    clock = {}
    drawing = ("sample", "demo:digits", "--labels", "3,7", "--n", "8", "--no-progress")
    for name, words, env in (
        ("import", ("-c", "import udit"), {}),
        ("--help", ("-m", "udit", "--help"), {}),
        ("first images", ("-m", "udit", *drawing, "--out", "x"), cache),
        ("again", ("-m", "udit", *drawing, "--out", "y"), cache),
        ("without a compiler", ("-m", "udit", *drawing, "--out", "z"), cache | {"UDIT_CACHE": "none", "CXX": "none"}),
    ):
        began = time.perf_counter()
        said = run(place, *words, cwd=where, **env)
        clock[name] = time.perf_counter() - began
        if name == "without a compiler" and said.count("no C++ compiler") != 1:
            raise Wrong(f"without a compiler it said: {said}")
    if clock["first images"] > FIRST_SAMPLE:
        raise Wrong(f"the first images took {clock['first images']:.0f} s, more than {FIRST_SAMPLE:.0f}")
    if (where / "x" / "grid.png").stat().st_size == 0:
        raise Wrong("no images")
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.items())


def extras(work: Path, extra: str) -> Iterator[str]:
    """An extra by itself on top of the core: it installs, and does what it is for (release_use.py)."""
    [built] = (work / "dist").glob("*.whl")
    python = find(PYTHONS[0]) or sys.executable
    core = work / PYTHONS[0]  # ``install`` has filled it already
    base = environment(core, python)
    run(base, "-m", "pip", "install", "-q", *_pins(), built)
    place = environment(work / f"extra-{extra}", python)
    site = next((work / f"extra-{extra}" / "lib").glob("python*")) / "site-packages"
    core_site = next((core / "lib").glob("python*")) / "site-packages"
    (site / "core.pth").write_text(f"{core_site}\n", encoding="utf-8")
    run(place, "-m", "pip", "install", "-q", *_pins(), f"udit[{extra}] @ {built.as_uri()}")
    folder = work / f"extra-{extra}" / "work"
    folder.mkdir()
    run(place, ROOT / "benchmarks" / "release_use.py", extra, folder, cwd=folder, OMP_NUM_THREADS="1")
    yield f"udit[{extra}]: installed, and used once"
    shutil.rmtree(work / f"extra-{extra}")


def oldest(work: Path) -> Iterator[str]:
    """The lower bounds of pyproject.toml are real: with exactly these versions the first images are drawn."""
    [built] = (work / "dist").glob("*.whl")
    bounds = [line.replace(">=", "==") for line in _project()["dependencies"]]
    pins = work / "oldest.txt"
    pins.write_text("\n".join(bounds) + "\n", encoding="utf-8")  # numpy==2 is 2.0.0 and no later 2
    place = environment(work / "oldest", find(PYTHONS[0]) or sys.executable)
    run(place, "-m", "pip", "install", "-q", "-c", pins, built)
    yield f"{', '.join(bounds)}: {first_images(place, work / 'oldest-first')}"


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def environment(folder: Path, python: str) -> Path:
    """The interpreter of a virtual environment, made if it is not there."""
    inside = folder / "bin" / "python"
    if not inside.exists():
        run(python, "-m", "venv", folder)
    return inside


def main() -> int:
    """Runs the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = "checks by their names; install:PYTHON and extras:EXTRA are one of theirs"
    parser.add_argument("--only", default="tree,wheel,install,extras,oldest", help=told)
    parser.add_argument("--python", action="append", default=[], help="another interpreter")
    parser.add_argument(
        "--work", type=Path, help="where to build and install, and to leave it; else a temporary folder"
    )
    asked = parser.parse_args()
    checks: dict[str, Callable[[Path, str], Iterator[str]]] = {
        "tree": lambda work, _: tree(work),
        "wheel": lambda work, _: wheel(work),
        "install": install,
        "extras": extras,
        "oldest": lambda work, _: oldest(work),
    }
    parts = {
        "install": [*PYTHONS, *asked.python],
        "extras": [extra for extra in _project()["optional-dependencies"] if extra not in WITHOUT_A_USE],
    }
    wanted = [
        f"{name}:{part}"
        for name, _, given in (word.partition(":") for word in asked.only.split(","))
        for part in ([given] if given else parts.get(name, [""]))
    ]
    wrong = 0
    with ExitStack() as stack:
        work = (asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for check in wanted:  # each by itself: one that is wrong keeps no other from being tried
            name, _, part = check.partition(":")
            try:
                for line in checks[name](work, part):
                    print(f"ok     {name}: {line}", flush=True)
            except Wrong as error:
                wrong += 1
                print(f"WRONG  {check.rstrip(':')}: {error}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
