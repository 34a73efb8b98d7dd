#!/usr/bin/env bash
# torch-fidelity goes on scoring against the statistics of images that are no longer there.
#
# Guess:  input2_cache_name="reference" saves the time of a second pass over the same folder; where its images have
#         changed, their features are computed anew.
# Seen:   torch-fidelity 0.4.0 knows cached features by the given name and those of network, layer and precision. A
#         folder whose every image was replaced, or another folder under the same name, gets the old numbers, in
#         silence: here a distance of 0 to images that are not in it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0
cat > "$place/scores.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_base import FeatureExtractorBase


class Pixels(FeatureExtractorBase):
    """The first 16 values of an image as its features: no weights are needed."""

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("values",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "values"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images):
        return (images.float().flatten(1)[:, :16],)


def fill(folder, highest):
    """64 images of noise up to a level, the same for the same level."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(highest).integers(0, highest, (64, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(values):
        Image.fromarray(image).save(folder / f"{i}.png")
    return str(folder)


def distance(**words):
    names = {"feature_extractor": "pixels", "fid": True, "cuda": False, "verbose": False}
    return torch_fidelity.calculate_metrics(**names, **words)["frechet_inception_distance"]


torch_fidelity.register_feature_extractor("pixels", Pixels)
place = Path(sys.argv[1])
ours, reference = fill(place / "ours", 250), fill(place / "reference", 250)
cached = {"input2_cache_name": "reference", "cache_root": str(place / "cache")}
before = distance(input1=ours, input2=reference, **cached)
fill(place / "reference", 100)
after = distance(input1=ours, input2=reference, **cached)
true = distance(input1=ours, input2=reference)
print(f"the same images: {before:.2f}; the reference replaced: {after:.2f}; without the cache: {true:.2f}")
assert abs(before) < 1e-3 < 1 < true
assert after == before, "mended: remove this file"
PY
OMP_NUM_THREADS=1 "$place/venv/bin/python" "$place/scores.py" "$place" 2> /dev/null
