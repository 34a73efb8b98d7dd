#!/usr/bin/env bash
# An image drawn by torchdiffeq's dopri5, SiT's default sampler, depends on the images that are drawn beside it.
#
# Guess:  samples of a batch are integrated independently, so that a seed gives the same image at any batch size.
# Seen:   torchdiffeq 0.2.5 measures the error of a step over the whole batch and chooses one step for all. A sample alone,
#         beside an easy one and beside a hard one ends at three results, a third of a per cent apart at rtol 1e-3:
#         within the tolerance, and of other bits than a fixed-step method, whose results are equal.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchdiffeq==0.2.5
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import torch
from torchdiffeq import odeint


def end(beside, **words):
    """Where the first sample ends, in float64: rounding does not matter here."""
    start = torch.tensor([[1.0], *([value] for value in beside)], dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return odeint(lambda t, x: -(x**3), start, times, **words)[-1, 0].item()


for words in ({"method": "dopri5", "rtol": 1e-3, "atol": 1e-4}, {"method": "rk4", "options": {"step_size": 1e-3}}):
    found = [end(beside, **words) for beside in ([], [0.1], [30.0])]
    print(words["method"], [f"{value:.6f}" for value in found], f"exact: {3 ** -0.5:.6f}")
    assert (len(set(found)) == 3) == (words["method"] == "dopri5"), "mended: remove this file"
PY
