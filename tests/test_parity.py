"""The parity check passes on the reference outputs and fails on anything else, array by array."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udit
from conftest import DATA
from udit.errors import UserError
from udit.models.build import build
from udit.parity import Check, Disagreement, Report, check_file, close, exact, seed_of, whole
from udit.parity.network import _Case, describe, systems

REFERENCE = dict(np.load(DATA / "diffusion.npz"))
NETWORK = dict(np.load(DATA / "udit.npz"))
Arrays = dict[str, np.ndarray]


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Arrays], Report]:
    """Checks a file of the given arrays."""

    def check(arrays: Arrays) -> Report:
        np.savez(tmp_path / "case.npz", **arrays)  # type: ignore[arg-type]
        return check_file(tmp_path / "case.npz")

    return check


def failed(report: Report) -> set[str]:
    return {check.name.split(" ")[0] for check in report.checks if not check.ok}


# ---- the diffusion tower ---------------------------------------------------------------------------------------------


def test_diffusion_tower_agrees_with_the_reference() -> None:
    report = check_file(DATA / "diffusion.npz")
    assert report.ok, str(report)
    assert {check.name for check in report.checks} == set(REFERENCE) - {"loss_t", "loss_x0_seed"}
    assert str(report).startswith("ok ")
    assert report.worst.error <= report.worst.limit


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REFERENCE if name not in ("loss_t", "loss_x0_seed")])
def test_any_array_a_thousandth_off_fails_alone(name: str, report: Callable) -> None:
    altered = report(REFERENCE | {name: REFERENCE[name] * 1.001})
    assert not altered.ok
    assert failed(altered) == {name}
    assert str(altered).startswith("FAILED ")
    assert f"worst {name} " in str(altered)
    assert "\n" not in str(altered)


@pytest.mark.parametrize("name", ["loss_t", "loss_x0_seed"])
@pytest.mark.parametrize("factor", [1.001, -1, 1000])
def test_altered_inputs_fail(name: str, factor: float, report: Callable) -> None:
    assert not report(REFERENCE | {name: REFERENCE[name] * factor}).ok


def test_one_altered_number_fails(report: Callable) -> None:
    altered = {key: value.copy() for key, value in REFERENCE.items()}
    altered["ddpm_50_clip0"][1, 3, 7, 7] += 1e-4 * np.abs(altered["ddpm_50_clip0"]).max()
    assert failed(report(altered)) == {"ddpm_50_clip0"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_fail(value: float, report: Callable) -> None:
    altered = {key: value_.copy() for key, value_ in REFERENCE.items()}
    altered["vb"][0] = value
    assert failed(report(altered)) == {"vb"}


@pytest.mark.parametrize("name", ["novel", "timesteps_", "ddpm_10_clip2", "ddim_10_eta", "outB"])
def test_unknown_array_fails(name: str, report: Callable) -> None:
    altered = report(REFERENCE | {name: np.zeros(3)})
    assert failed(altered) == {name}
    assert "(unknown array)" in str(altered)


@pytest.mark.parametrize("name", ["loss", "betas_10", "timesteps_50", "ddim_ddim10_eta0.7"])
def test_arrays_of_another_shape_or_kind_fail(name: str, report: Callable) -> None:
    value = REFERENCE[name]
    for other in (np.stack([value, value]), value.reshape(-1)[:0], np.full(value.shape, "text")):
        assert failed(report(REFERENCE | {name: other})) == {name}


def test_other_respacings_and_seeds_are_read_from_the_file(report: Callable) -> None:
    """Not only the one stored case: arrays of other names are computed, so a copy under another name fails."""
    for name, other in (("timesteps_10", "timesteps_20"), ("ddim_ddim10_eta0.0", "ddim_ddim10_eta0.1")):
        arrays = {key: value for key, value in REFERENCE.items() if key != name} | {other: REFERENCE[name]}
        assert failed(report(arrays)) == {other}
    assert failed(report(REFERENCE | {"loss_x0_seed": np.array(8)})) >= {"loss", "mse", "vb", "ddpm_10_clip0"}


# ---- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 torn", b"\x93NUMPY", b"text", None],
    ids=["empty", "torn zip", "torn npy", "text", "none"],
)
def test_unreadable_file_is_a_one_line_error(content: bytes | None, tmp_path: Path, one_line: Callable) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a reference") as caught:
        check_file(path)
    assert str(path) in one_line(caught.value)
    assert "allow_pickle" not in str(caught.value), "no advice to load what could run code"


def test_truncated_file_is_a_one_line_error(tmp_path: Path, one_line: Callable) -> None:
    whole_file = (DATA / "diffusion.npz").read_bytes()
    path = tmp_path / "short.npz"
    path.write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match="cannot be read") as caught:
        check_file(path)
    one_line(caught.value)


def test_flipped_byte_is_a_one_line_error(tmp_path: Path, one_line: Callable) -> None:
    raw = bytearray((DATA / "diffusion.npz").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path = tmp_path / "flipped.npz"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        check_file(path)
    one_line(caught.value)


class Bomb:
    """Unpickling it creates the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "bomb.npz", loss_x0_seed=np.array([Bomb(tmp_path / "ran")], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        check_file(tmp_path / "bomb.npz")
    assert not (tmp_path / "ran").exists()


def described(**changes: Any) -> Arrays:
    words = json.loads(str(NETWORK["model"][0])) | changes
    return NETWORK | {"model": np.array([json.dumps({k: v for k, v in words.items() if v is not None})])}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (described(system="u-ditt"), "unknown system 'u-ditt'; did you mean 'u-dit'?"),
        (described(system=None), "is not a JSON object that names a system"),
        (described(system=[1]), "does not hold what its format says"),
        (NETWORK | {"model": np.array(["{torn"])}, "not a JSON object"),
        (NETWORK | {"model": np.zeros(1)}, "not a JSON object"),
        (described(window=8), "has words this version does not know: window"),
        (described(width=None), "lacks 'width'"),
        (described(width=97), "width 97 does not split over 4 heads"),
        (described(heads="four"), "it takes a whole number"),
        (described(null_label=999), "1000 classes; the file says 999"),
        ({k: v for k, v in NETWORK.items() if k != "std"}, "lacks std; it is no reference file"),
        ({"a": np.zeros(2)}, "it is no reference file"),
        (NETWORK | {"t": np.array(["a", "b"])}, "does not hold what its format says: TypeError"),
        (NETWORK | {"x_shape": np.array([2, 4, -1, 8])}, "-1"),
    ],
)
def test_description_that_cannot_be_built_is_a_one_line_error(
    arrays: Arrays, said: str, report: Callable, one_line: Callable
) -> None:
    with pytest.raises(UserError) as caught:
        report(arrays)
    assert said in one_line(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": np.array(1.5)}, "seed (1.5 is no whole number)"),
        ({"seed": np.array([1, 2])}, "seed (holds [1, 2], not one seed)"),
        ({"y": np.array([3, 1001])}, "y (1001 lies outside the labels 0 to 1000)"),
        ({"y": np.array([-1, 3])}, "y ("),
    ],
)
def test_inputs_no_reference_holds_fail(changes: Arrays, said: str, report: Callable) -> None:
    altered = report(NETWORK | changes)
    assert not altered.ok
    assert said in str(altered)


def test_description_becomes_the_config() -> None:
    described, channels = describe(NETWORK, Path("x.npz"))
    assert described.config.replace(input_size=32) == udit.build("U-DiT-S", device="meta").config
    assert channels == 3
    assert "u-dit" in systems()


# ---- checks ----------------------------------------------------------------------------------------------------------


def test_error_is_measured_by_the_largest_reference() -> None:
    check = close("a", [1.0, 2.0, -4.0], [1.0, 2.1, -4.0])
    assert check.error == pytest.approx(0.1 / 4)
    assert not check.ok
    assert close("a", [0.0], [0.0]).ok
    assert not close("a", [1e-3], [0.0]).ok
    assert not close("a", [np.nan], [1.0]).ok
    assert not close("a", [1.0], [np.nan]).ok
    assert not close("a", [1.0, 2.0], [1.0]).ok
    assert not close("a", [1.0], ["x"]).ok


def test_exact_checks_allow_nothing() -> None:
    assert exact("n", [1, 2], np.array([1, 2])).ok
    assert not exact("n", [1, 2], np.array([1, 3])).ok
    assert not exact("n", [1, 2], np.array([1])).ok


def test_worst_check_is_the_one_furthest_towards_its_limit() -> None:
    near, far, broken = Check("near", 1e-6, 2e-5), Check("far", 9e-5, 1e-4), Check("broken", float("nan"), 1.0)
    assert Report(Path("x"), (near, far)).worst is far
    assert Report(Path("x"), (near, far)).ok
    assert Report(Path("x"), (near, broken, far)).worst is broken
    assert not Report(Path("x"), (near, broken)).ok


def test_whole_numbers_and_seeds() -> None:
    assert whole("a", np.array([1.0, 2.0])).dtype == np.int64
    assert seed_of("s", np.array([7.0])) == 7
    for bad in (np.array([0.5]), np.array([np.nan]), np.array(["a"])):
        with pytest.raises(Disagreement):
            whole("a", bad)
    for bad in (np.array([]), np.array([1, 2]), np.array(-1), np.array(2**40)):
        with pytest.raises(Disagreement):
            seed_of("s", bad)


# ---- the reference's own rounding ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Arrays:
    """A file of a small DiT in both recipes, whose outputs are this library's own."""
    words = {"system": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2, "input_size": 8, "in_channels": 2}
    words |= {"classes": 3, "null_label": 3, "learn_sigma": False, "time": "index"}
    keys = {f"base_{part}{recipe}": np.zeros(0) for part in ("keys", "values") for recipe in ("", "B")}
    arrays: Arrays = {
        "model": np.array([json.dumps(words)]),
        "seed": np.array(5),
        "x_shape": np.array([2, 2, 8, 8]),
        "t": np.array([3, 900]),
        "y": np.array([0, 3]),
        "std": np.array(0.2),
        **keys,
        "out": np.zeros(0),
    }
    described, channels = describe(arrays, Path("small.npz"))
    case = _Case(arrays, described, channels, "cpu", torch.float32)
    with torch.no_grad():
        out = case.run(case.network(""), case.x, case.y, case.t).numpy()
    return arrays | {"out": out, "outB": out, "f64_max_abs_err": np.array(1e-6), "f64_max_abs_errB": np.array(2e-6)}


def test_noise_floor_is_printed_next_to_our_error(small: Arrays, report: Callable) -> None:
    result = report(small)
    assert result.ok, str(result)
    assert [floor.name for floor in result.floors] == ["out", "outB"]
    assert not {check.name for check in result.checks} & {"f64_max_abs_err", "f64_max_abs_errB"}
    largest = np.abs(small["out"]).max()
    assert f"the reference's own in float32 {1e-6 / largest:.1e}; outB: error" in str(result)
    assert "\n" not in str(result)


@pytest.mark.parametrize(
    "floor", [np.array(1.0), np.array(0.0), np.array(np.nan), np.zeros(3), np.array("text")], ids=str
)
def test_noise_floor_is_never_judged(floor: np.ndarray, small: Arrays, report: Callable) -> None:
    """The last digit of a constant table decides it; correct networks do not reproduce it."""
    assert report(small | {"f64_max_abs_err": floor}).ok


def test_other_arrays_are_judged_beside_a_noise_floor(small: Arrays, report: Callable) -> None:
    assert failed(report(small | {"out": small["out"] * 1.001})) == {"out"}
    novel = {"f64_max_abs_errC": np.zeros(1), "f64_max": np.zeros(1)}
    assert failed(report(small | novel)) == set(novel)
    alone = {name: value for name, value in small.items() if name != "outB"}
    assert failed(report(alone)) == {"f64_max_abs_errB"}, "of an output that the file does not hold"


# ---- the network -----------------------------------------------------------------------------------------------------


def test_outputs_of_u_dit_s_agree_with_the_reference(report: Callable) -> None:
    """The forward pass of a full-size U-DiT-S; the slow test below checks every array."""
    arrays = {k: v for k, v in NETWORK.items() if not k.startswith(("grad", "loss", "cfg4", "no_grad", "train_"))}
    result = report(arrays)
    assert result.ok, str(result)
    assert {"out", "out (fused)", "n_params", "n_keys"} <= {check.name for check in result.checks}
    [floor] = result.floors
    assert floor.reference == pytest.approx(float(NETWORK["f64_max_abs_err"]) / np.abs(NETWORK["out"]).max())
    assert str(result).endswith(f"; out: error {floor.error:.1e}, the reference's own in float32 {floor.reference:.1e}")


@pytest.mark.slow
def test_u_dit_s_agrees_with_every_array_of_the_reference(tmp_path: Path) -> None:
    shutil.copy(DATA / "udit.npz", tmp_path)
    report = check_file(tmp_path / "udit.npz")
    assert report.ok, str(report)
    checked = {check.name.split(" ")[0] for check in report.checks}
    compared = "out train_out cfg4 loss grad_x grad_norms no_grad_params n_params n_keys skipped_keys"
    assert set(compared.split()) <= checked
    assert [floor.name for floor in report.floors] == ["out"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("names", "failing"),
    [
        ("out cfg4 grad_norms grad_x", "out cfg4 grad_norms grad_x"),
        ("loss f64_max_abs_err", "loss"),  # the reference's own rounding is printed, and is not an array to reproduce
        ("train_out", "train_out loss"),  # the stored loss must be the stored output's
    ],
)
def test_network_arrays_a_thousandth_off_fail(names: str, failing: str, report: Callable) -> None:
    altered = report(NETWORK | {name: NETWORK[name] * 1.001 for name in names.split()})
    assert failed(altered) == set(failing.split())


@pytest.mark.slow
def test_network_file_with_another_count_or_array_fails(report: Callable) -> None:
    altered = report(NETWORK | {"n_params": NETWORK["n_params"] + 1, "novel": np.zeros(2), "outC": NETWORK["out"]})
    assert failed(altered) == {"n_params", "novel", "outC"}


def test_references_are_not_of_our_own_making() -> None:
    """They come from the official program, whose factory the file names."""
    facts = json.loads(str(NETWORK["config"][0]))
    assert facts["factory"].startswith("DiT_models['U-DiT-S']")
    assert int(NETWORK["n_params"]) == sum(p.numel() for p in build("U-DiT-S", device="meta").parameters())
    assert NETWORK["out"].dtype == np.float32
    assert torch.from_numpy(NETWORK["out"]).isfinite().all()
