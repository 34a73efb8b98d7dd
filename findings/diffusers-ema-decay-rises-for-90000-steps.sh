#!/usr/bin/env bash
# diffusers' EMAModel(decay=0.9999) averages with that decay from step 90,000 on: until then with (1 + n) / (10 + n).
#
# Guess:  the decay is the one that is given, from the first step on; use_ema_warmup=False, the default, says that there is
#         no warm-up.
# Seen:   diffusers 0.42.1 takes the smaller one of decay and (1 + n) / (10 + n) whatever use_ema_warmup says (True selects
#         another formula). After 1,000 steps the decay is 0.991: the average is of about 110 steps, not of the 1,000 behind
#         it. A short training's EMA is hardly one, and weights averaged by other programs with the same decay are
#         others. min_decay=0.9999 gives the constant.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 diffusers==0.42.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
from diffusers.training_utils import EMAModel


def decays(**options):
    weight = torch.nn.Parameter(torch.zeros(()))
    average = EMAModel([weight], decay=0.9999, **options)
    found = {}
    for step in range(1, 100_001):
        if step in (10, 1_000, 10_000, 100_000):
            average.optimization_step = step - 1
            average.step([weight])
            found[step] = round(average.cur_decay_value, 6)
    return found


plain, constant = decays(), decays(min_decay=0.9999)
print("decay=0.9999:                  ", plain)
print("decay=0.9999, min_decay=0.9999:", constant)
assert {*constant.values()} <= {0.9999}
assert plain[1_000] < 0.992 and plain[10_000] < 0.9992 and plain[100_000] == 0.9999, "changed: remove this file"
PY
