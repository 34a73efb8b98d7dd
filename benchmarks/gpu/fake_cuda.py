"""What the commands here share: networks of the library on a CUDA device that is not there, and counters.

The library is reached through few names (`wanted`); one that has moved is told in a line.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import importlib
import importlib.util
import json
import platform
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_kernels
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent


def fail(message: str) -> Any:
    """Ends the command with one line."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def wanted(module: str, name: str) -> Any:
    """A name of the library, or a line that says it has moved."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        fail(f"the library has no {module}.{name} ({error}); it has moved, or another library is on the path")


def library() -> Path:
    """The folder of the library that is imported."""
    return Path(wanted("udit", "__file__")).resolve().parent


def field(config: Any, name: str) -> Any:
    """What a config says, or a line that says it no longer does."""
    if not hasattr(config, name):
        fail(f"the library's {type(config).__name__} has no {name}; it has moved")
    return getattr(config, name)


def arguments(about: str, batch: int = 256) -> argparse.ArgumentParser:
    """A parser with what all commands on a model take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name of the catalogue, e.g. U-DiT-S")
    parser.add_argument("--batch", type=int, default=batch, metavar="N", help=f"samples ({batch})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="changes a field of the config"
    )
    return parser


def takes_literal(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names a network for ``literal_class``."""
    parser.add_argument(
        "--literal",
        nargs="?",
        const="benchmarks/literal.py:LiteralUDiT",
        metavar="FILE.py:CLASS",
        help="a network of this class, built from the model's config, in its place",
    )


def config_of(args: argparse.Namespace) -> Any:
    """The config of ``args.model`` with the fields of ``--set``."""
    row = wanted("udit.models.catalog", "find")
    fields = {}
    for word in args.set:
        name, _, value = word.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        fields[name] = value
    try:
        config = row(args.model).config
        return config.replace(**fields) if fields else config
    except ValueError as error:
        fail(str(error))


def literal_class(where: str) -> type[nn.Module]:
    """The network of FILE:CLASS, built from a config; FILE is looked for here and in the checkout of the library."""
    file, _, name = where.rpartition(":")
    places = [Path(file), *(parent / file for parent in library().parents[:2])]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        fail(f"no file {file} here or in the library's checkout; say --literal FILE.py:Class")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return getattr(module, name, None) or fail(f"{path.name} has no class {name}")


@contextlib.contextmanager
def no_gpu() -> Iterator[None]:
    """Context of tensors without contents, made on the CUDA device that is not there."""
    if "stub" not in (torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""):
        fail(f"this process does not run under the stub; start it by {HERE / 'run'} PYTHON {' '.join(sys.argv)}")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        yield


def autocast(on: bool) -> None:
    """bf16 autocast as training has it, set without a context: backward runs outside, as it does in a program."""
    torch.set_autocast_enabled("cuda", on)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_cache_enabled(True)
    if not on:
        torch.clear_autocast_cache()


def inputs(config: Any, batch: int) -> tuple[Tensor, ...]:
    """x, t and, of a conditional network, y, on the current default device."""
    x = torch.empty(batch, field(config, "in_channels"), *field(config, "size"))
    t = torch.zeros(batch, dtype=torch.long if field(config, "time") == "index" else torch.float32)
    shape = field(config, "condition_shape")
    if shape is None:
        return x, t
    return x, t, torch.zeros(batch, *shape, dtype=torch.float32 if shape else torch.long)


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks by name: what the library compiles, the members of every list called ``blocks``.

    Of a network of another's, without a list of that name, the members of its outermost lists.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {name: lists[name] for name in lists if f".{name}".endswith(".blocks")} or lists
    found: dict[str, nn.Module] = {}
    for name, members in lists.items():
        if not any(name.startswith(f"{outer}.") for outer in found):  # a block's own are part of it
            found |= {f"{name}.{i}": block for i, block in enumerate(members)}
    return found or fail(f"{type(model).__name__} has no list of blocks")


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# Operators that launch nothing: memory without contents, questions, and views by another name.
NOTHING = ("_fused_sdp_choice", "_unsafe_view", "empty", "new_empty", "detach", "alias", "lift_fresh", "sym_", "is_")


def launches(func: Any) -> str | None:
    """The name of an operator that launches a kernel, at least one; None of one that launches nothing."""
    name = str(func).removeprefix("aten.")
    return None if func.is_view or name.startswith((*NOTHING, "prim.", "view", "expand", "t.")) else name


class Tally(TorchDispatchMode):
    """Counts operators on the device, the bytes they must read and write, and the bytes of what lives.

    An operator's bytes are those of its distinct tensors, in and out, each once and never more than its storage: what
    it moves if it reads all and caches nothing. What lives is what came into being under the mode and has not gone:
    after a forward pass, the activations kept for backward (and the output).
    """

    def __init__(self, there: Any = ()) -> None:
        """``there``: tensors that were there before, whose views are nothing new."""
        super().__init__()
        self.count: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.elsewhere = 0  # operators on the host alone, or on no tensor
        self.living = self.most = 0
        self._known = {t.untyped_storage()._cdata for t in tree_leaves(there) if isinstance(t, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        outs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        for tensor in outs:
            self._see(tensor.untyped_storage())
        name = launches(func)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)] + outs
        if name is not None and not any(t.is_cuda for t in tensors):
            self.elsewhere += 1
        elif name is not None and (ours := own_kernels.implementation(func)) is not None:
            self._see_into(name, ours, args, kwargs or {})
        elif name is not None:
            self.count[name] += 1
            moved: dict[Any, int] = {}
            for tensor in tensors:
                storage = tensor.untyped_storage()
                size = min(bytes_of(tensor), storage.nbytes() or bytes_of(tensor))
                moved.setdefault((storage._cdata, tensor.storage_offset()), size)
            self.bytes[name] += sum(moved.values())
        return made

    def _see_into(self, name: str, ours: Any, args: Any, kwargs: Any) -> None:
        """Counts an operator of ours as all that it launches."""
        with own_kernels.noted() as kernels, Tally() as beside:
            ours(*args, **kwargs)
        for kernel, moved in kernels:
            self.count[f"{name}: {kernel}"] += 1
            self.bytes[f"{name}: {kernel}"] += moved
        self.count += beside.count
        self.bytes += beside.bytes

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.living += size
            self.most = max(self.most, self.living)
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.living -= size

    def take(self) -> dict[str, Any]:
        """What was counted since the last call, as numbers for JSON: operators, GB, and both by name, largest first."""
        rows = {name: {"operators": self.count[name], "GB": gb(moved)} for name, moved in self.bytes.most_common()}
        told = {
            "operators": self.count.total(),
            "GB": gb(self.bytes.total()),
            "off_device": self.elsewhere,
            "by_operator": rows,
        }
        self.count.clear(), self.bytes.clear()
        self.elsewhere = 0
        return told


def say(line: str) -> None:
    """A word on the way; JSON alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def gb(count: float) -> float:
    """Bytes as 10**9 bytes, to six digits."""
    return float(f"{count / 1e9:.6g}")


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    import triton

    say(f"library: {library()}")
    return {
        "udit": wanted("udit", "__version__"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(0),
    }


def tell(result: dict[str, Any]) -> None:
    """The result as JSON on stdout."""
    json.dump(result, sys.stdout, indent=1)
    print(flush=True)
