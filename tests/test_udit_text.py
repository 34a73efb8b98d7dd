"""U-DiT-text: what each block reads of a text, padding, skips, and reduced keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import udit
from conftest import perturb
from udit.errors import UserError
from udit.models.udit_text.config import UDiTTextConfig
from udit.models.udit_text.network import AttendedJoin, JoinedAttention
from udit.nn.tokens import rotary_table
from udit.ops import rotate


def network(**overrides: Any) -> nn.Module:
    values = {"width": 16, "heads": 2, "depth": 4, "patch": 1, "context": {"tokens": 5, "width": 8}}
    return perturb(udit.build("U-DiT-text-tiny", **(values | overrides))).eval()


def filled(part: nn.Module) -> Any:
    """With random numbers in all parameters, of which some are empty before a network fills them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return part


def inputs(model: nn.Module, tokens: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    y = torch.randn(2, *model.config.condition_shape, generator=generator)
    y[:, :, tokens:] = 0
    return x, torch.tensor([10, 500]), y


@torch.no_grad()
def test_padding_is_masked() -> None:
    short, long = network(), network(context={"tokens": 9, "width": 8})
    long.load_state_dict(short.state_dict())
    x, t, y = inputs(short)
    padded = torch.cat([y, torch.zeros(2, 4, 4, 8)], dim=2)
    torch.testing.assert_close(long(x, t, padded), short(x, t, y), rtol=1e-4, atol=1e-5)
    said = y.clone()
    said[:, :, 3] = 1
    assert (short(x, t, said) - short(x, t, y)).abs().max() > 1e-3
    assert short(x, t, torch.zeros_like(y)).isfinite().all()  # the image's keys remain


def test_block_i_reads_layer_i_and_all_blocks_read() -> None:
    model = network()
    x, t, y = inputs(model)
    y.requires_grad_()
    model(x, t, y).square().sum().backward()
    assert y.grad is not None
    assert (y.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    with torch.no_grad():
        cond, other = model.condition(t, y), model.condition(t, torch.cat([y[:, :2], y[:, 2:].flip(1)], dim=1))
        same = [torch.equal(a.keys, b.keys) for a, b in zip(cond.text, other.text, strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("depth", [2, 5])
def test_block_i_joins_the_one_as_far_from_the_end(depth: int) -> None:
    model = network(depth=depth)
    seen: list[tuple[str, int, Tensor]] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _in, out, i=i: seen.append(("block", i, out)))
    for i, join in enumerate(model.joins):
        join.register_forward_hook(lambda _m, given, _out, i=i: seen.append(("join", i, given[1])))
    with torch.no_grad():
        model(*inputs(model))
    outputs = {i: out for kind, i, out in seen if kind == "block"}
    assert [i for kind, i, _ in seen if kind == "block"] == list(range(depth))
    for k, (kind, i, given) in enumerate(seen):
        if kind == "join":
            following = seen[k + 1][1]
            assert given is outputs[depth - 1 - following]
            assert i == following - depth + depth // 2
    assert sum(kind == "join" for kind, *_ in seen) == depth // 2


def test_middle_blocks_have_a_quarter_of_the_image_s_keys() -> None:
    config = UDiTTextConfig(depth=8)
    assert list(config.middle) == [2, 3, 4, 5]
    assert list(config.replace(reduced=1).middle) == [3]
    assert not config.replace(reduced=0).middle
    factors = [block.attention.factor for block in network(depth=8).blocks]
    assert factors == [1, 1, 2, 2, 2, 2, 1, 1]


@torch.no_grad()
def test_reduced_attention_is_attention_to_means_at_their_centres() -> None:
    attention = filled(JoinedAttention(8, 2, 6, 2).double())
    x, states = torch.randn(1, 4, 6, 8).double(), torch.randn(1, 3, 6).double()
    text = attention.of_text(states, torch.tensor([[True, True, False]]))
    out = attention(x, text, attention.positions(4, 6, x.device))
    q = attention.q(x.reshape(1, 24, 8)).view(24, 2, 4).transpose(0, 1)
    means = x.view(1, 2, 2, 3, 2, 8).mean(dim=(2, 4)).reshape(6, 8)
    k, v = attention.kv(means).view(6, 2, 2, 4).permute(1, 2, 0, 3)
    own_k, own_v = attention.text_kv(states[0, :2]).view(2, 2, 2, 4).permute(1, 2, 0, 3)
    table, centres = rotary_table(4, 6, 4), rotary_table(2, 3, 4, step=2)
    q = rotate(attention.q_norm(q), table.double())
    keys = torch.cat([rotate(attention.k_norm(k), centres.double()), attention.text_norm(own_k)], dim=1)
    share = (q @ keys.transpose(1, 2) / 2).softmax(dim=-1)
    expected = attention.out((share @ torch.cat([v, own_v], dim=1)).transpose(0, 1).reshape(1, 4, 6, 8))
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_attended_skips_read_all_of_the_skip_and_begin_at_zero() -> None:
    join = filled(AttendedJoin(8, 2).double())
    x, skip = torch.randn(2, 1, 2, 3, 8).double()

    def turned(norm: nn.Module, projected: Tensor) -> Tensor:
        return rotate(norm(projected.view(6, 2, 4).transpose(0, 1)), rotary_table(2, 3, 4).double())

    flat, other = (F.layer_norm(part.view(6, 8), (8,), eps=1e-6) for part in (x, skip))
    k, v = join.kv(other).chunk(2, dim=-1)
    share = (turned(join.q_norm, join.q(flat)) @ turned(join.k_norm, k).transpose(1, 2) / 2).softmax(dim=-1)
    read = (share @ v.view(6, 2, 4).transpose(0, 1)).transpose(0, 1).reshape(6, 8)
    torch.testing.assert_close(join(x, skip), x + join.out(read).view(x.shape))
    fresh = udit.build("U-DiT-text-tiny", depth=5, skips="attended")
    assert [join.out.weight.count_nonzero().item() for join in fresh.joins] == [0, 0]
    assert all(join.kv.weight.count_nonzero() for join in fresh.joins)


def test_attended_skips_are_trained() -> None:
    model = network(depth=5, skips="attended")
    model(*inputs(model)).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert missing == []


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    x, t, y = inputs(model)
    with pytest.raises(UserError, match=r"y is missing; the model takes hidden states of texts, floats \[2, 4, 5, 8\]"):
        model(x, t)
    with pytest.raises(UserError, match=r"y is \[2, 4, 5, 7\]; the model takes hidden states"):
        model(x, t, y[..., :7])
    with pytest.raises(ValueError, match=r"6x7 does not split into 1x1 patches, averaged over 2x2"):
        model(torch.zeros(2, 1, 6, 7), t, y)
    with pytest.raises(ValueError, match="reduced is 9 and there are 4 blocks; set it to 2"):
        UDiTTextConfig(depth=4, reduced=9)


@torch.no_grad()
def test_the_shell_takes_the_mean_of_the_tokens_that_there_are() -> None:
    overrides: dict[str, Any] = {"num_classes": 0, "learn_sigma": False}
    short = perturb(udit.build("U-DiT-tiny", context={"tokens": 3, "width": 4}, **overrides))
    long = udit.build("U-DiT-tiny", context={"tokens": 7, "width": 4}, **overrides)
    long.load_state_dict(short.state_dict())
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([5, 700]), torch.randn(2, 3, 4)
    padded = torch.cat([y, torch.zeros(2, 4, 4)], dim=1)
    torch.testing.assert_close(long(x, t, padded), short(x, t, y))
