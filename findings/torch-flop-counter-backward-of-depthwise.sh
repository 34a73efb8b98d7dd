#!/usr/bin/env bash
# torch's FlopCounterMode counts the backward pass of a depthwise convolution as if it mixed all channels.
#
# Guess:  the backward pass of any convolution counts twice its forward pass: once for the input, once for the weight.
# Seen:   with torch 2.14.1 that holds without groups. With 64 channels in 64 groups the forward pass is counted right,
#         and the backward pass as 65 times as much: the gradient of the weight is counted without its groups. What a
#         training step of a network of depthwise convolutions costs (U-DiT, DiC, MobileNet) comes out far too large.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode

found = {}
for groups in (1, 8, 64):
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 64, 16, 16, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = layer(x).sum()
    with FlopCounterMode(display=False) as backward:
        out.backward()
    assert forward.get_total_flops() == 2 * 2 * 16 * 16 * 64 * (64 // groups) * 9
    found[groups] = backward.get_total_flops() / forward.get_total_flops()
    print(f"{groups} groups: backward counts {found[groups]:g} times forward")
assert found == {1: 2, 8: 9, 64: 65}, "mended: remove this file"
PY
