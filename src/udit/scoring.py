"""Scoring as library functions: ``evaluate`` and ``score_run`` sample from a run first, ``score_samples`` scores files.

Images are sampled into shards on disk, so that an interrupted job continues where it was, and are read from them in
chunks; started by ``torchrun``, every rank samples its share.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from udit import dist
from udit.data.sources import Labels, Parts, Source, parts_of
from udit.data.vae import cached_sha256
from udit.demos.find import is_demo
from udit.dist import World
from udit.errors import UserError
from udit.evaluation import npz
from udit.evaluation.archive import keep, path_of
from udit.evaluation.extractors import default_features, load_extractor
from udit.evaluation.fidelity import Extractor
from udit.evaluation.gathered import Gathered
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import JudgeFeatures
from udit.evaluation.judge_network import NAME
from udit.evaluation.judges import judge_of
from udit.evaluation.protocol import Protocol, check_model, find_protocol
from udit.evaluation.report import Report
from udit.evaluation.rows import SPACE, Rows
from udit.evaluation.score import score_with_judge
from udit.evaluation.sets import Reference, read_images, read_reference, reference_of
from udit.evaluation.shards import Shards, labels_for
from udit.evaluation.standard import Scores, check_features, score_panel
from udit.evaluation.trust import warn_of_weak
from udit.files import check_room, write_text
from udit.images import grid, save_png
from udit.progress import progress_bar, progress_shown
from udit.run.scorable import require_scorable
from udit.store import load, read_run_config

if TYPE_CHECKING:
    from udit.assemble import System
    from udit.diffusion.config import SamplingConfig
    from udit.run.classes import Classes
    from udit.run.config import EvaluationConfig, Run

JUDGE = "judge.safetensors"
METRICS = "metrics.json"
log = logging.getLogger(__name__)
Changes = Mapping[str, Any]
"""Fields of ``SamplingConfig`` that differ from the run's own, e.g. ``{"steps": 20}``."""


def evaluate(
    run: str | Path,
    *,
    num_samples: int | None = None,
    sampling: Changes | None = None,
    again: bool = False,
    model: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Report | None:
    """Scores a run with a small classifier that is trained on a part of the run's data the generator never saw.

    Writes RUN/evaluation: ``metrics.json``, ``report.md``, ``grid.png``, ``samples.npz`` and the classifier; the report
    of each setting is also kept under a name of its own, ``metrics-DIGEST.json`` and ``report-DIGEST.md``. The scores
    compare models on this data set; they are not the FID of the literature (``score_run`` computes that). All that is
    needed besides the images, the classifier included, is checked and made before the first of them.

    Args:
        run: folder of a training run, of a model with classes; or ``demo:digits``, whose scores go to
            ``runs/demo-digits``.
        num_samples: images to sample; the run's own setting if None.
        sampling: changes of the run's own sampling setting.
        model: a model folder of the run with other weights, e.g. of ``udit ema make``; the run's own if None.
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
    values.model.refuse_clips("scoring")
    if not values.model.num_classes:
        kind = "takes texts" if values.text else "is unconditional"
        raise UserError(f"class agreement and class features need labels and this model {kind}; train one with classes")
    if values.data.condition is not None:
        raise UserError(
            f"the model sees something beside the noisy image (data.condition {values.data.condition.kind}), which "
            "scores of classes do not have; compare its samples with the images themselves (udit sample --condition)"
        )
    folder = evaluation_folder(run)
    with dist.joined(device) as world, progress_shown(progress):
        system = load(model or run)
        weights = system.fingerprint
        protocol: dict[str, Any] = {
            "weights": weights,
            "checkpoint_step": system.config.steps,
            "sampling": chosen.model_dump(mode="json"),
            "evaluation": config.model_dump(mode="json"),
            "labels": config.labels,
            "data": values.data.kind,
        }
        report = None if again else find_report(folder, protocol)
        shards = shards_of(weights, config, chosen, folder)
        classes = system.config.classes.trained
        if world.agree(int(report is None)):
            found = world.on_main(_scorable, values, folder, shards, system)
            if found is not None and world.size == 1:  # several ranks would wait for the judge, and give up
                judge = judge_of(*found, config.judge_steps, folder / JUDGE, mirrored=values.data.mirrored)
                warn_of_weak(judge, *found)
            draw_samples(system, shards, config, chosen, world, progress)
            if found is not None:
                labels = labels_for(config.num_samples, classes, config.labels, config.first_seed)
                images, facts = shards.images(), seeds_of(config, classes)
                report = score_with_judge(
                    images,
                    labels,
                    *found,
                    config,
                    protocol,
                    folder / JUDGE,
                    mirrored=values.data.mirrored,
                    keep=lambda rows: replace(rows, facts=rows.facts | facts).save(folder, protocol),
                )
                _write(folder, report, images, labels, system.config.classes)
        elif report is not None:
            by = "" if report.judge == NAME else f" by the judge of an older version, {report.judge}"
            kept = report_path(folder, report)
            log.info("these settings were scored before%s: %s; --again scores them again", by, kept)
        if world.is_main:
            shards.remove()
        return report if world.is_main else None


def find_report(folder: Path, protocol: dict[str, Any]) -> Report | None:
    """The report of a protocol in RUN/evaluation, under its own name or the plain one; None where there is none."""
    plain = folder / METRICS
    setting = json.loads(json.dumps(protocol))
    return Report.read(path_of(plain, setting), protocol) or Report.read(plain, protocol)


def report_path(folder: Path, report: Report) -> Path:
    """Where a report is in RUN/evaluation: under its own name, or, of an older version, the plain one."""
    own = path_of(folder / METRICS, report.setting)
    return own if own.is_file() else folder / METRICS


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
        chosen, features = pinned.sampling, (pinned.features,)
    if weights_file is not None and len(features) > 1:
        raise UserError(f"--weights-file is {weights_file} and --features names {len(features)}; give NAME:FILE")
    folder = evaluation_folder(run)
    own = {"judge": folder / JUDGE}
    with dist.joined(device) as world, progress_shown(progress):
        extractors = [load_extractor(name, weights_file or own.get(name), str(world.device)) for name in features]
        system = load(model or run)
        weights = system.fingerprint
        shards = shards_of(weights, config, chosen, folder)
        against: list[Reference] = []
        if world.size == 1:  # several ranks would wait for the features of the reference, and give up
            against = [_reference(values, extractor, reference, shards, system) for extractor in extractors]
        draw_samples(system, shards, config, chosen, world, progress)
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
            protocol={"name": protocol, **drawing_of(config, chosen)},
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
    if weights_file is not None and len(features) > 1:
        raise UserError(f"--weights-file is {weights_file} and --features names {len(features)}; give NAME:FILE")
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


def drawing_of(config: EvaluationConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What generated images depend on besides the weights, as plain values."""
    return {
        "sampling": sampling.model_dump(mode="json"),
        "labels": config.labels,
        "first_seed": config.first_seed,
        "batch_size": config.batch_size,
    }


def seeds_of(config: EvaluationConfig, classes: int) -> dict[str, Any]:
    """By which seeds and labels images were drawn: those of two ways with equal facts are pairs."""
    facts = {"num_samples": config.num_samples, "first_seed": config.first_seed, "labels": config.labels}
    return facts | {"classes": classes}


def rows_of(
    seen: Gathered, extractor: Extractor, reference: Reference, labels: Labels | None, facts: dict[str, Any]
) -> Rows:
    """The kept features of a pass over images, to be compared with those of other ways to draw the same seeds."""
    right = None
    if seen.classes is not None and labels is not None:
        right = (seen.classes == labels)[np.arange(len(seen.rows)) * seen.count // len(seen.rows)]
    return Rows(seen.rows, right, reference.pool, reference.features, facts | {"inception": extractor.inception})


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
    classes = system.config.classes.trained
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


def evaluation_folder(run: str | Path) -> Path:
    """Where scores of a run go: RUN/evaluation; of a demo, whose files are the library's, runs/demo-NAME/evaluation."""
    return (read_run_config(run).out if is_demo(run) else Path(run)) / "evaluation"


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


def _shape(system: System) -> tuple[int, int, int]:
    """(C, H, W) of the images that a system generates."""
    model = system.config.model
    channels, height, width = system.codec.decode(torch.zeros(1, model.in_channels, *model.size)).shape[1:]
    return channels, height, width


def _scorable(run: Run, folder: Path, shards: Shards, system: System) -> tuple[Source, Parts]:
    """A run's data and its parts, once it is certain that they can have a judge, and that there is room.

    Raises:
        UserError: too few images for a judge or a test, or no room for the samples in shards and in one file.
    """
    source = run.data.scored().build()
    parts = parts_of(source, run.data)
    require_scorable(source.labels, parts)
    shape = _shape(system)
    check_room(folder, shards.bytes_missing(shape) + shards.bytes(shape))
    return source, parts


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
    shape = _shape(system)
    check_features(extractor, found, shape)
    check_room(shards.folder.parent, shards.bytes_missing(shape))
    return found


def _write(folder: Path, report: Report, images: ImageSet, labels: list[int], classes: Classes) -> None:
    """Writes the report last: it says that all else is there."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = npz.ImageStream(len(images), images.shape, images.chunks())
    npz.write(folder / "samples.npz", images=stream, labels=np.array(labels))
    shown = labels[: min(10, len(set(labels))) * 10]
    first = torch.from_numpy(images.read(np.arange(len(shown))))
    sheet = grid(first, [classes.title(label) for label in shown], numbers=shown)
    save_png(sheet, folder / "grid.png", report.protocol)
    for path in (path_of(folder / "report.md", report.setting), folder / "report.md"):
        write_text(path, report.table() + "\n")
    keep(report, folder / METRICS)
