#!/usr/bin/env bash
# diffusers' DiT embeds time with other frequencies than the DiT paper's program, for which its weights were trained.
#
# Guess:  DiTTransformer2DModel computes the DiT of the paper: frequencies exp(-ln(10000) i / 128) for i = 0..127, and
#         layer norms with epsilon 1e-6.
# Seen:   diffusers 0.42.1 divides by 127, and one of the two norms of a block has epsilon 1e-5 by default. Converted
#         weights give other outputs than the program that they come from.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import math

import diffusers
import torch
from diffusers import DiTTransformer2DModel

torch.manual_seed(0)
dit = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
    num_embeds_ada_norm=10,
)
block = dit.transformer_blocks[0]
found = block.norm1.emb.time_proj(torch.tensor([500.0]))[0]
angles = {divisor: 500 * torch.exp(-math.log(10000) * torch.arange(128) / divisor) for divisor in (127, 128)}
errors = {d: float((torch.cat([a.cos(), a.sin()]) - found).abs().max()) for d, a in angles.items()}
print("diffusers", diffusers.__version__, "error of the embedding of t = 500 by divisor:", errors)
print("epsilons of a block's norms:", block.norm1.norm.eps, block.norm3.eps)
assert errors[127] < 1e-3 < 1 < errors[128], "the frequencies are others now"
assert (block.norm1.norm.eps, block.norm3.eps) == (1e-6, 1e-5), "the epsilons are others now"
PY
