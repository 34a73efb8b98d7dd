#!/usr/bin/env bash
# accelerate's save_state, load_state and skip_first_batches go on with other samples than the unbroken run.
#
# Guess:  the documented way to go on within an epoch (load the state, skip the batches that were done) gives the
#         samples that the unbroken run gives next, since the random states are saved with the rest.
# Seen:   accelerate 1.15.0 restores the random state from after the epoch's order was drawn, so the resumed loader
#         draws the next epoch's order and skips its first batches: some samples of the broken epoch come twice, others
#         never. With use_seedable_sampler=True alone the first epoch's order comes again. Exact is that option
#         together with set_epoch on both loaders.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 accelerate==1.15.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset


def prepared(seedable):
    """An accelerator and its loader of twelve samples, three in a batch."""
    set_seed(0)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    model = torch.nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.arange(12)), batch_size=3, shuffle=True)
    _, _, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1), loader)
    return accelerator, loader


def batches(loader, epoch=None):
    """The samples of an epoch."""
    if epoch is not None:
        loader.set_epoch(epoch)
    return [batch.tolist() for (batch,) in loader]


for seedable, told in ((False, False), (True, False), (True, True)):
    place = tempfile.mkdtemp()
    accelerator, loader = prepared(seedable)
    first, second = batches(loader, 0 if told else None), []
    if told:
        loader.set_epoch(1)
    for i, (batch,) in enumerate(loader):
        second.append(batch.tolist())
        if i == 1:
            accelerator.save_state(place)
    third = batches(loader, 2 if told else None)
    accelerator, loader = prepared(seedable)
    accelerator.load_state(place)
    rest = batches(accelerator.skip_first_batches(loader, 2), 1 if told else None)
    print(f"use_seedable_sampler={seedable}, set_epoch={told}: unbroken {second[2:]}, resumed {rest}")
    wrong = {(False, False): third[2:], (True, False): first[2:], (True, True): second[2:]}[seedable, told]
    assert rest == wrong, "mended: remove this file"
PY
