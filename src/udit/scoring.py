"""Scoring as library functions: ``evaluate`` and ``score_run`` sample from a run first, ``score_samples`` scores files.

Images are sampled into shards on disk, so that an interrupted job continues where it was, and are read from them in
chunks; started by ``torchrun``, every rank samples its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from udit import dist
from udit.data.sources import parts_of
from udit.data.vae import cached_sha256
from udit.dist import World
from udit.errors import UserError
from udit.evaluation import FeaturesName, npz
from udit.evaluation.extractors import load_extractor
from udit.evaluation.image_set import ImageSet
from udit.evaluation.protocol import Protocol, check_model, find_protocol
from udit.evaluation.report import Report
from udit.evaluation.score import score_with_judge
from udit.evaluation.sets import read_images, read_reference, reference_of
from udit.evaluation.shards import Shards, labels_for
from udit.evaluation.standard import Scores, score
from udit.files import write_text
from udit.images import grid, save_png
from udit.progress import progress_bar, progress_shown
from udit.store import load, read_run_config

if TYPE_CHECKING:
    from udit.assemble import System
    from udit.diffusion.config import SamplingConfig
    from udit.run.config import EvaluationConfig, Run

JUDGE = "judge.safetensors"
Changes = Mapping[str, Any]
"""Fields of ``SamplingConfig`` that differ from the run's own, e.g. ``{"steps": 20}``."""


def evaluate(
    run: str | Path,
    *,
    num_samples: int | None = None,
    sampling: Changes | None = None,
    again: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Report | None:
    """Scores a run with a small classifier that is trained on a part of the run's data the generator never saw.

    Writes RUN/evaluation: ``metrics.json``, ``report.md``, ``grid.png``, ``samples.npz`` and the classifier. The scores
    compare models on this data set; they are not the FID of the literature (``score_run`` computes that).

    Args:
        run: folder of a training run, of a model with classes.
        num_samples: images to sample; the run's own setting if None.
        sampling: changes of the run's own sampling setting.
        again: scores even if there is a report of the same weights and settings, which is returned otherwise.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: shows a progress bar.

    Returns:
        The scores with their protocol; None on ranks other than 0.

    Raises:
        UserError: no run, a model without classes, too few images in a part of the data, or an impossible setting.
        RunError: the disk is full, or another rank is gone.
    """
    values, config, chosen = _settings(run, num_samples, sampling)
    if not values.model.num_classes:
        raise UserError(
            "class agreement and class features need labels and this model is unconditional; train one with classes"
        )
    folder = Path(run) / "evaluation"
    with dist.joined(device) as world, progress_shown(progress):
        system = load(run)
        weights = system.fingerprint
        protocol: dict[str, Any] = {
            "weights": weights,
            "checkpoint_step": system.config.steps,
            "sampling": chosen.model_dump(mode="json"),
            "evaluation": config.model_dump(mode="json"),
            "labels": config.labels,
            "data": values.data.kind,
        }
        report = None if again else Report.read(folder / "metrics.json", protocol)
        shards = shards_of(weights, config, chosen, folder)
        if world.agree(int(report is None)):
            draw_samples(system, shards, config, chosen, world, progress)
            if world.is_main:
                source = values.data.build()
                parts = parts_of(source, values.data)
                labels = labels_for(config.num_samples, values.model.num_classes, config.labels, config.first_seed)
                images = shards.images()
                report = score_with_judge(images, labels, source, parts, config, protocol, folder / JUDGE)
                _write(folder, report, images, labels, system.config.id2label)
        if world.is_main:
            shards.remove()
        return report if world.is_main else None


def score_run(
    run: str | Path,
    *,
    features: FeaturesName = "inception",
    weights_file: Path | None = None,
    reference: Path | None = None,
    protocol: str | None = None,
    num_samples: int | None = None,
    sampling: Changes | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Scores | None:
    """Scores a run as the literature does: FID, sFID, IS, KID, precision and recall by a published network's features.

    Writes RUN/evaluation/metrics-PROTOCOL.json, or metrics-FEATURES.json without a protocol.

    Args:
        run: folder of a training run.
        features: whose features are compared; "judge" takes the run's own classifier, which ``evaluate`` trains.
        weights_file: weights of the network; downloaded if None, for "judge" RUN/evaluation/judge.safetensors.
        reference: a ``.npz`` of reference statistics or images, or a folder; the run's training images if None.
        protocol: name of a protocol, which sets number of samples, sampling and features.
        num_samples: images to sample; the run's own setting if None.
        sampling: changes of the run's own sampling setting.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: shows a progress bar.

    Returns:
        The scores with their protocol; None on ranks other than 0.

    Raises:
        UserError: no run, or settings, protocol, weights or reference that do not fit it.
        RunError: the disk is full, or another rank is gone.
    """
    values, config, chosen = _settings(run, num_samples, sampling)
    if protocol is not None:
        given = [*(["num_samples"] if num_samples is not None else []), *sorted(sampling or {})]
        pinned = _fitting_protocol(protocol, values, given, reference)
        config = config.replace(
            num_samples=pinned.num_samples,
            labels=pinned.labels,
            first_seed=pinned.first_seed,
            batch_size=pinned.batch_size,
        )
        chosen, features = pinned.sampling, pinned.features
    folder = Path(run) / "evaluation"
    if features == "judge" and weights_file is None:
        weights_file = folder / JUDGE
    with dist.joined(device) as world, progress_shown(progress):
        extractor = load_extractor(features, weights_file, str(world.device))
        system = load(run)
        weights = system.fingerprint
        shards = shards_of(weights, config, chosen, folder)
        draw_samples(system, shards, config, chosen, world, progress)
        if not world.is_main:
            return None
        if reference is not None:
            against = read_reference(reference, extractor)
        else:
            source = values.data.build()
            against = reference_of(ImageSet.of_source(source, parts_of(source, values.data).train), extractor)
        subject = {"run": str(run), "weights": weights, "checkpoint_step": system.config.steps}
        facts = {"name": protocol, **drawing_of(config, chosen)}
        found = score(shards.images(), extractor, against, subject=subject, protocol=facts)
        found.write(folder / f"metrics-{protocol or features}.json")
        shards.remove()
        return found


def score_samples(
    images: str | Path,
    reference: str | Path,
    *,
    features: FeaturesName = "inception",
    weights_file: Path | None = None,
    device: str = "auto",
) -> Scores:
    """Scores images generated by any tool against a reference.

    Args:
        images: a folder of images, or a ``.npz`` with ``arr_0`` (uint8 [N, H, W, C]).
        reference: a ``.npz`` of reference statistics or images, or a folder.
        features: whose features are compared.
        weights_file: weights of the network; downloaded if None, required for "judge".
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: images, weights or a reference that cannot be used.
    """
    found = read_images(Path(images))
    extractor = load_extractor(features, weights_file, str(dist.start(device).device))
    return score(
        found,
        extractor,
        read_reference(Path(reference), extractor),
        subject={"samples": str(images)},
        protocol={"name": "samples of another program"},
    )


def drawing_of(config: EvaluationConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What generated images depend on besides the weights, as plain values."""
    return {
        "sampling": sampling.model_dump(mode="json"),
        "labels": config.labels,
        "first_seed": config.first_seed,
        "batch_size": config.batch_size,
    }


def shards_of(weights: str, config: EvaluationConfig, sampling: SamplingConfig, folder: Path) -> Shards:
    """Where the images of some weights and settings are kept until they are scored."""
    key = {"weights": weights, "drawing": drawing_of(config, sampling)}
    return Shards(folder, key, config.num_samples, config.batch_size)


def draw_samples(
    system: System,
    shards: Shards,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    world: World,
    progress: bool = True,
) -> None:
    """Samples the images of ``shards`` that are not on disk yet, each rank its share, and waits for all ranks.

    Args:
        system: not fused.
        shards: of ``shards_of``.
        config: labels, seeds and batch size.
        sampling: the sampling setting.
        world: the ranks.
        progress: shows a progress bar.

    Raises:
        RunError: the disk is full, or another rank is gone.
    """
    classes = system.config.model.num_classes
    labels = labels_for(config.num_samples, classes, config.labels, config.first_seed) if classes else None
    todo = list(shards.missing(world.rank, world.size))
    fast = system.fused().to(world.device)
    total = sum(len(shards.places(shard)) for shard in todo) * sampling.steps
    with world.together(), progress_bar(total, "sample", "step", show=progress and world.is_main) as bar:
        for shard in todo:
            places = shards.places(shard)
            own = labels[places.start : places.stop] if labels is not None else None
            seeds = [config.first_seed + i for i in places]
            batches = fast.generate(seeds, own, sampling=sampling, batch_size=len(places), on_step=bar.update)
            shards.write(shard, torch.cat(list(batches)).numpy())
        world.barrier()


def _settings(
    run: str | Path, num_samples: int | None, sampling: Changes | None
) -> tuple[Run, EvaluationConfig, SamplingConfig]:
    """The run, and its settings of evaluation and sampling with the changes that were asked for."""
    values = read_run_config(run)
    config = values.evaluation if num_samples is None else values.evaluation.replace(num_samples=num_samples)
    return values, config, values.sampling.replace(**sampling or {})


def _fitting_protocol(name: str, run: Run, given: Sequence[str], reference: Path | None) -> Protocol:
    """The protocol of a name, if it scores such a model, its reference is given, and no setting that it pins."""
    pinned = find_protocol(name)
    if given:
        raise UserError(f"{given[0]} is given and protocol {name} pins it; leave it out")
    if reference is None:
        raise UserError(f"protocol {name} scores against {pinned.reference}; give that file with --reference")
    shape, classes = (run.model.in_channels, *run.model.size), run.model.num_classes
    check_model(name, pinned, shape=shape, num_classes=classes, codec=run.codec, cached_sha256=cached_sha256)
    return pinned


def _write(folder: Path, report: Report, images: ImageSet, labels: list[int], names: tuple[str, ...]) -> None:
    """Writes the report last: it says that all else is there."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = npz.ImageStream(len(images), images.shape, images.chunks())
    npz.write(folder / "samples.npz", images=stream, labels=np.array(labels))
    columns = min(10, len(set(labels)))
    shown = min(columns * 10, len(images))
    first = torch.from_numpy(images.read(np.arange(shown)))
    save_png(grid(first, [names[label] for label in labels[:shown]], columns), folder / "grid.png", report.protocol)
    write_text(folder / "report.md", report.table() + "\n")
    report.write(folder / "metrics.json")
