#!/usr/bin/env bash
# A sequence that is padding alone: MultiheadAttention gives NaN or zeros, by need_weights and by no_grad.
#
# Guess:  nn.MultiheadAttention computes one function; whether its weights are asked for, gradients are on or it is in
#         evaluation changes rounding at most. Where every key is masked, it is NaN, as softmax's 0 / 0 is.
# Seen:   torch 2.14.1 gives zeros through scaled_dot_product_attention (need_weights=False), NaN through its own
#         softmax (need_weights=True, the default), and NaN by the fast path that eval() under no_grad takes with
#         either. A text encoder that trains well on an empty prompt may give NaN when it samples.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch

torch.manual_seed(0)
layer = torch.nn.MultiheadAttention(16, 2, batch_first=True)
x, padding = torch.randn(2, 4, 16), torch.tensor([[False] * 4, [True] * 4])
found = {}
for mode in ("training", "evaluation"):
    layer.train(mode == "training")
    for weights in (False, True):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                y, _ = layer(x, x, x, key_padding_mask=padding, need_weights=weights)
            found[mode, weights, gradients] = "NaN" if y[1].isnan().all() else f"{float(y[1].detach().abs().max()):g}"
            print(f"{mode}, need_weights={weights}, gradients {gradients}: {found[mode, weights, gradients]}")
zeros = [key for key, value in found.items() if value == "0"]
assert zeros == [("training", False, True), ("training", False, False), ("evaluation", False, True)], (
    "mended: remove this file"
)
PY
