#!/usr/bin/env bash
# DDP regroups its buckets after the first backward pass, so that a resumed run of three ranks ends at other bits.
#
# Guess:  gradients are averaged in the same order in each step, and find_unused_parameters=True costs time alone: a run
#         that starts again from a checkpoint takes the same steps without it.
# Seen:   torch 2.14.1, gloo, 3 ranks. Buckets are rebuilt in the order in which gradients came, after the first backward
#         pass of a process, which the first step of a resumed run is once more. The sum of an element depends on its
#         place in a bucket, so that its last bits change. With find_unused_parameters=True buckets stay as they were. Two
#         ranks hide it, as a + b is b + a.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy
cat > "$place/sums.py" <<'PY'
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

warnings.filterwarnings("ignore")
dist.init_process_group("gloo")


def differ(search: bool) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(61, 61) for _ in range(7)))
    network = DistributedDataParallel(model, find_unused_parameters=search, bucket_cap_mb=0.02)
    x = torch.randn(5, 61, generator=torch.Generator().manual_seed(dist.get_rank()))
    found = []
    for _ in range(3):
        network.zero_grad()
        network(x).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    return sum(int((a != b).sum()) for a, b in zip(found[0], found[1], strict=True))


plain, searched = differ(False), differ(True)
if dist.get_rank() == 0:
    print("torch", torch.__version__, "gradients that differ between step 1 and 2:", plain, "with the search:", searched)
dist.destroy_process_group()
sys.exit(0 if plain and not searched else 1)
PY
OMP_NUM_THREADS=1 "$place/venv/bin/torchrun" --standalone --nproc_per_node=3 "$place/sums.py" 2>/dev/null
