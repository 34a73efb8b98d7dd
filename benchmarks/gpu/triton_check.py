"""A Triton kernel built for sm_90 without a device, and run in Triton's interpreter against a reference.

  PYTHON triton_check.py FILE.py:KERNEL '{"X": "*bf16", "N": "i32", "BLOCK": 1024}' [--warps 4] [--stages 2]
  PYTHON triton_check.py --against FILE.py:FUNCTION

The JSON object names every argument of the kernel: a type of Triton's, or the value of a constexpr. FUNCTION takes
nothing and yields (name, got, wanted, tolerance) of tensors on the CPU; it runs in another process, because Triton
decides for the interpreter when it is imported. Neither needs the stub. From Python: ``check`` and ``against``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PTX = {
    "wgmma": r"\bwgmma\.mma_async",
    "mma.sync": r"\bmma\.sync",
    "cp.async": r"\bcp\.async\.(?:ca|cg)\.shared",
    "cp.async_128": r"\bcp\.async\.cg\.shared",  # .cg copies 16 bytes or nothing
    "cp.async.bulk": r"\bcp\.async\.bulk",
    "loads": r"\bld\.global",
    "loads_128": r"\bld\.global[\w.:]*\.(?:v4\.\w32|v2\.\w64)\b",
    "stores": r"\bst\.global",
    "stores_128": r"\bst\.global[\w.:]*\.(?:v4\.\w32|v2\.\w64)\b",
}
"""Instructions that are counted in a kernel's PTX; where it is written, not how often it runs."""


def member(where: str) -> Any:
    """The object of FILE.py:NAME."""
    file, _, name = where.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        sys.exit(f"triton_check.py: no file {file!r}; say FILE.py:NAME")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if not hasattr(module, name):
        sys.exit(f"triton_check.py: {path.name} has no {name!r}")
    return getattr(module, name)


def resources(ptx: str) -> dict[str, int]:
    """What ptxas says of a kernel's registers and spills on sm_90, and how often its PTX names what counts."""
    import triton.backends.nvidia as nvidia

    ptxas = Path(nvidia.__file__).parent / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [str(ptxas), "-v", "--gpu-name", "sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"triton_check.py: ptxas fails: {done.stderr.strip()[:500]}")
    numbers = {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    found = {key: re.search(pattern, done.stderr) for key, pattern in numbers.items()}
    if not all(found.values()):
        sys.exit(f"triton_check.py: ptxas -v no longer tells registers and spills: {done.stderr.strip()[:500]}")
    told = {key: int(match[1]) for key, match in found.items() if match}
    return told | {key: len(re.findall(pattern, ptx)) for key, pattern in PTX.items()}


def check(
    kernel: Any, arguments: dict[str, Any], warps: int = 4, stages: int = 2, aligned: bool = True
) -> dict[str, Any]:
    """Builds a kernel for sm_90.

    Args:
        kernel: what ``triton.jit`` made.
        arguments: of every argument its type (``"*bf16"``, ``"i32"``) or, of a constexpr, its value.
        warps: of a program.
        stages: of loops that are pipelined.
        aligned: pointers and integers are multiples of 16, as Triton finds them when it is launched on common shapes.
            Without this it must not load 128 bits at once.

    Returns:
        Registers, spilled bytes, shared memory in bytes, and counts of instructions.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if set(arguments) != set(kernel.arg_names):
        missing, more = set(kernel.arg_names) - set(arguments), set(arguments) - set(kernel.arg_names)
        sys.exit(f"triton_check.py: arguments missing {sorted(missing)}, unknown {sorted(more)}")
    constants = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    signature = {name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names}
    multiples = [
        i for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or signature[name] in ("i32", "i64")
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in multiples} if aligned else {},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    return {"shared_bytes": built.metadata.shared, **resources(built.asm["ptx"])}


def against(where: str) -> list[dict[str, Any]]:
    """Runs FILE.py:FUNCTION under Triton's interpreter in another process; the relative error of each of its cases."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--cases", where]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"triton_check.py: {where} fails in the interpreter:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def cases(where: str) -> None:
    """The other process: one line a case."""
    for name, got, wanted, tolerance in member(where)():
        error = float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())
        print(json.dumps({"case": name, "error": error, "tolerance": tolerance, "ok": error <= tolerance}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", nargs="?", metavar="FILE.py:KERNEL")
    parser.add_argument("arguments", nargs="?", type=json.loads, metavar="JSON")
    parser.add_argument("--warps", type=int, default=4)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--unaligned", action="store_true", help="pointers and integers are any")
    parser.add_argument("--against", metavar="FILE.py:FUNCTION")
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cases:
        cases(args.cases)
        return
    if (not args.kernel and not args.against) or bool(args.kernel) != (args.arguments is not None):
        parser.error("name a kernel with its arguments, or --against, or both")
    result: dict[str, Any] = {}
    if args.kernel:
        built = check(member(args.kernel), args.arguments, args.warps, args.stages, not args.unaligned)
        result = {"kernel": Path(args.kernel).name, "warps": args.warps, "stages": args.stages, "sm_90": built}
    if args.against:
        result["against"] = against(args.against)
    print(json.dumps(result, indent=1))
    if not all(case["ok"] for case in result.get("against", ())):
        sys.exit(1)


if __name__ == "__main__":
    main()
