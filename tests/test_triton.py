"""Triton kernels without a GPU: what they compute in Triton's interpreter, when they are chosen, what is built of them.

Products of bfloat16 are wrong in the interpreter, so what is computed is of float32 and float16.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udit import ops
from udit.ops import nvidia
from udit.ops.operator import OPERATORS, Added, Saved

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "benchmarks" / "kernels.py"
NAMES = ["depthwise", "gated_sum", "grid_attention", "modulated_norm"]
WORST = 1.5
"""How much larger than the composition's error a kernel's may be, in root mean square over all examples of a result."""
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


# ---- what they compute -----------------------------------------------------------------------------------------------


def interpreted(*arguments: str) -> str:
    """What another process prints, in which Triton's interpreter runs kernels."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def assert_as_exact(output: str, worst: float) -> None:
    """Against float64: no worse than the composition in torch, and within rounding of the element type."""
    results: dict[Any, list[Any]] = defaultdict(list)
    for row in map(json.loads, output.splitlines()):
        results[row["operator"], row["dtype"], row["result"]].append(row)
    assert sorted({operator for operator, _, _ in results}) == NAMES
    for key, rows in results.items():
        count = sum(row["count"] for row in rows)
        squares = [
            sum(row["count"] * (row[who] / row["size"]) ** 2 for row in rows) for who in ("kernel", "composition")
        ]
        mine, theirs = ((square / count) ** 0.5 for square in squares)
        rounding = torch.finfo(getattr(torch, key[1])).eps
        assert mine <= max(worst * theirs, rounding / 4), (key, mine, theirs)
        if key[2] < 2:  # output, and gradient of the map; a weight's is a sum that cancels, in the composition as well
            assert mine <= 32 * rounding, (key, mine)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernels_are_as_exact_as_the_composition_at_all_shapes() -> None:
    assert_as_exact(interpreted("tests/interpreted.py"), WORST)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kernels_keep_the_contract_of_operators() -> None:
    """Derivatives of both orders and kinds, vmap, graphs, exports, foreign tensors: the tests of operators on them."""
    words = " or ".join(f"{name}-cpu" for name in NAMES)
    options = ["-o", "addopts=", "-m", "not slow", "--timeout", "600"]  # without -q, which hides the count
    told = interpreted("-m", "pytest", "-p", "interpreted", "tests/test_operators.py", "-k", words, *options)
    counts = told.strip().splitlines()[-1]
    assert " passed" in counts
    assert "skipped" not in counts


# ---- when they are chosen --------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the process believe that it has an NVIDIA GPU and Triton, or not quite."""

    def claim(
        capability: tuple[int, int] = (9, 0), hip: str | None = None, triton: bool = True, backend: str = "cuda"
    ) -> None:
        class Target:
            active = property(lambda self: self)

            def get_current_target(self) -> Any:
                if backend == "none":
                    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")
                return type("Target", (), {"backend": backend})

        runtime = type(sys)("triton.runtime")
        runtime.driver = Target()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=0: capability if i else (9, 0))
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: (triton or None) if name == "triton" else found(name, *more),
        )

    monkeypatch.setattr(nvidia, "available", nvidia.available.__wrapped__)  # asked once per process
    for name in NAMES:
        monkeypatch.setattr(OPERATORS[name], "_found", {})
        monkeypatch.setattr(OPERATORS[name], "_ready", {})
    return claim


def test_nvidia_gpus_take_them_where_triton_can_build(machine: Callable[..., None]) -> None:
    machine()
    assert nvidia.available()
    assert ops.describe("cuda") == ", ".join(NAMES)
    machine(capability=(7, 5))
    assert not nvidia.available()


@pytest.mark.parametrize("lack", [{"hip": "6.4"}, {"triton": False}, {"backend": "hip"}])
def test_others_take_the_reference(lack: dict[str, Any], machine: Callable[..., None]) -> None:
    machine(**lack)
    assert not nvidia.available()
    assert ops.describe("cuda") == "torch's own"


def test_a_triton_that_cannot_build_is_told_in_a_line(
    machine: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    machine(backend="none")
    assert not nvidia.available()
    assert caplog.messages == [
        "Triton cannot build kernels here, torch's own, slower operators run: "
        "Failed to find C compiler. Please specify via CC"
    ]


def calls(name: str) -> tuple[Any, ...]:
    """Arguments of an operator on the current device, in bfloat16."""
    x, factor = torch.empty(2, 8, 8, 48).bfloat16(), torch.empty(2, 1, 1, 48).bfloat16()
    return {
        "depthwise": (x, torch.empty(48, 1, 5, 5), torch.empty(48), True),
        "gated_sum": (x, factor, x),
        "grid_attention": (x, torch.empty(2), torch.empty(2, 16, 8), 2, 2),
        "modulated_norm": (x, factor, factor),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_switch_and_what_is_accepted_decide(name: str, machine: Callable[..., None]) -> None:
    machine()
    operator = OPERATORS[name]
    with FakeTensorMode(), torch.device("cuda"):
        given = calls(name)
        assert operator.chosen(given) == operator.run_kernel
        with ops.kernels("cpu"):
            assert operator.chosen(given) == operator.reference
        precise = tuple(x.double() if isinstance(x, Tensor) else x for x in given)
        assert operator.chosen(precise) == operator.reference


def test_what_exceeds_a_program_takes_the_reference(machine: Callable[..., None]) -> None:
    machine()
    with FakeTensorMode(), torch.device("cuda"):
        for dtype, widest in ((torch.float32, 128), (torch.bfloat16, 256)):
            for channels, kernel in ((widest, True), (widest + 4, False)):
                attention = OPERATORS["grid_attention"]
                chosen = attention.chosen((torch.empty(1, 2, 2, 3 * channels, dtype=dtype), None, None, 1, 1))
                assert (chosen == attention.run_kernel) == kernel
        x = torch.empty(1, 2, 2, 4100)
        factor = torch.empty(1, 1, 1, 4100)
        norm, filters = OPERATORS["modulated_norm"], OPERATORS["depthwise"]
        assert norm.chosen((x, factor, factor)) == norm.reference
        assert filters.chosen((x, torch.empty(4100, 1, 9, 9), None, False)) == filters.reference


# ---- what they are built to ------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that benchmarks/kernels.py defines."""
    module = importlib.util.spec_from_file_location("kernels", KERNELS)
    assert module is not None and module.loader is not None
    found = importlib.util.module_from_spec(module)
    monkeypatch.setitem(sys.modules, "kernels", found)
    module.loader.exec_module(found)
    return vars(found)


def forms(results: Any) -> list[Any]:
    return [(x.shape, x.stride(), x.dtype, x.device) for x in tree_leaves(results)]


class Compared(TorchDispatchMode):
    """Runs the CUDA function of every operator of ours beside its fake."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = importlib.import_module(module)
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.namespace == "udit":
            name = func._schema.name.partition("::")[2]
            assert forms(made) == forms(getattr(self.module, name)(*args)), name
            self.seen.append(name)
        return made


@needs_triton
@pytest.mark.parametrize("name", NAMES)
def test_results_are_as_their_fakes_say(name: str, table: dict[str, Any]) -> None:
    """Shapes, strides and element types that a compiler of graphs counts on, forward and backward."""
    operator = OPERATORS[name]
    with torch.device("meta"), torch.no_grad(), table["recorded"]() as launches:
        given = calls(name)
        with Compared(operator.modules["cuda"]) as compared:
            made = operator.operator(*given)
            results = made if isinstance(made, tuple) else (made,)
            inputs = tuple(
                Added(x.shape, x.dtype, x.device) if added else x
                for x, added in zip(given, operator._added, strict=True)
            )
            extras = results[0 if operator._output_needed else 1 :]
            operator._gradient(torch.empty_like(results[0]), Saved(inputs, extras, [True] * len(given)))
    assert compared.seen[0] == name
    assert len(compared.seen) > 1
    assert len(launches) >= len(compared.seen)


@needs_triton
def test_the_committed_table_has_every_form_and_no_spill(table: dict[str, Any]) -> None:
    rows = json.loads(table["WRITTEN"].read_text())["kernels"]
    assert [row["kernel"] for row in rows if row["spilled_bytes"]] == []
    launches = table["forms"](list(table["CALLS"]), list(table["TYPES"]))
    wanted = {str(form): form for form in map(table["described"], launches)}.values()
    assert [{key: row[key] for key in form} for form, row in zip(wanted, rows, strict=True)] == list(wanted)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_kernel_spills_registers() -> None:
    done = subprocess.run([sys.executable, str(KERNELS), "--no-write"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
