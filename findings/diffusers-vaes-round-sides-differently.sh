#!/usr/bin/env bash
# diffusers' VAEs take sides that are no multiple of 8 without a word: one returns a smaller image, another a larger one.
#
# Guess:  an image of 68x68 is refused, or padded and cut again, so that decoding returns 68x68; and AutoencoderTiny, which
#         stands in for AutoencoderKL, makes latents of the same size.
# Seen:   diffusers 0.42.1: AutoencoderKL's latents are of 8x8 and its image of 64x64, AutoencoderTiny's of 9x9 and 72x72.
#         Neither warns. AutoencoderDC refuses, in the words of pixel_unshuffle.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 diffusers==0.42.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

WIDTHS = (8, 8, 8, 8)
kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
large = AutoencoderKL(block_out_channels=WIDTHS, norm_num_groups=4, layers_per_block=1, **kinds).eval()
small = AutoencoderTiny(encoder_block_out_channels=WIDTHS, decoder_block_out_channels=WIDTHS).eval()
sides = {}
with torch.no_grad():
    for side in (64, 68):
        x = torch.zeros(1, 3, side, side)
        latents = {"AutoencoderKL": large.encode(x).latent_dist.mode(), "AutoencoderTiny": small.encode(x).latents}
        for name, z in latents.items():
            decoded = (large if name == "AutoencoderKL" else small).decode(z).sample
            sides[name, side] = z.shape[-1], decoded.shape[-1]
            print(f"{name}, {side}x{side}: latents of {z.shape[-1]}, decoded to {decoded.shape[-1]}")
assert sides["AutoencoderKL", 64] == sides["AutoencoderTiny", 64] == (8, 64)
assert sides["AutoencoderKL", 68] == (8, 64), "changed: remove this file"
assert sides["AutoencoderTiny", 68] == (9, 72), "changed: remove this file"
PY
