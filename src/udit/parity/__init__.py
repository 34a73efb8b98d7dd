"""Checks this build of the library against reference outputs of the official programs (``udit parity FILE.npz...``).

A file says what to build, how to fill the weights and what the output was. Every array is checked; an unknown array is
a failure. The error of an array is max|d| / max|reference|.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from udit.errors import UserError

LIMIT = 2e-5
"""Outputs, gradients of the input, losses and sampling trajectories."""
LOOSE_LIMIT = 1e-4
"""Guided outputs, gradient norms and cached outputs."""


@dataclass(frozen=True)
class Check:
    """One array compared."""

    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether it agrees; NaN does not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Floor:
    """Our error next to the rounding of the program that wrote the file: printed, never checked.

    The last digit of constant tables decides that rounding, so a correct network need not reproduce it.
    """

    name: str
    """The output."""
    error: float
    """Ours: max|d| / max|reference|."""
    reference: float
    """Of that program in float32 against itself in float64, over max|reference|; NaN if the file has no number."""

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.1e}, the reference's own in float32 {self.reference:.1e}"


@dataclass(frozen=True)
class Report:
    """One file compared."""

    path: Path
    checks: tuple[Check, ...]
    floors: tuple[Floor, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every array agrees with the file's."""
        return all(check.ok for check in self.checks)

    @property
    def worst(self) -> Check:
        """The array nearest to its limit, or furthest beyond."""
        return max(
            self.checks, key=lambda c: np.inf if np.isnan(c.error) else c.error / c.limit if c.limit else c.error
        )

    def __str__(self) -> str:
        worst = self.worst
        verdict = "ok    " if self.ok else "FAILED"
        bad = sum(not check.ok for check in self.checks)
        tail = "" if self.ok else f"; {bad} of them disagree"
        tail += "".join(f"; {floor}" for floor in self.floors)
        return (
            f"{verdict} {self.path}: {len(self.checks)} arrays, worst {worst.name} {worst.error:.1e} "
            f"(limit {worst.limit:.0e}){tail}"
        )


class Disagreement(ValueError):
    """An array with values that no reference has (a fractional seed, labels out of range)."""


def exact(name: str, ours: object, stored: object) -> Check:
    """A check that allows no difference."""
    return Check(name, 0.0 if np.array_equal(np.asarray(ours), np.asarray(stored)) else np.inf, 0.0)


def close(name: str, ours: object, stored: object, limit: float = LIMIT) -> Check:
    """max|d| / max|reference| against a limit."""
    if np.asarray(stored).dtype.kind not in "biuf":
        return Check(f"{name} (holds no numbers)", np.inf, limit)
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(stored, dtype=np.float64)
    if a.shape != b.shape:
        return Check(f"{name} (shape {list(a.shape)}, reference {list(b.shape)})", np.inf, limit)
    with np.errstate(invalid="ignore"):  # infinite or not a number on either side is NaN, and fails
        scale = np.abs(b).max(initial=0.0)
        error = np.abs(a - b).max(initial=0.0)
        return Check(name, float(error / scale) if scale else float(error), limit)


def whole(name: str, array: np.ndarray) -> np.ndarray:
    """``array`` as int64, refusing fractions and text."""
    if array.dtype.kind not in "iuf":
        raise Disagreement(f"{name} (holds no numbers)")
    with np.errstate(invalid="ignore"):  # NaN has no integer, and is refused below
        rounded = array.astype(np.int64)
    if not np.array_equal(rounded, array):
        raise Disagreement(f"{name} ({array[rounded != array][0]:g} is no whole number)")
    return rounded


def seed_of(name: str, array: np.ndarray) -> int:
    """The one seed that ``array`` holds."""
    seeds = whole(name, array).ravel()
    if len(seeds) != 1 or not 0 <= seeds[0] < 2**31:
        raise Disagreement(f"{name} (holds {seeds.tolist()}, not one seed)")
    return int(seeds[0])


def number(name: str, array: np.ndarray) -> float:
    """The one number that ``array`` holds, as a scalar or as a row of one."""
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Disagreement(f"{name} (holds {array.dtype} of shape {list(array.shape)}, not one number)")
    return float(array.ravel()[0])


def check_file(path: Path, device: str = "cpu", dtype: torch.dtype | str = torch.float32) -> Report:
    """Rebuilds the system of a reference file and compares every array.

    Args:
        path: ``.npz`` in the format of docs/parity.md.
        device: where the network runs.
        dtype: of the network, or its name; the limits are for float32.

    Raises:
        UserError: the file cannot be read, or its system is unknown.
    """
    from udit.parity import diffusion, flow, network, rotary

    kind: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    arrays = read(path)
    floors: list[Floor] = []
    try:
        if "loss_x0_seed" in arrays:
            checks = diffusion.check(arrays)
        elif "flow_x0_seed" in arrays:
            checks = flow.check(arrays)
        elif "rope_grid" in arrays:
            checks = rotary.check(arrays)
        else:
            checks, floors = network.check(arrays, path, device, kind)
    except Disagreement as error:
        checks = [Check(str(error), np.inf, 0.0)]
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:  # shapes and types no reference has
        what = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UserError(f"{path} does not hold what its format says: {what}; take an unaltered file") from error
    return Report(path, tuple(checks), tuple(floors))


def read(path: Path) -> dict[str, np.ndarray]:
    """Every array of an ``.npz``; object arrays are refused unread.

    Raises:
        UserError: no such file, or not an ``.npz``.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        detail = "it is no zip archive of arrays" if "pickle" in str(error) else str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as a reference .npz: {detail}") from None
