"""Derivatives of every operator and network, of every kind: with kernels and without, in float32 and in float64.

Subjects are functions of tensors. What is true comes from their central differences in float64: of the output for the
gradient and the tangent, of the gradient for the second derivatives. No cell of the table may raise an error.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import udit
from conftest import perturb, quick
from peers import STEEP
from test_operators import examples, normal
from udit import ops
from udit.models.build import checkpoint_activations
from udit.models.catalog import CATALOG
from udit.nn.specs import Downsampled, Full, KVDownsampled, Window
from udit.nn.tokens import rotary_table
from udit.nn.window import wrap_mask
from udit.ops.operator import OPERATORS

Tensors = tuple[Tensor, ...]
TIMES = {"index": 300.0, "unit": 0.5, "sigma": 1.0}
SHALLOW: dict[str, dict[str, Any]] = {
    "DiT-tiny": {"depth": 2},
    "SiT-tiny": {"depth": 2},
    "DiMSUM-tiny": {"depth": 2, "attention_every": 2, "width": 32},
}
"""Overrides that leave every kind of block in, for less time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "U-DiT-vanilla": {"attention": Downsampled(cosine=False, rope=False)},
    "U-DiT-full": {"attention": Full()},
    "U-DiT-kv": {"attention": KVDownsampled()},
    "U-DiT-window": {"attention": Window(size=4)},
}
"""U-DiT-tiny with every other attention."""
ROWS = quick(name for name in CATALOG if name.endswith("-tiny"))
NETWORKS = [*ROWS, *quick(VARIANTS)]
CELLS = [(dtype, allowed) for dtype in (torch.float64, torch.float32) for allowed in ("all", "off")]
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Of an error's norm over that of the truth: what central differences are off, and float32's rounding in a network."""
STEP = 1e-6


@dataclass(frozen=True)
class Subject:
    """A function of tensors, at a point and along directions."""

    call: Callable[..., Tensor]
    point: Tensors
    along: Tensors

    def total(self, *given: Tensor) -> Tensor:
        """A number that bends in all arguments."""
        return self.call(*given).sin().sum()

    def asking(self) -> Tensors:
        """The point, of which gradients are asked."""
        return tuple(x.detach().clone().requires_grad_() for x in self.point)

    def project(self, grads: Sequence[Tensor]) -> Tensor:
        """The sum of products with the directions."""
        return sum((g * v).sum() for g, v in zip(grads, self.along, strict=True))  # type: ignore[return-value]


@functools.cache
def network(name: str, dtype: torch.dtype) -> nn.Module:
    if name in VARIANTS:
        return perturb(udit.build("U-DiT-tiny", **VARIANTS[name])).to(dtype)
    return perturb(udit.build(name, **SHALLOW.get(name, {})), STEEP.get(name, 0.1)).to(dtype)


def conditions(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    time, shape = torch.full((2,), TIMES[model.config.time], dtype=dtype), model.config.condition_shape
    if not shape:
        return time, torch.tensor([1, 2])
    return time, torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def point(model: nn.Module) -> Tensor:
    return torch.randn(2, *model.config.input_shape(), generator=torch.Generator().manual_seed(1))


def directions(tensors: Sequence[Tensor]) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(x.shape, generator=generator).to(x) for x in tensors)


def attention_functions() -> dict[str, tuple[Callable[..., Tensor], Tensors]]:
    """Attention besides that of sub-grids: by torch's own operator, in all its forms."""
    rope, mask = rotary_table(4, 4, 8), wrap_mask(4, 4, (4, 4), (2, 2))
    qkv = normal(2, 2, 16, 8), normal(2, 2, 16, 8), normal(2, 2, 16, 8)
    scales = torch.tensor([1.0, 3.0])
    return {
        "products": (ops.dot_product_attention, qkv),
        "masked": (lambda q, k, v: ops.dot_product_attention(q, k, v, mask, 0.5), qkv),
        "cosine": (lambda q, k, v, s: ops.attend(q, k, v, s, rope.to(q), mask=mask), (*qkv, scales)),
    }


FUNCTIONS = [*(f"{name}-{i}" for name in OPERATORS for i, _ in enumerate(examples(name))), *attention_functions()]


def subject(name: str, dtype: torch.dtype) -> Subject:
    if name in CATALOG or name in VARIANTS:
        model = network(name, dtype)
        t, y = conditions(model, dtype)
        tensors: Tensors = (point(model).to(dtype),)
        return Subject(lambda x: model(x, t, y), tensors, directions(tensors))
    torch.manual_seed(0)
    if name in attention_functions():
        call, tensors = attention_functions()[name]
    else:
        operator, _, index = name.rpartition("-")
        example = list(examples(operator))[int(index)]
        places, given = example.learned(), [x.to(dtype) if isinstance(x, Tensor) else x for x in example.arguments]
        tensors = tuple(given[place] for place in places)

        def call(*learned: Tensor) -> Tensor:
            for place, x in zip(places, learned, strict=True):
                given[place] = x
            return OPERATORS[operator](*given)

    tensors = tuple(x.to(dtype) for x in tensors)
    return Subject(call, tensors, directions(tensors))


# ---- what is true ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """In float64, without kernels."""

    out: Tensor
    tangent: Tensor
    """Of the output, along the directions."""
    gradient: Tensors
    """Of the total."""
    second: Tensors
    """The gradient's change along the directions."""


def gradient(it: Subject, at: Sequence[Tensor]) -> Tensors:
    given = [x.detach().clone().requires_grad_() for x in at]
    return torch.autograd.grad(it.total(*given), given)


def change(function: Callable[[Sequence[Tensor]], Sequence[Tensor]], it: Subject) -> Tensors:
    """Central differences of a function along the directions."""
    ahead, behind = ([x + s * STEP * v for x, v in zip(it.point, it.along, strict=True)] for s in (1, -1))
    pairs = zip(function(ahead), function(behind), strict=True)
    return tuple((a - b) / (2 * STEP) for a, b in pairs)


@functools.cache
def truth(name: str) -> Truth:
    it = subject(name, torch.float64)
    with ops.kernels("off"):
        with torch.no_grad():
            [tangent] = change(lambda at: [it.call(*at)], it)
            out = it.call(*it.point)
        return Truth(out, tangent, gradient(it, it.point), change(lambda at: gradient(it, at), it))


def assert_near(found: Sequence[Tensor], true: Sequence[Tensor], limit: float, what: str) -> None:
    scale = max(float(x.norm()) for x in true)
    assert scale > 0, f"{what}: the truth is zero"
    for mine, right in zip(found, true, strict=True):
        assert mine.shape == right.shape, what
        assert float((mine.detach().double() - right).norm()) <= limit * scale, what


# ---- kinds of derivatives --------------------------------------------------------------------------------------------

Kind = Callable[[Subject, Truth], tuple[Sequence[Tensor], Sequence[Tensor]]]


def first(it: Subject, true: Truth) -> Any:
    return gradient(it, it.point), true.gradient


def second(it: Subject, true: Truth) -> Any:
    given = it.asking()
    grads = torch.autograd.grad(it.total(*given), given, create_graph=True)
    return torch.autograd.grad(it.project(grads), given), true.second


def by_jvp(it: Subject, true: Truth) -> Any:
    return [torch.func.jvp(it.call, it.point, it.along)[1]], [true.tangent]


def by_dual_numbers(it: Subject, true: Truth) -> Any:
    """Where the arguments ask for gradients and where they do not."""
    tangents = []
    for asks in (False, True):
        with forward_ad.dual_level():
            given = it.asking() if asks else it.point
            duals = [forward_ad.make_dual(x, v) for x, v in zip(given, it.along, strict=True)]
            tangents.append(forward_ad.unpack_dual(it.call(*duals)).tangent)
    return tangents, [true.tangent] * 2


def by_vmap(it: Subject, true: Truth) -> Any:
    """Output and gradients of two points at once, of which the second is the truth's."""
    given = tuple(torch.stack([0.5 * x, x]) for x in it.point)
    out = torch.func.vmap(it.call)(*given)
    grads = torch.func.vmap(torch.func.grad(it.total, tuple(range(len(given)))))(*given)
    return [out[1], *(g[1] for g in grads)], [true.out, *true.gradient]


def by_func_grad(it: Subject, true: Truth) -> Any:
    return torch.func.grad(it.total, tuple(range(len(it.point))))(*it.point), true.gradient


def jvp_of_grad(it: Subject, true: Truth) -> Any:
    grad = torch.func.grad(it.total, tuple(range(len(it.point))))
    return torch.func.jvp(grad, it.point, it.along)[1], true.second


def grad_of_jvp(it: Subject, true: Truth) -> Any:
    places = tuple(range(len(it.point)))
    return torch.func.grad(lambda *x: torch.func.jvp(it.total, x, it.along)[1], places)(*it.point), true.second


def batches_of_gradients(it: Subject, true: Truth) -> Any:
    """``is_grads_batched``, and so ``torch.autograd.functional.jacobian(vectorize=True)``."""
    given = it.asking()
    out = it.call(*given)
    weights = torch.stack([2 * out.cos(), out.cos()]).detach()
    grads = torch.autograd.grad(out, given, weights, is_grads_batched=True)
    return [g[1] for g in grads] + [g[0] / 2 for g in grads], [*true.gradient, *true.gradient]


KINDS: list[Kind] = [
    first, second, by_jvp, by_dual_numbers, by_vmap, by_func_grad, jvp_of_grad, grad_of_jvp, batches_of_gradients
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FUNCTIONS, *NETWORKS])
def test_every_kind_of_derivative_is_right(name: str, kind: Kind) -> None:
    for dtype, allowed in CELLS:
        with ops.kernels(allowed):  # type: ignore[arg-type]
            found, true = kind(subject(name, dtype), truth(name))
            assert_near(found, true, LIMITS[dtype], f"{dtype}, kernels {allowed}")


@pytest.mark.parametrize("name", [*FUNCTIONS, *NETWORKS])
def test_gradients_agree_with_differences_of_the_output(name: str) -> None:
    """So the truth of second derivatives, a difference of gradients, rests on differences too."""
    it, true = subject(name, torch.float64), truth(name)
    expected = (true.out.cos() * true.tangent).sum()
    size = sum(float(g.norm() * v.norm()) for g, v in zip(true.gradient, it.along, strict=True))
    assert float((it.project(true.gradient) - expected).abs()) <= 1e-7 * size
    assert float(true.tangent.abs().max()) > 0


# ---- of a network's parameters and time ------------------------------------------------------------------------------


@functools.cache
def parameter_truth(name: str) -> tuple[dict[str, Tensor], float]:
    """The total's gradient in float64 without kernels, and the total's difference along ``parameter_directions``."""
    model, it = network(name, torch.float64), subject(name, torch.float64)
    t, y = conditions(model, torch.float64)
    state = {key: x.detach() for key, x in model.named_parameters()}
    along = parameter_directions(model)

    def moved(sign: int) -> Tensor:
        given = {key: x + sign * STEP * along[key] for key, x in state.items()}
        return torch.func.functional_call(model, given, (*it.point, t, y)).sin().sum()

    with ops.kernels("off"):
        grads = torch.autograd.grad(it.total(*it.point), list(model.parameters()), materialize_grads=True)
        with torch.no_grad():
            difference = float((moved(1) - moved(-1)) / (2 * STEP))
    return dict(zip(state, grads, strict=True)), difference


def parameter_directions(model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return {key: 0.1 * v for key, v in zip(named, directions(list(named.values())), strict=True)}


@pytest.mark.parametrize("name", ROWS)
def test_functional_calls_have_the_gradients_of_parameters(name: str) -> None:
    """By ``torch.func.grad``, by autograd, and forwards."""
    grads, difference = parameter_truth(name)
    for dtype, allowed in CELLS:
        model, it = network(name, dtype), subject(name, dtype)
        t, y = conditions(model, dtype)

        def total(given: dict[str, Tensor], model: Any = model, it: Any = it, t: Any = t, y: Any = y) -> Tensor:
            return torch.func.functional_call(model, given, (*it.point, t, y)).sin().sum()

        state = {key: x.detach() for key, x in model.named_parameters()}
        along = {key: v.to(dtype) for key, v in parameter_directions(network(name, torch.float64)).items()}
        with ops.kernels(allowed):  # type: ignore[arg-type]
            by_func = torch.func.grad(total)(state)
            leaves = {key: x.clone().requires_grad_() for key, x in state.items()}
            by_autograd = torch.autograd.grad(total(leaves), list(leaves.values()), materialize_grads=True)
            forwards = torch.func.jvp(total, (state,), (along,))[1]
        what = f"{dtype}, kernels {allowed}"
        assert_near([by_func[key] for key in grads], list(grads.values()), LIMITS[dtype], what)
        assert_near(by_autograd, list(grads.values()), LIMITS[dtype], what)
        size = sum(float(grads[key].norm() * along[key].norm()) for key in grads)
        assert abs(float(forwards) - difference) <= LIMITS[dtype] * size, what


@pytest.mark.parametrize("name", ROWS)
def test_tangents_of_image_and_time_are_those_that_a_mean_flow_needs(name: str) -> None:
    """Forwards along both, as backwards; the loss made of them has gradients. Time's features are float32: no steps."""
    reverse = None
    for dtype, allowed in CELLS:
        model, it = network(name, dtype), subject(name, dtype)
        t, y = conditions(model, dtype)
        with ops.kernels(allowed):  # type: ignore[arg-type]
            out, tangent = torch.func.jvp(
                lambda x, t, m=model, y=y: m(x, t, y), (*it.point, t), (*it.along, torch.ones_like(t))
            )
            (out - tangent.detach()).square().mean().backward()
            if reverse is None:
                given = t.clone().requires_grad_()
                model(*it.point, given, y).cos().sum().backward()
                reverse = given.grad.sum()
        model.zero_grad()
        through_time = -((tangent.detach().double() - truth(name).tangent) * truth(name).out.sin()).sum()
        size = float(tangent.detach().norm() * truth(name).out.sin().norm())
        assert float((through_time - reverse).abs()) <= LIMITS[dtype] * size, f"{dtype}, kernels {allowed}"
        assert float(reverse) != 0


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [True, "selective"])
@pytest.mark.parametrize("name", ["U-DiT-tiny", "DiC-tiny", "HDiT-tiny"])
def test_networks_that_recompute_activations_have_them_too(name: str, recompute: Any) -> None:
    """A second backward recomputes a block again; transformations store its activations."""
    model = copy.deepcopy(network(name, torch.float32)).train()
    checkpoint_activations(model, recompute)
    t, y = conditions(model, torch.float32)
    plain = subject(name, torch.float32)
    it = Subject(lambda x: model(x, t, y), plain.point, plain.along)
    for kind in (second, by_jvp, by_func_grad, batches_of_gradients):
        found, true = kind(it, truth(name))
        assert_near(found, true, LIMITS[torch.float32], kind.__name__)
