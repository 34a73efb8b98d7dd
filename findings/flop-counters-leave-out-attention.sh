#!/usr/bin/env bash
# Tools that count multiply-accumulates leave out scaled_dot_product_attention, and one leaves out the tokens as well.
#
# Guess:  for an attention layer of 256 tokens of 64 channels, every tool counts the two projections (4.19 M) and the two
#         products of attention (8.39 M), or says that it cannot; whether torch's function or its formula is called
#         makes no difference.
# Seen:   through F.scaled_dot_product_attention thop 0.1.1, fvcore 0.1.5 (which warns) and both backends of ptflops 0.7.5
#         count the projections alone, a third of the layer, and so does torch 2.14.1's own counter on a CPU. With the
#         formula written out (two matmuls), fvcore, torch and ptflops' aten backend count all of it; thop and ptflops'
#         default still do not. torchinfo 1.8.0 counts 16,384 both ways: a linear layer once, not for each token.
#         A model that switches to the fused call "saves" two thirds of its FLOPs in such a table.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 thop==0.1.1.post2209072238 \
  fvcore==0.1.5.post20221221 ptflops==0.7.5 torchinfo==1.8.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from thop import profile
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

TOKENS, WIDTH, HEADS = 256, 64, 4


class Layer(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.fused = fused

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(len(x), TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(len(x), TOKENS, WIDTH))


def counts(fused):
    x, shape = torch.randn(1, TOKENS, WIDTH), {"as_strings": False, "print_per_layer_stat": False}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Layer(fused)(x)
    return {
        "thop": int(profile(Layer(fused), (x,), verbose=False)[0]),
        "fvcore": FlopCountAnalysis(Layer(fused).eval(), x).total(),
        "ptflops": get_model_complexity_info(Layer(fused), (TOKENS, WIDTH), backend="pytorch", **shape)[0],
        "ptflops, aten": get_model_complexity_info(Layer(fused), (TOKENS, WIDTH), backend="aten", **shape)[0],
        "torchinfo": int(summary(Layer(fused), input_data=x, verbose=0).total_mult_adds),
        "torch": counter.get_total_flops() // 2,
    }


projections, attention = 4 * TOKENS * WIDTH**2, 2 * TOKENS**2 * WIDTH
print(f"projections {projections:,}, with attention {projections + attention:,}")
fused, written = counts(fused=True), counts(fused=False)
for name in fused:
    print(f"{name}: {fused[name]:,} of the fused call, {written[name]:,} of the formula")
assert {name for name, count in fused.items() if count == projections} == {*fused} - {"torchinfo"}, "changed"
whole = {name for name, count in written.items() if count == projections + attention}
assert whole == {"fvcore", "ptflops, aten", "torch"}, "changed"
assert fused["torchinfo"] == written["torchinfo"] == 4 * WIDTH**2, "changed"
PY
