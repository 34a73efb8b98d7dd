#!/usr/bin/env bash
# Looking at a Schedule-Free average changes the training: eval() and train() do not cancel to the bit.
#
# Guess:  optimizer.eval() shows the averaged weights and optimizer.train() puts the training weights back, so a run with
#         a preview in the middle ends with the same bits as one without.
# Seen:   schedulefree 1.4.1 moves the weights there and back by arithmetic in their own precision; the final weights
#         differ in their last bits. Saving a checkpoint from eval() has the same effect, so a resumed run is not the
#         unbroken one. Exact resuming needs a copy for the average and a checkpoint taken while in train mode.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 schedulefree==1.4.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from schedulefree import AdamWScheduleFree


def trained(preview: bool) -> torch.Tensor:
    torch.manual_seed(0)
    network = torch.nn.Linear(64, 64)
    optimizer = AdamWScheduleFree(network.parameters(), lr=0.1, warmup_steps=3)
    optimizer.train()
    for step in range(20):
        if preview and step == 5:
            optimizer.eval()
            optimizer.train()
        loss = (network(torch.full((2, 64), step / 7)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.eval()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


plain, again, looked_at = trained(False), trained(False), trained(True)
changed = int((plain != looked_at).sum())
print("schedulefree", version("schedulefree"), "torch", torch.__version__)
print("two equal runs differ in", int((plain != again).sum()), "weights; one with a preview in", changed, "of", len(plain))
print("largest difference", float((plain - looked_at).abs().max()))
assert torch.equal(plain, again), "the run itself is not repeatable"
assert changed > 0, "eval() and train() cancel now"
PY
