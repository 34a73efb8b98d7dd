#!/usr/bin/env bash
# peft adapts convolutions with groups and trains them, and refuses to merge them afterwards.
#
# Guess:  a layer that LoraConfig accepts as a target can be merged into the weights at the end, with equal outputs.
# Seen:   peft 0.21.2 takes a convolution in 4 groups (if the rank is a multiple of 4), and its adapter trains; merging
#         raises NotImplementedError. Networks with grouped or depthwise convolutions can then be used only through
#         peft.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 transformers==5.24.0 \
  peft==0.21.2
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
from peft import LoraConfig, get_peft_model


def tried(groups):
    """What becomes of a trained adapter of one convolution."""
    network = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1, groups=groups))
    model = get_peft_model(network, LoraConfig(r=4, target_modules=["0"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    x = torch.randn(2, 16, 8, 8)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    expected = model(x)
    try:
        merged = model.merge_and_unload()
    except NotImplementedError as error:
        return f"NotImplementedError: {error}"
    return f"merged, outputs {float((merged(x) - expected).abs().max()):.0e} apart"


plain, grouped = tried(1), tried(4)
print(f"one group: {plain}\n4 groups: {grouped}")
assert plain.startswith("merged")
assert grouped.startswith("NotImplementedError"), "mended: remove this file"
PY
