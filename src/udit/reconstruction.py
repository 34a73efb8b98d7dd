"""What a latent cache loses: images of the held-out part, decoded from it, compared with those that were encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from udit import dist
from udit.data.buckets import grouped
from udit.data.codec_config import VAECodec
from udit.data.latents import LatentCache
from udit.data.sources import parts_of
from udit.evaluation import FeaturesName
from udit.evaluation.distortion import psnr, ssim
from udit.evaluation.extractors import load_extractor
from udit.evaluation.fidelity import Extractor, Features
from udit.evaluation.judge import JudgeFeatures
from udit.evaluation.judges import kept_judge
from udit.evaluation.metrics import frechet_distance
from udit.progress import progress_bar
from udit.run.config import Run

MOST = 2000
"""Images that are decoded, evenly spaced, of more."""


@dataclass(frozen=True)
class Reconstruction:
    """How well a codec gives images back."""

    images: int
    """Of the held-out part."""
    psnr: float
    """Mean over images, in dB."""
    ssim: float
    """Mean over images."""
    distance: float | None
    """Fréchet distance of decoded to encoded images; None without features or with fewer than two images."""
    features: str | None
    """What the distance is of."""


def reconstruction(
    run: Run,
    root: Path,
    *,
    features: FeaturesName | None = None,
    weights_file: Path | None = None,
    batch_size: int = 32,
    device: torch.device | None = None,
    progress: bool = True,
) -> Reconstruction | None:
    """Decodes images of a run's held-out part from a latent cache, and compares them with the images.

    Args:
        run: data and codec of which the cache was made.
        root: the cache's folder.
        features: of the Fréchet distance; None takes the judge of these data where there is one, in the user's cache.
        weights_file: of ``features``; None downloads a published network.
        batch_size: images decoded at a time.
        device: where; the CPU if not given.
        progress: shows a bar.

    Returns:
        None where nothing is lost or held out: a codec of pixels, or ``data.test_share`` 0.

    Raises:
        UserError: the cache or an image cannot be read, or the extractor's weights cannot.
    """
    if not isinstance(run.codec, VAECodec):
        return None
    source, cache = run.data.build(), LatentCache(root)
    part = parts_of(source, run.data).test
    if not len(part):
        return None
    if len(part) > MOST:
        part = part[np.arange(MOST) * len(part) // MOST]
    extractor = load_extractor(features, weights_file, str(device or "cpu")) if features else _judge(run)
    shapes = run.data.shapes
    judged = None if features or len(shapes) < 2 else shapes[0]  # a judge knows one shape
    codec = cache.manifest.codec.build()
    device = device or dist.find_device("cpu", 0)
    ratios, similar, found = [], [], [list[Features](), list[Features]()]
    with (
        torch.no_grad(),
        progress_bar(len(part), "decoding held-out images", "image", leave=False, show=progress) as bar,
    ):
        for places in grouped(source, part):
            for start in range(0, len(places), batch_size):
                ids = part[places[start : start + batch_size]].tolist()
                images = np.stack([source.image(i) for i in ids])
                raw = torch.from_numpy(np.stack([cache.image(i) for i in ids])).to(device)
                decoded = codec.decode(codec.normalise(raw)).cpu().numpy()
                ratios.append(psnr(images, decoded))
                similar.append(ssim(images, decoded))
                if extractor is not None and judged in (None, images.shape[2:]):
                    for kept, pixels in zip(found, (decoded, np.rint(images).astype(np.uint8)), strict=True):
                        kept.append(extractor(pixels))
                bar.update(len(ids))
    distance, name = None, None
    if extractor is not None and found[0]:
        name = extractor.name
        decoded_features, image_features = (Features.joined(parts).pool for parts in found)
        distance = frechet_distance(decoded_features, image_features) if len(image_features) > 1 else None
    return Reconstruction(
        len(part), float(np.concatenate(ratios).mean()), float(np.concatenate(similar).mean()), distance, name
    )


def _judge(run: Run) -> Extractor | None:
    """The judge that earlier scores of these data have left in the user's cache."""
    source = run.data.scored().build()
    parts = parts_of(source, run.data)
    if not len(parts.judge):
        return None
    judge = kept_judge(source, parts, run.evaluation.judge_steps, mirrored=run.data.mirrored)
    return JudgeFeatures(judge) if judge else None
