#!/usr/bin/env bash
# Triton's interpreter multiplies the bits of bfloat16 numbers, and cuts bits off where a GPU rounds.
#
# Guess:  TRITON_INTERPRET=1 runs a kernel on bfloat16 tensors as a GPU would, up to the order of sums.
# Seen:   triton 3.8.0 keeps bfloat16 as uint16. tl.dot of ones by ones, 16 long, gives 4228120576 (16 * 16256**2)
#         and not 16, without a warning. A float32 of 1 + 3/512, nearer to 1 + 1/128 than to 1, is stored as 1. Tests of
#         kernels in bfloat16 say little there, and those with products must be of float16.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check triton==3.8.0 torch==2.14.1 numpy
cat > "$place/kernel.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def product(X, OUT, N: tl.constexpr):
    n = tl.arange(0, N)
    x = tl.load(X + n[:, None] * N + n[None, :])
    tl.store(OUT + n[:, None] * N + n[None, :], tl.dot(x, x))


@triton.jit
def cast(X, OUT, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(OUT + n, tl.load(X + n).to(OUT.dtype.element_ty))


ones, out = torch.ones(16, 16, dtype=torch.bfloat16), torch.empty(16, 16)
product[(1,)](ones, out, 16)
between, stored = torch.full((16,), 1 + 3 / 512), torch.empty(16, dtype=torch.bfloat16)
cast[(1,)](between, stored, 16)
print("triton", triton.__version__, "ones by ones:", float(out[0, 0]), "of 16;", float(between[0]), "stored as", float(stored[0]))
assert float(out[0, 0]) != 16, "products are right now"
assert float(stored[0]) != float(between[0].bfloat16()), "bfloat16 is rounded now"
PY
TRITON_INTERPRET=1 "$place/venv/bin/python" "$place/kernel.py"
