#!/usr/bin/env bash
# torch: the gradients of parameters that are stacked and summed are one tensor, and clipping scales it once for each.
#
# Guess:  every parameter has a gradient of its own, so that clip_grad_norm_(..., 1.0) leaves a norm of 1.
# Seen:   with torch 2.14.1 the gradient of a sum is expanded, unbind hands out its rows, which are one memory, and each
#         parameter keeps its row as .grad. clip_grad_norm_ scales in place: three parameters are scaled three times. A
#         second backward pass adds three times as well, where gradients are accumulated. p1 + p2 + p3 does neither.
#         Branches of a re-parameterised convolution, whose biases are summed, are where it is met.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$place/venv/bin/python" - <<'PY'
import torch


def backward(total):
    three = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    for _ in range(2):
        (total(three) * torch.arange(1.0, 5.0)).sum().backward()
    accumulated = three[0].grad.tolist()
    torch.nn.utils.clip_grad_norm_(three, 1.0)
    return accumulated, float(torch.stack([p.grad for p in three]).norm())


for name, total in (("stack and sum", lambda p: torch.stack(p).sum(0)), ("added", lambda p: p[0] + p[1] + p[2])):
    accumulated, norm = backward(total)
    print(f"{name}: twice [1, 2, 3, 4] is {accumulated}; the norm after clipping to 1 is {norm:.4f}")
    assert (accumulated == [2, 4, 6, 8]) == (name == "added"), "mended: remove this file"
    assert (abs(norm - 1) < 1e-5) == (name == "added"), "mended: remove this file"
PY
