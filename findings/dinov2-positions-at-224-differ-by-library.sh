#!/usr/bin/env bash
# The same DINOv2 weights at 224 pixels: timm and transformers resize the position table by other filters.
#
# Guess:  DINOv2's table is of 37x37 patches (518 pixels); at 224 pixels both libraries make the same 16x16 of it, so that
#         features of the same weights, and a Fréchet distance of these, do not depend on which library loaded them.
# Seen:   timm 1.0.31 shrinks by bicubic interpolation with antialiasing, transformers 5.24.0 without it. For a table of
#         noise they differ by 80 % of its norm, for a smooth one (up to 4 waves across) by 5 %. With antialias=False
#         timm's are transformers' to the bit. Neither is announced; scores name the weights and not the filter.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 timm==1.0.31 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
from timm.layers import resample_abs_pos_embed
from transformers import Dinov2Config, Dinov2Model

torch.manual_seed(0)
WIDTH, SIDE = 32, 37
config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=518, patch_size=14)
embeddings = Dinov2Model(config).eval().embeddings
waves = torch.arange(5).repeat(7)[:WIDTH] * torch.linspace(0, 2 * torch.pi, SIDE)[:, None]  # 0 to 4 across
smooth = (waves.sin()[:, None] + waves.cos()[None]).reshape(1, -1, WIDTH)
differences = {}
for name, table in (("noise", torch.randn(1, SIDE**2, WIDTH)), ("smooth", smooth)):
    whole = torch.cat([torch.zeros(1, 1, WIDTH), table], 1)
    with torch.no_grad():
        embeddings.position_embeddings.copy_(whole)
        its = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 16 * 16, WIDTH), 224, 224)
        timms, plain = (resample_abs_pos_embed(whole, [16, 16], num_prefix_tokens=1, antialias=on) for on in (True, False))
    differences[name] = float((timms - its).norm() / its.norm())
    print(f"{name}: timm differs by {differences[name]:.1%} of the norm, without antialiasing by {(plain - its).norm():g}")
    assert torch.equal(plain, its), "changed"
assert differences["noise"] > 0.5 and differences["smooth"] > 0.005, "mended: remove this file"
PY
