"""``evaluate``: samples from a run and scores the images by a judge of its data; ``panel`` has other features.

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
from udit.data.sources import Parts, Source, parts_of
from udit.demos.find import is_demo
from udit.dist import World
from udit.errors import UserError
from udit.evaluation import npz
from udit.evaluation.archive import keep, path_of
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge_network import NAME
from udit.evaluation.judges import judge_of
from udit.evaluation.report import Report
from udit.evaluation.score import score_with_judge
from udit.evaluation.shards import Shards, labels_for, seeds_of, shards_of
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
    values, config, chosen = settings_of(run, num_samples, sampling)
    values.model.refuse_clips("scoring")
    if not values.model.num_classes:
        kind, instead = "is unconditional", "train one with classes"
        if values.text is not None:
            kind = "takes texts"
            instead = "score it with --features inception, by the captions of its held-out images"
        raise UserError(f"class agreement and class features need labels and this model {kind}; {instead}")
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
                    keep=lambda rows: replace(rows, facts={**rows.facts, **facts}).save(folder, protocol),
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


def draw_samples(
    system: System,
    shards: Shards,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    world: World,
    progress: bool = True,
    prompts: Sequence[str] | None = None,
) -> None:
    """Samples the images of ``shards`` that are not on disk yet, each rank its share, and waits for all ranks.

    Args:
        system: not fused.
        shards: of ``shards_of``.
        config: labels, seeds and batch size.
        sampling: the sampling setting.
        world: the ranks.
        progress: shows a progress bar.
        prompts: one for each image, of a model that takes texts.

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
            said = None if prompts is None else prompts[places.start : places.stop]
            options: dict[str, Any] = {"sampling": sampling, "batch_size": len(places), "on_step": bar.update}
            batches = fast.generate(seeds, own, prompts=said, **options)
            shards.write(shard, torch.cat(list(batches)).numpy())
        world.barrier()


def evaluation_folder(run: str | Path) -> Path:
    """Where scores of a run go: RUN/evaluation; of a demo, whose files are the library's, runs/demo-NAME/evaluation."""
    return (read_run_config(run).out if is_demo(run) else Path(run)) / "evaluation"


def settings_of(
    run: str | Path, num_samples: int | None, sampling: Changes | None
) -> tuple[Run, EvaluationConfig, SamplingConfig]:
    """The run, and its settings of evaluation and sampling with the changes that were asked for."""
    values = read_run_config(run)
    config = values.evaluation if num_samples is None else values.evaluation.replace(num_samples=num_samples)
    return values, config, values.sampling.replace(**sampling or {})


def image_shape(system: System) -> tuple[int, int, int]:
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
    shape = image_shape(system)
    check_room(folder, shards.bytes_missing(shape) + shards.bytes(shape))
    return source, parts


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
