#!/usr/bin/env bash
# diffusers lets a model of noise (epsilon) sample on a zero-SNR schedule: its first step is the sign of the noise.
#
# Guess:  DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon") is refused or warns, since at no signal
#         at all the noise says nothing of the image and the image is (x - noise) / 0.
# Seen:   diffusers 0.42.1 takes it. Where the prediction is off by 0.1 % the first predicted image is +1 or -1 in
#         every pixel, the sign of that error, which clip_sample hides; with clip_sample=False it is infinite. No
#         warning.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 diffusers==0.42.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import warnings

import torch
from diffusers import DDIMScheduler

warnings.simplefilter("error")
x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
for clip in (True, False):
    scheduler = DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="epsilon", timestep_spacing="trailing", clip_sample=clip
    )
    scheduler.set_timesteps(10)
    image = scheduler.step(0.999 * x, scheduler.timesteps[0], x).pred_original_sample
    print(f"clip_sample={clip}: the first predicted image has the values {image.unique().tolist()}")
    assert image.unique().tolist() == ([-1, 1] if clip else [-torch.inf, torch.inf]), "mended: remove this file"
PY
