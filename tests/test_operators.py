"""The contract of all operators, on every device that has a kernel.

Limits come from float32's theory. An operator may be off by as much as rounding its inputs once changes the exact
answer (``sensitivity``, measured in float64), times the root of the longest sum's length for the rounding of that sum.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from conftest import needs_compiler
from udit import ops
from udit.errors import UserError
from udit.nn.tokens import rotary_table
from udit.ops import build, operator
from udit.ops.operator import OPERATORS

EPS = torch.finfo(torch.float32).eps
SAFETY = 4
"""Times the root of the longest sum: of a bound that holds in the mean, over thousands of numbers."""


@dataclass(frozen=True)
class Example:
    """Arguments of an operator."""

    arguments: tuple[Any, ...]
    terms: int
    """Length of its longest sum, of gradients too."""
    constant: tuple[int, ...] = ()
    """Places of tensors that have no gradient."""

    def learned(self) -> list[int]:
        """Places of tensors that have one."""
        return [i for i, x in enumerate(self.arguments) if isinstance(x, Tensor) and i not in self.constant]

    def to(self, dtype: torch.dtype) -> Example:
        """The same in another element type."""
        moved = (x.to(dtype) if isinstance(x, Tensor) else x for x in self.arguments)
        return Example(tuple(moved), self.terms, self.constant)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def examples(name: str) -> Iterator[Example]:
    if name == "linear":
        yield Example((normal(2, 5, 7, 20), normal(12, 20), normal(12)), 70)
        yield Example((normal(64, 96), normal(96, 96), None), 96)
    elif name == "convolution":
        yield Example((normal(2, 7, 6, 20), normal(12, 20, 3, 3), normal(12)), 180)
        yield Example((normal(1, 8, 8, 16), normal(16, 16, 3, 3), None), 144)
    elif name == "depthwise":
        yield Example((normal(2, 9, 7, 20), normal(20, 1, 5, 5), normal(20), False), 126)
        yield Example((normal(1, 8, 8, 33), normal(33, 1, 3, 3), normal(33), True), 64)
    elif name == "modulated_norm":
        yield Example((normal(2, 8, 9, 40) * 3 + 5, normal(2, 1, 1, 40), normal(2, 1, 1, 40)), 72)
        yield Example((normal(3, 5, 12), normal(3, 1, 12), normal(3, 1, 12)), 12)
    elif name == "gated_sum":
        yield Example((normal(2, 8, 9, 40), normal(2, 1, 1, 40), normal(2, 8, 9, 40)), 72)
    elif name == "grid_attention":
        rope = rotary_table(4, 4, 8)
        yield Example((normal(2, 8, 8, 48), torch.tensor([1.0, 20.0]), rope, 2, 2), 64, (2,))
        yield Example((normal(1, 6, 6, 30), None, None, 1, 1), 36)
    elif name.startswith("selective_scan"):
        delta, a = F.softplus(normal(2, 40, 20) - 3), -torch.arange(1.0, 5).repeat(20, 1)
        yield Example((normal(2, 40, 20), delta, a, normal(2, 40, 4), normal(2, 40, 4)), 80)
    else:
        raise LookupError(f"give {name} an example")


CASES = [
    pytest.param(name, device, i, id=f"{name}-{device}-{i}")
    for name, found in OPERATORS.items()
    for device in ("cpu", "cuda")
    if device in found.modules or (operator.ANYWHERE in found.modules and device == "cpu")
    for i, _ in enumerate(examples(name))
]
each_case = pytest.mark.parametrize(("name", "device", "index"), CASES)
once = pytest.mark.parametrize(("name", "device", "index"), [case for case in CASES if case.values[2] == 0])
"""Of every operator and device the first example, for what is long."""


@pytest.fixture
def case(name: str, device: str, index: int) -> tuple[operator.Operator, Example]:
    """An operator whose kernel runs, and what it is given."""
    torch.manual_seed(index)
    example = list(examples(name))[index]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not OPERATORS[name].usable(device, "all"):
        pytest.skip("no kernel can be built or found here")
    moved = tuple(x.to(device) if isinstance(x, Tensor) else x for x in example.arguments)
    return OPERATORS[name], Example(moved, example.terms, example.constant)


Change = Callable[[Tensor], Tensor]


def outcome(function: Callable[..., Tensor], example: Example, change: Change = lambda x: x) -> list[Tensor]:
    """The output, and the gradients of its sum with fixed weights; ``change`` is made to arguments and weights."""
    leaves = [change(x.detach().clone()) if isinstance(x, Tensor) else x for x in example.arguments]
    for place in example.learned():
        leaves[place].requires_grad_()
    out = function(*leaves)
    weights = change(torch.linspace(-1, 1, out.numel(), dtype=torch.float32).view(out.shape).to(out))
    wanted = [leaves[place] for place in example.learned()]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


def limits(reference: Callable[..., Tensor], example: Example) -> tuple[list[Tensor], list[float]]:
    """The exact outcome, and how far from it float32 may be."""
    precise = example.to(torch.float64)
    exact, moved = outcome(reference, precise), []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)

        def rounded(x: Tensor, g: torch.Generator = generator) -> Tensor:
            return x * (1 + EPS * (torch.rand(x.shape, generator=g, dtype=x.dtype).to(x.device) - 0.5))

        pairs = zip(outcome(reference, precise, rounded), exact, strict=True)
        moved.append([float((a - b).abs().max()) for a, b in pairs])
    sensitivity = map(max, zip(*moved, strict=True))
    return exact, [
        SAFETY * example.terms**0.5 * moved + EPS * float(x.abs().max())
        for moved, x in zip(sensitivity, exact, strict=True)
    ]


def assert_near(found: list[Tensor], exact: list[Tensor], allowed: list[float]) -> None:
    for i, (mine, true, limit) in enumerate(zip(found, exact, allowed, strict=True)):
        assert mine.shape == true.shape
        assert float((mine.double() - true).abs().max()) <= limit, f"result {i}"


@each_case
def test_values_and_gradients_are_as_near_to_float64_as_float32_can_be(case: Any) -> None:
    function, example = case
    exact, allowed = limits(function.reference, example)
    assert_near(outcome(function, example), exact, allowed)
    assert_near(outcome(function.reference, example), exact, allowed)


@each_case
def test_the_kernel_is_what_runs_and_off_takes_none(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    function, example = case
    called: list[str] = []
    for part in [function, *backwards(function)]:
        for device, implementation in list(part._implementations.items()):

            def seen(*given: Any, run: Any = implementation, name: str = part.name) -> Any:
                called.append(name)
                return run(*given)

            monkeypatch.setitem(part._implementations, device, seen)
    if function.compiled:
        count = build.CFunction.__call__
        monkeypatch.setattr(
            build.CFunction, "__call__", lambda self, *given: (called.append(self.library.name), count(self, *given))[1]
        )
    outcome(function, example)
    assert called
    if not function.compiled:
        return
    called.clear()
    with ops.kernels("off"):
        out = outcome(function, example)
    assert [name for name in called if not name.startswith(f"{function.name}_in_torch")] == []
    exact, allowed = limits(function.reference, example)
    assert_near(out, exact, allowed)


def backwards(function: operator.Operator) -> list[operator.Function]:
    """The functions that an operator's gradient calls."""
    module = sys.modules[function._gradient.__module__]
    return [x for x in vars(module).values() if type(x) is operator.Function]


@pytest.mark.slow
@once
def test_torch_finds_the_operator_whole(case: Any) -> None:
    """Schema, fake shapes and types, autograd registration, and tracing with and without dynamic shapes."""
    function, example = case
    leaves = [x.clone() if isinstance(x, Tensor) else x for x in example.arguments]
    for place in example.learned():
        leaves[place].requires_grad_()
    torch.library.opcheck(function.operator.default, tuple(leaves))


@each_case
@needs_compiler
def test_bits_do_not_depend_on_the_number_of_threads(case: Any) -> None:
    """Of what kernels compute: ``linear``'s and the convolution's other gradients are torch's own products."""
    function, example = case
    ours = {"linear": [0, 1], "convolution": [2]}.get(function.name)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found = outcome(function, example)
        results.append([found[i] for i in ours] if ours else found)
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.slow
@once
def test_compiled_graphs_hold_it_unbroken(case: Any) -> None:
    function, example = case
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(lambda *given: function(*given), fullgraph=True, backend=backend)
    assert all(map(torch.equal, outcome(compiled, example), outcome(function, example)))
    assert f"udit.{function.name}" in str(graphs[0].graph)
    with ops.kernels("off"):  # the graph is compiled again
        outcome(compiled, example)
    if function.compiled:
        assert f"udit.{function.name}." not in str(graphs[1].graph)


class Call(nn.Module):
    """An operator as a module, with those arguments bound that are no tensors."""

    def __init__(self, function: Callable[..., Tensor], example: Example) -> None:
        super().__init__()
        self.function, self.arguments = function, example.arguments

    def forward(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        return self.function(*(next(given) if isinstance(x, Tensor) else x for x in self.arguments))


def tensors(example: Example) -> tuple[Tensor, ...]:
    return tuple(x for x in example.arguments if isinstance(x, Tensor))


@pytest.mark.slow
@once
@torch.no_grad()
def test_exported_programs_know_torch_alone(case: Any) -> None:
    function, example = case
    program = torch.export.export(Call(function, example), tensors(example))
    assert "udit" not in str(program.graph)
    exact, allowed = limits_of_output(function, example)
    assert float((program.module()(*tensors(example)).double() - exact).abs().max()) <= allowed


def limits_of_output(function: operator.Operator, example: Example) -> tuple[Tensor, float]:
    with torch.enable_grad():
        exact, allowed = limits(function.reference, example)
    return exact[0], allowed[0]


def scalar(function: Callable[..., Tensor], example: Example) -> Callable[..., Tensor]:
    """A smooth function of the learned tensors that bends in all of them."""

    def run(*learned: Tensor) -> Tensor:
        given = list(example.arguments)
        for place, x in zip(example.learned(), learned, strict=True):
            given[place] = x
        return function(*given).sin().sum()

    return run


def learned(example: Example) -> tuple[Tensor, ...]:
    return tuple(example.arguments[place].detach().clone() for place in example.learned())


def directions(example: Example) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(x.shape, generator=generator).to(x) for x in learned(example))


@each_case
def test_forward_derivatives_are_exact(case: Any) -> None:
    """By ``torch.func`` and by dual numbers, where something asks for gradients and where nothing does."""
    function, example = case
    precise = example.to(torch.float64)
    along = tuple(x.double() for x in directions(example))
    true = float(torch.func.jvp(scalar(function.reference, precise), learned(precise), along)[1])
    step, start = 1e-6, learned(precise)
    ahead, behind = (
        scalar(function.reference, precise)(*(x + sign * step * v for x, v in zip(start, along, strict=True)))
        for sign in (1, -1)
    )
    assert true == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)
    run = scalar(function, example)
    assert float(torch.func.jvp(run, learned(example), directions(example))[1]) == pytest.approx(true, rel=1e-4)
    for asks in (False, True):
        with forward_ad.dual_level():
            given = [x.requires_grad_(asks) for x in learned(example)]
            duals = [forward_ad.make_dual(x, v) for x, v in zip(given, directions(example), strict=True)]
            tangent = forward_ad.unpack_dual(run(*duals)).tangent
        assert tangent is not None
        assert float(tangent) == pytest.approx(true, rel=1e-4)


@pytest.mark.slow
@once
def test_compiled_forward_derivatives_are_exact(case: Any) -> None:
    function, example = case
    torch._dynamo.reset()

    def derivative(*given: Tensor) -> Tensor:
        half = len(given) // 2
        return torch.func.jvp(scalar(function, example), given[:half], given[half:])[1]

    compiled = torch.compile(derivative, backend="eager")
    true = derivative(*learned(example), *directions(example))
    found = compiled(*learned(example), *directions(example))
    assert float(found) == pytest.approx(float(true), rel=1e-4)


def second(function: Callable[..., Tensor], example: Example) -> list[Tensor]:
    """The gradient of a norm of the gradient."""
    given = [x.requires_grad_() for x in learned(example)]
    first = torch.autograd.grad(scalar(function, example)(*given), given, create_graph=True)
    return list(torch.autograd.grad(sum(x.square().sum() for x in first), given))


@each_case
def test_second_derivatives_are_exact(case: Any) -> None:
    function, example = case
    for mine, true in zip(second(function, example), by_transformations(function, example), strict=True):
        assert mine.shape == true.shape
        assert float((mine - true).norm()) <= 1e-3 * float(true.norm())


def by_transformations(function: operator.Operator, example: Example) -> list[Tensor]:
    """The same of the reference in float64, by ``torch.func``."""
    precise = example.to(torch.float64)
    places = tuple(range(len(precise.learned())))

    def norm(*given: Tensor) -> Tensor:
        return sum(x.square().sum() for x in torch.func.grad(scalar(function.reference, precise), places)(*given))

    return list(torch.func.grad(norm, places)(*learned(precise)))


@each_case
def test_vmap_runs_it_for_each(case: Any) -> None:
    """Values and gradients of every sample, as one by one."""
    function, example = case
    run, places = scalar(function, example), tuple(range(len(example.learned())))
    batches = tuple(torch.stack([x, 0.5 * x]) for x in learned(example))
    found = torch.func.vmap(torch.func.grad(run, places))(*batches)
    for i in range(2):
        given = [x[i].clone().requires_grad_() for x in batches]
        for mine, true in zip(found, torch.autograd.grad(run(*given), given), strict=True):
            assert float((mine[i] - true).norm()) <= 1e-4 * float(true.norm())


@each_case
def test_foreign_tensors_take_the_reference(case: Any) -> None:
    function, example = case

    class Foreign(Tensor):
        pass

    given = [x.as_subclass(Foreign) if isinstance(x, Tensor) else x for x in example.arguments]
    assert function.chosen(tuple(given)) == function.reference
    assert isinstance(function(*given), Foreign)


@each_case
def test_one_tensor_may_be_several_arguments(case: Any) -> None:
    """A gradient that is differentiated again belongs to each of them, once."""
    function, example = case
    if function.name != "gated_sum":
        return
    x, gate, _ = example.arguments
    for again in (False, True):
        given = [x.clone().requires_grad_(), gate.clone().requires_grad_()]
        out = function(given[0], given[1], given[0])
        [found] = torch.autograd.grad(out.sum(), given[:1], create_graph=again)
        torch.testing.assert_close(found.detach(), (1 + gate).expand_as(x))


def test_kernel_and_reference_count_the_same_work() -> None:
    for name in ("linear", "convolution", "depthwise"):
        example = next(examples(name))
        counts = []
        for allowed in ("all", "off"):
            with ops.kernels(allowed), FlopCounterMode(display=False) as counter:
                arguments = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in example.arguments]
                OPERATORS[name](*arguments)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


# ---- which kernels run -----------------------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused(one_line: Callable[[BaseException], str]) -> None:
    with pytest.raises(UserError, match="kernels is 'of'; set it to off, cpu or all") as told, ops.kernels("of"):  # type: ignore[arg-type]
        pass
    one_line(told.value)


@pytest.mark.parametrize(
    ("word", "said"), [("off", "torch's own"), ("fast", "UDIT_KERNELS is 'fast'; set it to off, cpu or all")]
)
def test_the_environment_allows_kernels(word: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDIT_KERNELS", word)
    monkeypatch.setattr(operator, "_environment", operator._environment.__wrapped__)  # read once per process
    try:
        told = ops.describe()
    except UserError as error:
        told = str(error)
    assert told == said


@needs_compiler
def test_describe_names_what_runs() -> None:
    names = [name for name, found in OPERATORS.items() if found.compiled]
    assert ops.describe() == ", ".join(sorted(names))
    assert ops.describe("meta") is None
    with ops.kernels("off"):
        assert ops.describe() == "torch's own"
    with ops.kernels("cpu"):
        assert ops.describe() == ", ".join(sorted(names))


def test_names_that_older_runs_recorded_mean_the_same_kernels() -> None:
    old = "convolution, depthwise, fused_attention, fused_norm, linear, scan"
    assert operator.current_names(old) == ", ".join(sorted(name for name, f in OPERATORS.items() if f.compiled))
    assert operator.current_names("torch's own") == "torch's own"
    new = "convolution, depthwise, gated_sum, grid_attention, linear, modulated_norm, selective_scan"
    assert operator.current_names(new) == new


# ---- a new operator is one folder ------------------------------------------------------------------------------------

FOLDER = {
    "__init__.py": '''
        """Squares, doubled."""
        import torch
        from torch import Tensor
        from udit.ops.operator import Function, Operator, Saved

        KERNELS = {"cpu": "throwaway_square.cpu"}

        def reference(x: Tensor) -> Tensor:
            return 2 * x * x

        def fake(x: Tensor) -> Tensor:
            return x.new_empty(x.shape)

        def fake_backward(grad: Tensor, x: Tensor) -> Tensor:
            return x.new_empty(x.shape)

        BACKWARD = Function("throwaway_square_backward(Tensor grad, Tensor x) -> Tensor", fake_backward, KERNELS)

        def gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
            return (BACKWARD(grad, *saved.inputs),)

        OPERATOR = Operator("throwaway_square(Tensor x) -> Tensor", reference, fake, gradient, KERNELS)
    ''',
    "cpu.py": """
        from pathlib import Path
        import torch
        from torch import Tensor
        from udit.ops.build import FLOATS, INT, CFunction, Library

        LIBRARY = Library("throwaway_square", Path(__file__).with_name("cpu.cpp"))
        available, loaded = LIBRARY.available, LIBRARY.loaded
        SQUARE = CFunction(LIBRARY, "square", FLOATS, FLOATS, INT)
        BACK = CFunction(LIBRARY, "back", FLOATS, FLOATS, FLOATS, INT)

        def accepts(x: Tensor) -> bool:
            return x.dtype == torch.float32

        def throwaway_square(x: Tensor) -> Tensor:
            x = x.contiguous()
            out = torch.empty_like(x)
            SQUARE(x.dtype, x, out, x.numel())
            return out

        def throwaway_square_backward(grad: Tensor, x: Tensor) -> Tensor:
            x, grad = x.contiguous(), grad.contiguous()
            out = torch.empty_like(x)
            BACK(x.dtype, grad, x, out, x.numel())
            return out
    """,
    "cpu.cpp": """
        #include "vectors.h"
        extern "C" void square_f32(const float* x, float* out, int n, int threads) {
          for (int i = 0; i < n; i++) out[i] = 2 * x[i] * x[i];
        }
        extern "C" void back_f32(const float* grad, const float* x, float* out, int n, int threads) {
          for (int i = 0; i < n; i++) out[i] = 4 * x[i] * grad[i];
        }
    """,
}


@needs_compiler
def test_a_new_operator_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "throwaway_square"
    folder.mkdir()
    for name, text in FOLDER.items():
        lines = text.splitlines()
        (folder / name).write_text("\n".join(line[8:] for line in lines))
    monkeypatch.setenv("UDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(operator, "OPERATORS", dict(OPERATORS))  # other tests do not meet it; torch keeps it
    added = importlib.import_module("throwaway_square").OPERATOR
    assert operator.OPERATORS["throwaway_square"] is added
    assert added.usable("cpu", "all")
    x = torch.randn(3, 5, requires_grad=True)
    assert added.chosen((x,)) == added.run_kernel
    [first] = torch.autograd.grad(added(x).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 4 * x)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], torch.full((3, 5), 4.0))
    y = x.detach()
    torch.testing.assert_close(torch.func.jvp(added, (y,), (y,))[1], 4 * y * y)
    torch.library.opcheck(added.operator.default, (x,))
    with ops.kernels("off"):
        assert added.chosen((x,)) == added.reference


# ---- what C functions are given --------------------------------------------------------------------------------------


@needs_compiler
def test_a_tensor_that_is_not_as_declared_is_an_error(one_line: Callable[[BaseException], str]) -> None:
    from udit.ops.matmul.cpu import MULTIPLY

    x, out = torch.randn(4, 8), torch.empty(4, 8)
    sizes = 4, 8, 8, 1
    with pytest.raises(RuntimeError, match="linear runs on the CPU and was given a tensor on meta") as told:
        MULTIPLY(x.dtype, x.to("meta"), x, None, out, *sizes)
    one_line(told.value)
    for wrong in (x.double(), x.t()):
        with pytest.raises(RuntimeError, match=r"linear takes a contiguous tensor of torch.float32") as told:
            MULTIPLY(x.dtype, wrong, x, None, out, *sizes)
        one_line(told.value)
    with pytest.raises(RuntimeError, match="linear takes a tensor and was given None"):
        MULTIPLY(x.dtype, None, x, None, out, *sizes)
    with pytest.raises(ValueError, match="argument"):
        MULTIPLY(x.dtype, x, x, None, out, 4, 8, 8)


@needs_compiler
def test_the_processor_to_compile_for_is_part_of_a_kernels_name(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    source = Path(ops.__file__).parent / "gating" / "cpu.cpp"
    monkeypatch.delenv("UDIT_MARCH", raising=False)
    assert "-march=native" in build.flags()
    native = build.key(source, compiler)
    monkeypatch.setenv("UDIT_MARCH", "x86-64-v3")
    assert "-march=x86-64-v3" in build.flags()
    assert build.key(source, compiler) != native
