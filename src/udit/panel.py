"""Scores in the spaces of published networks and of a judge: ``score_run`` samples, ``score_samples`` reads files.

Several spaces are scored by one pass over the images; see ``evaluation.standard`` for the numbers and their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from udit import dist
from udit.data.sources import Labels, parts_of
from udit.data.vae import cached_sha256
from udit.errors import UserError
from udit.evaluation.archive import keep
from udit.evaluation.extractors import default_features, load_extractor
from udit.evaluation.fidelity import Extractor
from udit.evaluation.gathered import Gathered
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import JudgeFeatures
from udit.evaluation.protocol import Protocol, check_model, find_protocol
from udit.evaluation.rows import SPACE, Rows
from udit.evaluation.sets import Reference, read_images, read_reference, reference_of
from udit.evaluation.shards import Shards, drawing_of, held_out_captions, labels_for, seeds_of, shards_of
from udit.evaluation.standard import Scores, check_features, score_panel
from udit.evaluation.trust import warn_of_weak
from udit.files import check_room
from udit.progress import progress_shown
from udit.run.scorable import require_scorable
from udit.scoring import (
    JUDGE,
    Changes,
    draw_samples,
    evaluation_folder,
    image_shape,
    settings_of,
)
from udit.store import load

if TYPE_CHECKING:
    from udit.assemble import System
    from udit.run.config import Run


def score_run(
    run: str | Path,
    *,
    features: str = "inception",
    weights_file: Path | None = None,
    reference: Path | None = None,
    protocol: str | None = None,
    num_samples: int | None = None,
    sampling: Changes | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Scores | None:
    """Scores a run in the space of one network's features; see ``score_run_panel``.

    Of Inception these are the literature's FID, sFID, IS and KID, with MIND, precision, recall, density and coverage.
    """
    found = score_run_panel(
        run,
        (features,),
        weights_file=weights_file,
        reference=reference,
        protocol=protocol,
        num_samples=num_samples,
        sampling=sampling,
        device=device,
        progress=progress,
    )
    return found[0] if found else None


def score_run_panel(
    run: str | Path,
    features: Sequence[str],
    *,
    weights_file: Path | None = None,
    reference: Path | None = None,
    protocol: str | None = None,
    num_samples: int | None = None,
    sampling: Changes | None = None,
    model: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[Scores]:
    """Scores a run's images in the spaces of several networks, by one pass over them.

    Writes RUN/evaluation/metrics-PROTOCOL.json, or metrics-FEATURES.json without a protocol, and keeps the scores of
    each setting under a name of its own, with a digest of the setting behind it, beside the features of the images by
    which ``evaluation.compare.paired`` compares two settings or models seed by seed. References are read before images
    are sampled.

    Args:
        run: folder of a training run.
        features: whose features are compared (``extractors.load_extractor``); "judge" takes the run's own classifier,
            which ``evaluate`` trains.
        weights_file: weights of the network, of one alone; downloaded if None, for "judge" RUN/evaluation/judge.
            safetensors.
        reference: a ``.npz`` of reference statistics or images, or a folder; the run's training images if None.
        protocol: name of a protocol, which sets number of samples, sampling and features.
        num_samples: images to sample; the run's own setting if None.
        sampling: changes of the run's own sampling setting.
        model: a model folder of the run with other weights; the run's own if None.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: shows a progress bar.

    Returns:
        The scores in each space with their protocol; none on ranks other than 0.

    Raises:
        UserError: no run, or settings, protocol, weights or reference that do not fit it.
        RunError: the disk is full, or another rank is gone.
    """
    values, config, chosen = settings_of(run, num_samples, sampling)
    if protocol is not None:
        given = [*(["num_samples"] if num_samples is not None else []), *sorted(sampling or {})]
        pinned = _fitting_protocol(protocol, values, given, reference)
        config = config.replace(
            num_samples=pinned.num_samples,
            labels=pinned.labels,
            first_seed=pinned.first_seed,
            batch_size=pinned.batch_size,
        )
        chosen, features = pinned.sampling, (pinned.features,)
    _check_alone(weights_file, features)
    folder = evaluation_folder(run)
    own = {"judge": folder / JUDGE}
    prompts = None if values.text is None else held_out_captions(values, config.num_samples)
    with dist.joined(device) as world, progress_shown(progress):
        extractors = [load_extractor(name, weights_file or own.get(name), str(world.device)) for name in features]
        system = load(model or run)
        weights = system.fingerprint
        shards = shards_of(weights, config, chosen, folder, prompts)
        against: list[Reference] = []
        if world.size == 1:  # several ranks would wait for the features of the reference, and give up
            against = [_reference(values, extractor, reference, shards, system) for extractor in extractors]
        draw_samples(system, shards, config, chosen, world, progress, prompts)
        if not world.is_main:
            return []
        against = against or [_reference(values, extractor, reference, shards, system) for extractor in extractors]
        subject = {"run": str(run), "weights": weights, "checkpoint_step": system.config.steps}
        classes = system.config.classes.trained
        labels = (
            np.array(labels_for(config.num_samples, classes, config.labels, config.first_seed)) if classes else None
        )
        gathered: list[Gathered] = []
        found = score_panel(
            shards.images(),
            list(zip(extractors, against, strict=True)),
            subject=subject,
            protocol={"name": protocol, **drawing_of(config, chosen, prompts)},
            labels=labels,
            keep=lambda seen, _: gathered.append(seen),
        )
        for place, (name, seen) in enumerate(zip(features, gathered, strict=True)):
            extractor, scores = extractors[place], found[place]
            if isinstance(extractor, JudgeFeatures) and name == "judge" and weights_file in (None, folder / JUDGE):
                scores = found[place] = scores.replace(warning=_weakness(values, extractor))
            facts = seeds_of(config, classes) | {key: scores.protocol[key] for key in SPACE}
            rows_of(seen, extractor, against[place], labels, facts).save(folder, scores.setting)
            keep(scores, folder / f"metrics-{protocol or slug(name)}.json")
        shards.remove()
        return found


def slug(features: str) -> str:
    """A name of features in a file's name: without its source, which the scores name."""
    return features.partition(":")[0]


def score_samples(
    images: str | Path,
    reference: str | Path,
    *,
    features: str | None = None,
    weights_file: Path | None = None,
    device: str = "auto",
) -> Scores:
    """Scores images generated by any tool against a reference; see ``score_samples_panel``."""
    names = (features or default_features(weights_file),)
    return score_samples_panel(images, reference, names, weights_file=weights_file, device=device)[0]


def score_samples_panel(
    images: str | Path,
    reference: str | Path,
    features: Sequence[str],
    *,
    weights_file: Path | None = None,
    device: str = "auto",
) -> list[Scores]:
    """Scores images generated by any tool against a reference, in several spaces by one pass over them.

    Args:
        images: a folder of images, or a ``.npz`` with ``arr_0`` (uint8 [N, H, W, C]).
        reference: a ``.npz`` of reference statistics or images, or a folder.
        features: whose features are compared (``extractors.load_extractor``).
        weights_file: weights of the network, of one alone; downloaded if None, required for "judge".
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: images, weights or a reference that cannot be used.
    """
    _check_alone(weights_file, features)
    found = read_images(Path(images))
    on = str(dist.start(device).device)
    spaces = []
    for name in features:
        extractor = load_extractor(name, weights_file, on)
        spaces.append((extractor, read_reference(Path(reference), extractor)))
        check_features(*spaces[-1], found.shape)
    return score_panel(
        found,
        spaces,
        subject={"samples": str(images)},
        protocol={"name": "samples of another program"},
    )


def rows_of(
    seen: Gathered, extractor: Extractor, reference: Reference, labels: Labels | None, facts: dict[str, Any]
) -> Rows:
    """The kept features of a pass over images, to be compared with those of other ways to draw the same seeds."""
    right = None
    if seen.classes is not None and labels is not None:
        right = (seen.classes == labels)[np.arange(len(seen.rows)) * seen.count // len(seen.rows)]
    return Rows(seen.rows, right, reference.pool, reference.features, facts | {"inception": extractor.inception})


def _check_alone(weights_file: Path | None, features: Sequence[str]) -> None:
    """Refuses one file of weights for several networks."""
    if weights_file is not None and len(features) > 1:
        raise UserError(f"--weights-file is {weights_file} and --features names {len(features)}; give NAME:FILE")


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


def _weakness(run: Run, judge: JudgeFeatures) -> str | None:
    """A warning where a run's own judge is weak; None where it is not, or its data are not here."""
    try:
        source = run.data.scored().build()
        parts = parts_of(source, run.data)
        require_scorable(source.labels, parts)
    except UserError:
        return None
    return warn_of_weak(judge.judge, source, parts)


def _reference(run: Run, extractor: Extractor, path: Path | None, shards: Shards, system: System) -> Reference:
    """What the images of a run will be compared with, once it is certain that they can be.

    Raises:
        UserError: a reference that cannot be used, or no room for the samples.
    """
    if path is not None:
        found = read_reference(path, extractor)
    else:
        source = run.data.scored().build()
        found = reference_of(ImageSet.of_source(source, parts_of(source, run.data).train), extractor)
    shape = image_shape(system)
    check_features(extractor, found, shape)
    check_room(shards.folder.parent, shards.bytes_missing(shape))
    return found
