"""Builds every Triton kernel for sm_90 without a GPU: registers, spilled bytes and shared memory.

    PYTHONPATH=src python benchmarks/kernels.py                  # writes docs/performance/kernels.json: minutes
    PYTHONPATH=src python benchmarks/kernels.py grid_attention --dtype bfloat16 --no-write

Forms are what the operators launch for maps of U-DiTs and for odd widths, in every element type; a row has the largest
numbers of the forms that differ only in whether sizes are multiples of 16, or 1. Triton and its ptxas need no GPU for
this, and no time is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from udit.nn.tokens import rotary_table
from udit.ops import nvidia
from udit.ops.attention import gpu as grid
from udit.ops.depthwise_convolution import gpu as depthwise
from udit.ops.gating import gpu as gate
from udit.ops.modulation import gpu as norm

WRITTEN = Path(__file__).resolve().parents[1] / "docs" / "performance" / "kernels.json"
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
LEVELS = ((32, 96, 4), (16, 192, 4), (8, 384, 4), (32, 192, 4))
"""Side, width and heads of maps by level, decoder level 1 last; B and L have the same heads' widths."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as the operators asked for it."""

    kernel: Any
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    warps: int
    stages: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the operator's folder and the kernel."""
        return f"{self.kernel.fn.__module__.split('.')[-2]}.{self.kernel.fn.__name__}"

    def form(self) -> str:
        """What one build serves."""
        return str((self.name, self.warps, self.stages, self.constants, [_kind(x) for x in self.arguments]))


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it launches are written down and nothing runs."""
    found: list[Launch] = []

    def write_down(kernel: Any, programs: int, *arguments: Any, warps: int, stages: int = 1, **constants: Any) -> None:
        found.append(Launch(kernel, arguments[0].dtype, arguments, warps, stages, constants))

    with mock.patch.object(nvidia, "launch", write_down):
        yield found


def _kind(argument: Any) -> tuple[str, bool]:
    """Type of an argument as Triton's launcher finds it, and whether it is a multiple of 16."""
    if isinstance(argument, Tensor):
        return TYPES[argument.dtype], True
    if argument is None or (isinstance(argument, int) and argument == 1):
        return f"={argument}", False
    return ("fp32", False) if isinstance(argument, float) else ("i32", argument % 16 == 0)


def build(launch: Launch) -> dict[str, int]:
    """Registers a thread, spilled bytes, and bytes of shared memory on sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    kinds = {name: _kind(values[name]) for name in names if name not in launch.constants}
    fixed = dict(launch.constants) | {name: values[name] for name, kind in kinds.items() if kind[0][0] == "="}
    source = ASTSource(
        fn=launch.kernel,
        signature={name: "constexpr" if name in fixed else kinds[name][0] for name in names},
        constexprs=fixed,
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in kinds and kinds[name][1]},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return {**assembled(built.asm["ptx"]), "shared_bytes": built.metadata.shared}


def assembled(ptx: str) -> dict[str, int]:
    """What ptxas says of registers and spills."""
    import triton.backends.nvidia as nvidia_backend

    ptxas = Path(nvidia_backend.__file__).parent / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [str(ptxas), "-v", "--gpu-name", "sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    used, stores = re.search(r"Used (\d+) registers", told), re.search(r"(\d+) bytes spill stores", told)
    if not used or not stores:
        raise SystemExit(f"ptxas no longer tells registers and spills: {told.strip()[:300]}")
    return {"registers": int(used[1]), "spilled_bytes": int(stores[1])}


# ---- what operators launch -------------------------------------------------------------------------------------------


def attention_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Forward and backward of the maps above, and of heads with odd widths."""
    for side, width, heads, factor, cosine in (
        *((side, width, heads, 2, True) for side, width, heads in LEVELS),
        *((16, channels, 1, 2, True) for channels in ((20, 128) if dtype == torch.float32 else (20, 128, 256))),
        (32, 65, 1, 1, False),
    ):
        channels, tokens = width // heads, (side // factor) ** 2
        qkv = torch.empty(2, side, side, 3 * width, dtype=dtype)
        scale = torch.empty(heads) if cosine else None
        rope = rotary_table(side // factor, side // factor, channels) if channels % 4 == 0 else None
        out = torch.empty(2, side, side, width, dtype=dtype)
        logs = torch.empty(2 * factor**2, heads, tokens)

        def run(
            qkv: Tensor = qkv, given: Any = (scale, rope), more: Any = (out, logs), a: Any = (heads, factor)
        ) -> None:
            grid.grid_attention(qkv, *given, *a)
            grid.grid_attention_backward(more[0], qkv, *given, *more, *a)

        yield run


def depthwise_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Filters with and without GELU, their gradients, and other sides and widths."""
    for size, channels, side in ((32, 192, 5), (16, 96, 3), (16, 96, 7), (9, 33, 5)):
        x = torch.empty(256, size, size, channels, dtype=dtype)
        kernel, bias = torch.empty(channels, 1, side, side), torch.empty(channels)

        def run(x: Tensor = x, kernel: Tensor = kernel, bias: Tensor = bias, side: int = side) -> None:
            for gelu in (False, True):
                depthwise.depthwise(x, kernel, bias, gelu)
                depthwise.depthwise_input(x, kernel, x if gelu else None)
                depthwise.depthwise_weights(x, x, side, gelu)

        yield run


def norm_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Rows of all widths; factors are of the map's type."""
    for size, channels in ((32, 96), (16, 384), (2, 4096), (9, 33)):
        x, factor = torch.empty(256, size, size, channels, dtype=dtype), torch.empty(256, 1, 1, channels, dtype=dtype)
        moments = torch.empty(256, size, size, 2)

        def run(x: Tensor = x, factor: Tensor = factor, moments: Tensor = moments) -> None:
            norm.modulated_norm(x, factor, factor)
            norm.modulated_norm_backward(x, x, factor, moments)
            norm.modulated_norm_backward(x[:8], x[:8], factor[:8], moments[:8])

        yield run


def gate_calls(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Maps of all widths, and one that is added to a map of float32."""
    for size, channels in ((32, 96), (9, 33)):
        x, factor = torch.empty(256, size, size, channels, dtype=dtype), torch.empty(256, 1, 1, channels, dtype=dtype)

        def run(x: Tensor = x, factor: Tensor = factor) -> None:
            gate.gated_sum(x, factor, x)
            gate.gated_sum_backward(x, factor, x)
            gate.gated_sum(x.float(), factor, x)
            gate.gated_sum_backward(x[:8].float(), factor[:8], x[:8])

        yield run


CALLS = {
    "grid_attention": attention_calls,
    "depthwise": depthwise_calls,
    "modulated_norm": norm_calls,
    "gated_sum": gate_calls,
}


def forms(names: list[str], dtypes: list[torch.dtype]) -> Iterator[Launch]:
    """Every form of every kernel once."""
    seen = set()
    for name in names:
        for dtype in dtypes:
            with recorded() as launches, torch.device("meta"):
                for call in CALLS[name](dtype):
                    call()
            for launch in launches:
                if launch.form() not in seen:
                    seen.add(launch.form())
                    yield launch


def described(launch: Launch) -> dict[str, Any]:
    """What a row of the table says before it is built."""
    numbers = {key: value for key, value in launch.constants.items() if not isinstance(value, str)}
    dtype = str(launch.dtype).removeprefix("torch.")
    return {"kernel": launch.name, "dtype": dtype, **numbers, "warps": launch.warps, "stages": launch.stages}


def main() -> int:
    """Writes the table; 1 if a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(CALLS)}; all by default")
    parser.add_argument("--dtype", action="append", choices=[str(d).split(".")[1] for d in TYPES])
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    dtypes = [getattr(torch, name) for name in args.dtype] if args.dtype else list(TYPES)
    table: dict[str, dict[str, Any]] = {}
    for launch in forms(args.operators or list(CALLS), dtypes):
        built = build(launch)
        print(json.dumps(described(launch) | built), flush=True)
        row = table.setdefault(str(described(launch)), described(launch))
        row |= {key: max(row.get(key, 0), value) for key, value in built.items()}
    rows = list(table.values())
    spilled = sum(row["spilled_bytes"] > 0 for row in rows)
    if not args.no_write:
        import triton

        lines = ",\n  ".join(json.dumps(row) for row in rows)
        head = json.dumps({"target": "sm_90", "triton": triton.__version__, "timed": False})
        WRITTEN.parent.mkdir(exist_ok=True)
        WRITTEN.write_text(f'{head[:-1]}, "kernels": [\n  {lines}\n]}}\n')
    if spilled:
        print(f"{spilled} kernels spill registers", file=sys.stderr)
    return int(spilled > 0)


if __name__ == "__main__":
    sys.exit(main())
