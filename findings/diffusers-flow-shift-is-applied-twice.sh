#!/usr/bin/env bash
# diffusers' flow-matching scheduler shifts the smallest noise level twice, so that its steps are not the shifted ones.
#
# Guess:  with shift 3 and n steps, FlowMatchEulerDiscreteScheduler takes the n levels of shift 1 and maps each by
#         s -> 3s / (1 + 2s), as the SD3 paper (arXiv 2403.03206, Sec. 5.3.2) shifts times.
# Seen:   diffusers 0.42.1 shifts the 1,000 training levels when it is made, spreads the n steps between the largest and
#         the smallest of these, and shifts the result again. The last level before 0 is 0.0089 in place of 0.0030, and
#         all levels between differ a little. Passing sigmas=numpy.linspace(1, 1/1000, n) to set_timesteps shifts once.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 diffusers==0.42.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler


def shifted(s):
    return 3 * s / (1 + 2 * s)


plain = np.linspace(1, 1 / 1000, 10)
scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
scheduler.set_timesteps(10)
assert np.allclose(scheduler.sigmas[:-1], plain, atol=1e-6)

scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
scheduler.set_timesteps(10)
found = scheduler.sigmas[:-1].numpy()
print("shifted once: ", shifted(plain).round(4).tolist())
print("diffusers:    ", found.astype(float).round(4).tolist())
scheduler.set_timesteps(sigmas=plain.tolist())
print("given sigmas: ", scheduler.sigmas[:-1].double().numpy().round(4).tolist())
assert np.allclose(scheduler.sigmas[:-1], shifted(plain), atol=1e-6)
assert np.isclose(found[-1], shifted(shifted(1 / 1000)), atol=1e-6), "mended: remove this file"
PY
