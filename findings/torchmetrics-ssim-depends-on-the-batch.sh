#!/usr/bin/env bash
# torchmetrics' SSIM of an image depends on the images beside it: its range is the batch's.
#
# Guess:  structural_similarity_index_measure(reduction="none") gives each image the value that it has alone, for
#         floats in [0, 1] on the range 1, as psnr asks for.
# Seen:   torchmetrics 1.9.0 takes the range from the batch where data_range is not given: the same four images score
#         less alone than beside one that is brighter. The last batch of an evaluation then counts otherwise than the
#         rest.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 torchmetrics==1.9.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

generator = torch.Generator().manual_seed(0)
images = 0.4 + 0.2 * torch.rand(4, 1, 32, 32, generator=generator)
decoded = images + 0.02 * torch.randn(images.shape, generator=generator)
bright = torch.rand(1, 1, 32, 32, generator=generator)
alone = ssim(decoded, images, reduction="none")
beside = ssim(torch.cat([decoded, bright]), torch.cat([images, bright]), reduction="none")[:4]
fixed = [
    ssim(decoded, images, reduction="none", data_range=1.0),
    ssim(torch.cat([decoded, bright]), torch.cat([images, bright]), reduction="none", data_range=1.0)[:4],
]
print(f"alone {alone.mean():.4f}, beside a brighter image {beside.mean():.4f}, with data_range=1 {fixed[0].mean():.4f}")
assert float((fixed[0] - fixed[1]).abs().max()) < 1e-6
assert float((beside - alone).min()) > 0.004, "mended: remove this file"
PY
