"""FiT's rotary tables: those of the official program, and what extrapolation must keep."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import DATA
from udit.nn.rotary import MODES, base_frequencies, extrapolated, split_rotary_grid, split_rotary_table
from udit.ops.attention import rotate
from udit.parity import Report, check_file

REFERENCE = dict(np.load(DATA / "fit-rope.npz"))
TABLES = [name for name in REFERENCE if name.endswith(("cos", "sin"))]


def failed(report: Report) -> set[str]:
    return {check.name.split(" ")[0] for check in report.checks if not check.ok}


def test_official_tables() -> None:
    report = check_file(DATA / "fit-rope.npz")
    assert report.ok, str(report)
    assert {check.name for check in report.checks} == set(TABLES)


def test_altered_and_unknown_tables_fail(tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    novel = {"rope_cubic_joint_cos": np.zeros(3), "novel": np.zeros(1)}
    altered = {name: value * 1.001 if name in TABLES else value for name, value in REFERENCE.items()}
    np.savez(path, **altered, **novel)  # type: ignore[arg-type]
    assert failed(check_file(path)) == {*TABLES, *novel}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rope_side", np.array([3]), "rope_side (holds [3], not two sides)"),
        ("rope_theta", np.array(["text"]), "rope_theta (holds <U4"),
        ("rope_trained_side", None, "rope_trained_side (is missing)"),
    ],
)
def test_inputs_no_reference_holds_fail(name: str, value: np.ndarray | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    arrays = {key: array for key, array in (REFERENCE | {name: value}).items() if array is not None}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    report = check_file(path)
    assert not report.ok
    assert said in str(report)


@pytest.mark.parametrize("mode", MODES)
def test_on_grids_of_the_trained_size_nothing_is_scaled(mode: str) -> None:
    (rows, columns), _ = extrapolated(mode, 16, (12, 16), 16, decoupled=True)  # type: ignore[arg-type]
    for frequencies in (rows, columns):
        torch.testing.assert_close(frequencies, base_frequencies(16))


def test_decoupled_axes_are_scaled_each_by_its_own_side() -> None:
    (rows, columns), factor = extrapolated("linear", 16, (16, 48), 16, decoupled=True)
    torch.testing.assert_close(rows, base_frequencies(16))
    torch.testing.assert_close(columns, base_frequencies(16) / 3)
    assert factor == 1
    joint, _ = extrapolated("linear", 16, (16, 48), 16, decoupled=False)
    assert torch.equal(joint[0], columns)
    assert torch.equal(joint[1], columns)


def test_yarn_sharpens_attention_by_the_logarithm_of_the_scale() -> None:
    _, factor = extrapolated("yarn", 16, (16, 32), 16, decoupled=False)
    assert factor == pytest.approx(1 + 0.1 * math.log(2))


@pytest.mark.parametrize("axis", [0, 1])
def test_products_depend_on_differences_of_positions_alone(axis: int) -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequency = base_frequencies(4)

    def product(one: tuple[int, int], two: tuple[int, int]) -> float:
        rows, columns = torch.tensor([one, two]).T
        table = split_rotary_table((frequency, frequency), rows, columns).double()
        return float(rotate(q, table[:, 0]) @ rotate(k, table[:, 1]))

    moved = (3, 0) if axis == 0 else (0, 3)
    other = (5, 0) if axis == 0 else (0, 5)
    near = product((1, 2), (1 + moved[0], 2 + moved[1]))
    assert product((7, 9), (7 + moved[0], 9 + moved[1])) == pytest.approx(near, abs=1e-6)
    assert product((1, 2), (1 + other[0], 2 + other[1])) != pytest.approx(near, abs=1e-3)


def test_a_grid_is_row_by_row() -> None:
    table = split_rotary_grid(2, 3, 8)
    assert table.shape == (2, 6, 8)
    frequency = base_frequencies(4)
    expected = split_rotary_table((frequency, frequency), torch.tensor(1), torch.tensor(2))
    assert torch.equal(table[:, 5], expected)
