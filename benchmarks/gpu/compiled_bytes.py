"""What torch.compile makes of a network's blocks for sm_90: kernels, bytes, graph breaks, and the sum over the network.

  run PYTHON compiled_bytes.py U-DiT-S --batch 256
  run PYTHON compiled_bytes.py U-DiT-S --only 0 --code DIR      the first shape of block alone; Inductor's code to DIR
  run PYTHON compiled_bytes.py U-DiT-S --only 0 --sm90          every Triton kernel built as well: registers, spills
  run PYTHON compiled_bytes.py U-DiT-S --literal                benchmarks/literal.py of the library's checkout

JSON on stdout. Blocks are compiled as the library compiles them (each whole, shapes fixed), one of each shape, with the
inputs they get within the network. The sum takes all blocks compiled and what lies between them eager.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_cuda as fc
import own_kernels
import torch
import triton
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton_check import resources

LAUNCH = re.compile(r"^\s+(\w+)\.run\(", re.M)
EXTERN = re.compile(r"\b(extern_kernels\.\w+|torch\.ops\.\w+\.\w+\.\w+)\(")


class Reached(Exception):
    """Inductor's code is finished and was called; there is no device to run it on."""


def reached(*args: Any, **kwargs: Any) -> Any:
    raise Reached


class Inductor:
    """Context in which what Inductor generates is collected and not run."""

    def __init__(self, build: bool) -> None:
        """``build``: Triton kernels are built too."""
        self.build = build
        self.modules: list[dict[str, Any]] = []
        self.codes: list[str] = []
        self.ptx: list[tuple[str, str]] = []

    def __enter__(self) -> Inductor:
        import torch._functorch.config as functorch
        import torch._inductor.config as inductor
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.graph import GraphLowering
        from torch._inductor.output_code import CompiledFxGraph

        for holder, name in (
            (GraphLowering, "save_output_code"),
            (CompiledFxGraph, "__call__"),
            (AsyncCompile, "triton"),
        ):
            if name not in holder.__dict__:
                fc.fail(f"torch {torch.__version__} has no {holder.__name__}.{name}; this was written for 2.14")
        self._stack = contextlib.ExitStack()
        # Backward is made along with forward, for nothing will run backward. Constants are not folded: folding computes
        # with contents, which fake tensors have not. Products are not padded, for that is decided by timing them. No
        # cache: a hit would not pass by here.
        self._stack.enter_context(functorch.patch(force_non_lazy_backward_lowering=True))
        self._stack.enter_context(
            inductor.patch(joint_graph_constant_folding=False, shape_padding=False, force_disable_caches=True)
        )
        self._stack.enter_context(_replaced(GraphLowering, "save_output_code", staticmethod(self._collect)))
        self._stack.enter_context(_replaced(CompiledFxGraph, "__call__", reached))
        if self.build:
            self._stack.enter_context(_replaced(triton, "compile", self._built(triton.compile)))
        else:
            # A kernel takes a second to build.
            self._stack.enter_context(_replaced(AsyncCompile, "triton", lambda *args, **kwargs: None))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _built(self, build: Any) -> Any:
        def keep(*args: Any, **kwargs: Any) -> Any:
            made = build(*args, **kwargs)
            self.ptx.append((made.metadata.name, made.asm["ptx"]))
            return made

        return keep

    def _collect(self, code: str) -> None:
        from torch._inductor.scheduler import ExternKernelSchedulerNode
        from torch._inductor.virtualized import V

        moved = {"triton": 0, "extern": 0}
        inside: collections.Counter[str] = collections.Counter()
        for node in V.graph.scheduler.nodes:
            kind = "extern" if isinstance(node, ExternKernelSchedulerNode) else "triton"
            own = _within(node.node) if kind == "extern" else None
            if own is None:
                moved[kind] += node.get_read_write_buffers_sizes()
            else:
                moved[kind] += own.bytes.total()
                inside += own.count
        kept = {name for name in V.graph.get_output_names() if name not in V.graph.graph_inputs}
        called = collections.Counter(EXTERN.findall(code))
        extern = inside + collections.Counter({k: n for k, n in called.items() if not k.startswith("torch.ops.udit.")})
        triton = len(LAUNCH.findall(code))
        self.codes.append(code)
        self.modules.append(
            {
                "backward": bool(V.graph.is_backward),
                "launches": triton + extern.total(),
                "triton": {"launches": triton, "kernels": len(set(LAUNCH.findall(code))), "GB": fc.gb(moved["triton"])},
                "extern": {"launches": extern.total(), "GB": fc.gb(moved["extern"]), "by_name": dict(extern)},
                "GB": fc.gb(sum(moved.values())),
                # Of forward: its output, and what it keeps for backward besides its inputs.
                "outputs_GB": fc.gb(sum(_size(V.graph, name) for name in kept)),
            }
        )


def _within(node: Any) -> fc.Tally | None:
    """What an operator of ours launches, in a graph of Inductor's; None of all else."""
    func = getattr(node, "op_overload", None)
    ours = None if func is None else own_kernels.implementation(func)
    if ours is None:
        return None
    call = next(origin for origin in node.origins if origin.target is func)
    args, kwargs = tree_map_only(torch.fx.Node, lambda given: given.meta["val"], (call.args, call.kwargs))
    tally = fc.Tally()
    with detect_fake_mode(tree_leaves((args, kwargs))):
        tally._see_into(str(func), ours, args, kwargs)
    return tally


def _size(graph: Any, name: str) -> int:
    """Bytes of a buffer."""
    return int(graph.get_numel(name)) * graph.get_dtype(name).itemsize if name in graph.name_to_buffer else 0


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Any:
    before = holder.__dict__[name]
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def shapes_of(
    model: nn.Module, given: tuple[Tensor, ...], contiguous: bool
) -> dict[Any, list[tuple[str, nn.Module, Any, Any]]]:
    """Runs the network and sorts its blocks by what one compilation serves: code, weights and inputs of one form.

    ``contiguous``: as if each block's first tensor, the map, were contiguous.
    """
    found: dict[Any, list[tuple[str, nn.Module, Any, Any]]] = {}

    def form(tree: Any) -> tuple[Any, ...]:
        return tuple(
            (tuple(x.shape), x.stride(), x.dtype, x.requires_grad) if isinstance(x, Tensor) else repr(x)
            for x in tree_leaves(tree)
        )

    def hook(name: str) -> Any:
        def see(block: nn.Module, args: Any, kwargs: Any) -> None:
            if contiguous and isinstance(args[0], Tensor):
                args = (args[0].contiguous(), *args[1:])
            weights = tuple((tuple(p.shape), p.dtype) for p in block.parameters())
            # Leaves of their own, so that backward ends at the block.
            own = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), (args, kwargs))
            found.setdefault((type(block), weights, form((args, kwargs))), []).append((name, block, *own))

        return see

    hooks = [b.register_forward_pre_hook(hook(n), with_kwargs=True) for n, b in fc.blocks_of(model).items()]
    model(*given)
    for handle in hooks:
        handle.remove()
    return found


def eager(module: nn.Module, args: Any, kwargs: Any, leaves: list[Tensor], there: Any) -> dict[str, Any]:
    """Operators and GB of a module's call and of its backward to ``leaves``."""
    with fc.Tally(there) as tally:
        fc.autocast(True)
        out = module(*args, **kwargs)
        fc.autocast(False)
        kept = tally.living
        forward = tally.take()
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.grad(outs, leaves, [torch.empty_like(t) for t in outs], allow_unused=True)
        backward = tally.take()
    for part in (forward, backward):
        del part["by_operator"]
    return {"forward": forward, "backward": backward, "kept_GB": fc.gb(kept)}


def built(ptx: list[tuple[str, str]]) -> dict[str, Any]:
    """Of all kernels, each in the forms among which Inductor would choose by timing: registers, and who spills."""
    told = [(name, resources(text)) for name, text in ptx]
    return {
        "kernels": len({name for name, _ in told}),
        "forms": len(told),
        "most_registers": max((row["registers"] for _, row in told), default=0),
        "spill_stores": {name: row["spill_stores"] for name, row in told if row["spill_stores"]},
    }


def compiled(block: nn.Module, args: Any, kwargs: Any, build: bool) -> tuple[dict[str, Any], Inductor | None]:
    """What Inductor makes of a block, and its code; only the breaks where there are any."""
    fc.autocast(True)
    torch._dynamo.reset()
    traced = torch._dynamo.explain(block)(*args, **kwargs)
    told: dict[str, Any] = {"graph_breaks": [str(reason.reason)[:200] for reason in traced.break_reasons]}
    if traced.graph_break_count:
        fc.autocast(False)
        return told, None
    torch._dynamo.reset()
    stopped: BaseException | None = None
    with Inductor(build) as inductor:
        try:
            ours = type(block).__module__.startswith("udit.")
            options = fc.wanted("udit.models.build", "compile_options")(block) if ours else None
            torch.compile(block, fullgraph=True, dynamic=False, options=options)(*args, **kwargs)
        except Reached:
            pass
        except Exception as error:  # noqa: BLE001 - told below, if it came too early
            stopped = error
    fc.autocast(False)
    if [module["backward"] for module in sorted(inductor.modules, key=lambda m: m["backward"])] != [False, True]:
        fc.fail(f"Inductor made {len(inductor.modules)} modules and not a forward and a backward: {str(stopped)[:600]}")
    for module in inductor.modules:
        told["backward" if module.pop("backward") else "forward"] = module
    del told["backward"]["outputs_GB"]
    return told, inductor


def network(
    config: Any,
    batch: int,
    kind: type[nn.Module] | None = None,
    *,
    only: Sequence[int] = (),
    contiguous: bool = False,
    build: bool = False,
    code: Path | None = None,
    selective: bool = False,
) -> dict[str, Any]:
    """Counts of every shape of block, eager and compiled, and their sum over the network.

    Args:
        config: of the model.
        batch: samples.
        kind: a network that is built from the config, in the model's place.
        only: these shapes alone, by number; then there is no sum.
        contiguous: as if each block's map came contiguous.
        build: builds each Triton kernel for sm_90.
        code: folder for Inductor's code.
        selective: backward recomputes what costs little (``training.checkpoint_activations=selective``).
    """
    result: dict[str, Any] = {"blocks": []}
    with fc.no_gpu():
        model = (config.build() if kind is None else kind(config)).train()
        given = fc.inputs(config, batch)
        parameters = list(model.parameters())
        fc.autocast(True)
        shapes = shapes_of(model, given, contiguous)
        fc.autocast(False)
        whole = {}
        if not only:
            whole = eager(model, given, {}, parameters, [parameters, list(model.buffers()), given])
        for index, members in enumerate(shapes.values()):
            if not only or index in only:
                result["blocks"].append(_block(index, members, build, code, selective))
    broken = [row["index"] for row in result["blocks"] if row["compiled"]["graph_breaks"]]
    if whole:
        result["network"] = {"eager": whole}
        result["network"] |= {"compiled": f"blocks {broken} break"} if broken else summed(result["blocks"], whole)
    return result


def _block(
    index: int, members: list[tuple[str, nn.Module, Any, Any]], build: bool, code: Path | None, selective: bool
) -> Any:
    """Counts of the blocks of one shape."""
    name, block, positional, named = members[0]
    tensors = [t for t in tree_leaves((positional, named)) if isinstance(t, Tensor)]
    leaves = [t for t in [*block.parameters(), *tensors] if t.requires_grad]
    there = [leaves, tensors, list(block.buffers())]
    given = {"shape": list(tensors[0].shape), "strides": tensors[0].stride(), "dtype": str(tensors[0].dtype)}
    row: dict[str, Any] = {"index": index, "first": name, "count": len(members), "input": given}
    row["eager"] = eager(block, positional, named, leaves, there)
    fc.say(f"block {index}: {name}, {len(members)} of the shape {given['shape']}")
    fc.wanted("udit.models.build", "recompute_in_graphs")([block] if selective else [])
    row["compiled"], inductor = compiled(block, positional, named, build)
    if build and inductor:
        row["sm_90"] = built(inductor.ptx)
    if code and inductor:
        code.mkdir(parents=True, exist_ok=True)
        for i, text in enumerate(inductor.codes):
            (code / f"{index}-{i}.py").write_text(text)
    return row


def main() -> None:
    parser = fc.arguments(__doc__ or "")
    parser.add_argument("--only", type=int, action="append", metavar="I", help="only these shapes of block, from 0")
    parser.add_argument("--code", type=Path, metavar="DIR", help="keeps Inductor's code there")
    parser.add_argument("--sm90", action="store_true", help="builds each Triton kernel for sm_90: a second each")
    parser.add_argument("--contiguous", action="store_true", help="as if every block's map came contiguous")
    parser.add_argument("--selective", action="store_true", help="backward recomputes what costs little")
    fc.takes_literal(parser)
    args = parser.parse_args()
    config, kind = fc.config_of(args), fc.literal_class(args.literal) if args.literal else None
    name = args.model + (f" as {args.literal}" if args.literal else "")
    result: dict[str, Any] = {"model": name, "batch": args.batch, "versions": fc.versions()}
    ways = {
        "only": args.only or (),
        "contiguous": args.contiguous,
        "build": args.sm90,
        "code": args.code,
        "selective": args.selective,
    }
    fc.tell(result | network(config, args.batch, kind, **ways))


def summed(rows: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """The network with its blocks compiled: blocks by their counts, and what is eager between them."""

    def total(kind: str, way: str, key: str) -> float:
        return sum(row["count"] * row[kind][way][key] for row in rows)

    between, compiled_ = {}, {}
    for way in ("forward", "backward"):
        launches = whole[way]["operators"] - total("eager", way, "operators")
        moved = whole[way]["GB"] - total("eager", way, "GB")
        between[way] = {"operators": launches, "GB": round(moved, 4)}
        compiled_[way] = {
            "launches": launches + total("compiled", way, "launches"),
            "GB": round(moved + total("compiled", way, "GB"), 3),
        }
    compiled_["launches"] = sum(compiled_[way]["launches"] for way in ("forward", "backward"))
    compiled_["GB"] = round(sum(compiled_[way]["GB"] for way in ("forward", "backward")), 3)
    kept = sum(row["count"] * row["eager"]["kept_GB"] for row in rows)
    compiled_["kept_GB"] = round(whole["kept_GB"] - kept + total("compiled", "forward", "outputs_GB"), 3)
    return {"between_blocks": between, "compiled": compiled_}


if __name__ == "__main__":
    main()
