"""Selective recomputation: less is kept, and every gradient has the bits it has without."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import udit
from conftest import batch, needs_compiler, perturb, quick
from udit import ops
from udit.models.build import checkpoint_activations
from udit.models.catalog import CATALOG
from udit.nn.blocks import recompute_when_compiled
from udit.nn.conditioning import AdaLNBlock
from udit.nn.dropout import dropout_keys
from udit.nn.specs import Downsampled, RepConv
from udit.ops import lowered, recomputable, recompute, recomputing
from udit.ops.recompute import autocast_dtype
from udit.training.memory import _Living

TINY = sorted(name for name in CATALOG if name.endswith("-tiny"))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("name", quick(TINY, ("U-DiT-tiny", "HDiT-tiny", "DiMSUM-tiny")))
def test_gradients_have_the_same_bits_in_every_family(name: str, cast: bool) -> None:
    model = perturb(udit.build(name)).train()
    x, t, y = batch(model)

    def gradients(recompute: str | bool) -> list[Tensor | None]:
        checkpoint_activations(model, recompute)  # type: ignore[arg-type]
        model.zero_grad()
        with dropout_keys(model, 0, range(len(x))), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = model(
                x,
                t.float() / 1000 if model.config.time == "unit" else t,
                y if model.config.condition_shape is not None else None,
            )
        out.float().square().mean().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    for one, other in zip(gradients(False), gradients("selective"), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", quick(TINY, ("U-DiT-tiny", "HDiT-tiny", "DiMSUM-tiny")))
def test_less_is_kept_in_every_family(name: str) -> None:
    """Bytes that live between forward and backward."""
    model = perturb(udit.build(name)).train()
    x, t, y = batch(model, 16)
    time = t.float() / 1000 if model.config.time == "unit" else t

    def kept(recompute: str | bool) -> int:
        checkpoint_activations(model, recompute)  # type: ignore[arg-type]
        with _Living(model.parameters()) as living:
            out = model(x, time, y if model.config.condition_shape is not None else None)
        assert out.requires_grad
        return living.bytes

    assert 0.3 * kept(False) < kept("selective") < 0.8 * kept(False)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_block_recomputes_what_costs_little() -> None:
    """In one graph: less is kept between forward and backward, and the gradients' bits are those of the plain block."""
    ops.describe()  # kernels that are built are in the graph
    block = AdaLNBlock(Downsampled().build(16, 2), RepConv().build(16), 16).train()
    generator = torch.Generator().manual_seed(0)
    for p in block.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    x, cond = torch.randn(4, 8, 8, 16, generator=generator), torch.randn(4, 16, generator=generator)
    positions = block.attention.positions(8, 8, None)  # type: ignore[operator]

    def run() -> tuple[str, list[Tensor]]:
        """The graph of backward, and gradients."""
        graphs: list[str] = []

        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            graphs.append(str(graph.graph))
            return make_boxed_func(graph.forward)

        compiler = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
        torch._dynamo.reset()
        out = torch.compile(block, backend=compiler, fullgraph=True)(x, block.condition(cond), positions)
        gradients = list(torch.autograd.grad(out.square().mean(), list(block.parameters())))
        return graphs[-1], gradients

    plain, wanted = run()
    recompute_when_compiled(block)
    again, found = run()
    assert all(map(torch.equal, found, wanted))
    forward = {name: f"udit.{name}.default" for name in ("modulated_norm", "gated_sum", "depthwise", "grid_attention")}
    assert not any(word in plain for word in forward.values())
    assert {name for name, word in forward.items() if word in again} == {"modulated_norm", "gated_sum", "depthwise"}


class Counted:
    """GELU, and how often it was computed."""

    def __init__(self) -> None:
        self.calls = 0
        self.last: weakref.ref[Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = F.gelu(x)
        self.last = weakref.ref(out)
        return out


def test_a_recomputable_result_is_freed_and_computed_once_more() -> None:
    gelu, x, w = Counted(), torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    with recomputing():
        h = recomputable(gelu, x)
        out = (h @ w).sum() + (h * w).sum()
        del h
    gc.collect()
    assert gelu.calls == 1
    assert gelu.last is not None
    assert gelu.last() is None
    out.backward()
    gc.collect()
    assert gelu.calls == 2
    assert gelu.last() is None, "what was computed again is freed after backward"
    mine = x.grad, w.grad
    x.grad = w.grad = None
    ((F.gelu(x) @ w).sum() + (F.gelu(x) * w).sum()).backward()
    torch.testing.assert_close(mine, (x.grad, w.grad))


def test_results_of_results_and_views_are_recomputed() -> None:
    first, second = Counted(), Counted()
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    with recomputing():
        out = recomputable(second, recomputable(first, x)).t().reshape(3, 8).t()[:6, :]
        out = out.contiguous().view(3, 6) @ w
        loss = (recomputable(second, x).t() @ recomputable(first, x)).sum() + out.sum()
    assert (first.calls, second.calls) == (2, 2)
    loss.backward()
    assert (first.calls, second.calls) == (4, 3), "what is not needed is not computed again"
    mine = x.grad, w.grad
    x.grad = w.grad = None
    out = F.gelu(F.gelu(x)).t().reshape(3, 8).t()[:6, :].contiguous().view(3, 6) @ w
    ((F.gelu(x).t() @ F.gelu(x)).sum() + out.sum()).backward()
    assert torch.equal(mine[0], x.grad)
    assert torch.equal(mine[1], w.grad)


def test_a_result_changed_in_place_is_kept_as_it_is() -> None:
    x, w = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    with recomputing():
        h = recomputable(torch.mul, x, 2.0)
        h.add_(1)
        out = (h @ w).sum()
    out.backward()
    torch.testing.assert_close(w.grad, (2 * x + 1).detach().t() @ torch.ones(3, 3))


def test_parts_of_one_result_are_distinguished() -> None:
    x, w = torch.randn(6, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def gradient(call: Callable[..., Tensor]) -> Tensor:
        w.grad = None
        with recomputing():
            (one, other) = (call(_half, x, i) for i in range(2))
            loss = (one @ w).sum() + 2 * (other @ w).sum() + (call(F.gelu, x).chunk(2)[1] @ w).sum()
        loss.backward()
        assert w.grad is not None
        return w.grad

    assert torch.equal(gradient(recomputable), gradient(lambda function, *given: function(*given)))


def _half(x: Tensor, index: int) -> Tensor:
    return F.silu(x).chunk(2)[index]


def test_what_backward_needs_may_not_change_before_it() -> None:
    """As without recomputation, whether it is needed itself or to compute something again."""
    w = torch.randn(3, 3, requires_grad=True)
    for function in (F.gelu, torch.clone):
        x = torch.randn(3, 3)
        with recomputing():
            loss = (recomputable(function, x) @ w).sum() + (x @ w).sum()
        x.add_(1)
        with pytest.raises(RuntimeError, match=r"shape \[3, 3\] that backward needs was changed in place"):
            loss.backward()


def test_a_graph_without_a_backward_goes() -> None:
    """``exp`` keeps its own result, which must not hold itself."""
    x = torch.randn(3, requires_grad=True)
    with recomputing():
        out = x.exp()
    gone = weakref.ref(out)
    del out
    gc.collect()
    assert gone() is None


def test_autocast_is_as_it_was() -> None:
    """Backward runs outside of it."""
    x, w, seen = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True), []

    def norm(h: Tensor) -> Tensor:
        seen.append(autocast_dtype("cpu"))
        return F.layer_norm(h, (64,))

    with torch.autocast("cpu", torch.bfloat16), recomputing():
        out = F.linear(lowered(recomputable(norm, x @ w)), w)
    out.float().square().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_outside_nothing_is_remembered() -> None:
    x = torch.randn(3, requires_grad=True)
    assert recompute._known.get() is None
    with recomputing():
        with torch.no_grad():
            recomputable(F.gelu, x)
        assert recompute._known.get() == {}
        recomputable(F.gelu, x)
        assert len(recompute._known.get()) == 1
    assert recompute._known.get() is None
