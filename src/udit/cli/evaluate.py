"""``udit eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from udit.cli.extractor import FeaturesName
from udit.cli.output import say
from udit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from udit.assemble import System
    from udit.diffusion.config import SamplingConfig
    from udit.dist import World
    from udit.evaluation.shards import Shards
    from udit.run.config import EvaluationConfig


def evaluate(
    target: Path,
    /,
    *,
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    features: FeaturesName = "judge",
    weights_file: Path | None = None,
    reference: Path | None = None,
    protocol: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    again: bool = False,
    progress: bool = True,
) -> int:
    """Score a run's averaged weights, or samples of any program.

    A run: samples of all classes in turn, their Fréchet distance and class agreement by a small classifier that is
    trained here, on a part of the data that the generator never saw; that compares models on this data set and is not
    the FID of the literature. With --features inception, FID, sFID, IS, KID, precision and recall. Everything is
    written to RUN/evaluation, with the protocol beside the numbers. Drawing that was cut short goes on where it was, on
    any number of ranks: torchrun --nproc_per_node=N -m udit eval RUN.

    Samples: a folder of pictures or a .npz (arr_0) and a --reference.

    Parameters
    ----------
    target
        A run folder of `udit train`, a folder of pictures, or a .npz.
    n
        Number of samples; the run's own setting if not given, as for the next three.
    steps
        Network evaluations per sample.
    guidance
        Guidance scale; 1 is none.
    sampler
        ddpm, ddim, dpmpp, unipc, flow-euler, flow-heun, edm-heun or edm-euler.
    features
        judge, inception, clip or dinov2.
    weights_file
        The network's weights; downloaded if not given. For judge on samples, RUN/evaluation/judge.safetensors.
    reference
        A .npz of `udit ref make` or ADM, or a folder of pictures; of a run, its training pictures if not given.
    protocol
        A named protocol that pins all of the above but files: adm-256 or adm-256-cfg1.5.
    out
        Where the scores of samples are written, e.g. metrics.json; nowhere if not given.
    device
        auto, cpu, cuda, cuda:N or mps.
    again
        Score again even if this protocol has been scored.
    progress
        Show the progress bar.
    """
    how = _given(steps=steps, guidance=guidance, sampler=sampler)
    if (target / "run.yaml").is_file() or not (target.is_dir() or target.suffix == ".npz"):
        if out is not None:
            raise UserError("--out is for samples; a run's scores go to RUN/evaluation")
        standard = features != "judge" or reference is not None or protocol is not None
        if not standard:
            if weights_file is not None:
                raise UserError("--weights-file is for --features; a run's own judge is trained here")
            return _judged(target, n, how, device, again, progress)
        return _standard(target, n, how, features, weights_file, reference, protocol, device, progress)
    given = sorted(_given(n=n, protocol=protocol) | how)
    if given or again:
        raise UserError(f"--{(given or ['again'])[0]} is for runs, and {target} holds samples that are drawn already")
    return _foreign(target, features, weights_file, reference, out, device)


def _foreign(
    target: Path,
    features: FeaturesName,
    weights_file: Path | None,
    reference: Path | None,
    out: Path | None,
    device: str,
) -> int:
    """Samples of any program against a reference."""
    if reference is None:
        raise UserError("samples need a --reference: a .npz of `udit ref make` or ADM, or a folder of pictures")

    from udit import dist
    from udit.cli.extractor import extractor_of
    from udit.evaluation.sets import read_pictures, read_reference
    from udit.evaluation.standard import score, tables

    images = read_pictures(target)
    extractor = extractor_of(features, weights_file, str(dist.start(device).device))
    found = score(
        images,
        extractor,
        read_reference(reference, extractor),
        subject={"samples": str(target)},
        protocol={"name": "samples of another program"},
    )
    say(tables([(str(target), found)]))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        found.write(out)
    return 0


def _standard(
    run: Path,
    n: int | None,
    how: dict[str, Any],
    features: FeaturesName,
    weights_file: Path | None,
    reference: Path | None,
    name: str | None,
    device: str,
    progress: bool,
) -> int:
    """A run under the field's scores."""
    from udit.evaluation.protocol import check_model, find_protocol
    from udit.store import read_run_config

    values = read_run_config(run)
    config, sampling = values.evaluation.replace(**_given(num_samples=n)), values.sampling.replace(**how)
    if name is not None:
        pinned = find_protocol(name)
        given = sorted(_given(n=n) | how)
        if given:
            raise UserError(f"--{given[0]} is given and protocol {name} pins it; leave it out")
        if reference is None:
            raise UserError(f"protocol {name} scores against {pinned.reference}; give that file with --reference")
        shape = (values.model.in_channels, *values.model.size)
        check_model(name, pinned, shape=shape, num_classes=values.model.num_classes, codec=values.codec)
        config = config.replace(
            num_samples=pinned.num_samples,
            labels=pinned.labels,
            first_seed=pinned.first_seed,
            batch_size=pinned.batch_size,
        )
        sampling, features = pinned.sampling, pinned.features

    from udit import dist
    from udit.cli.extractor import extractor_of
    from udit.evaluation.sets import read_reference, reference_of
    from udit.evaluation.standard import score, tables
    from udit.store import fingerprint, load

    world = dist.start(device)
    if features == "judge" and weights_file is None:
        weights_file = run / "evaluation" / "judge.safetensors"
    extractor = extractor_of(features, weights_file, str(world.device))
    system = load(run)
    weights = fingerprint(system.backbone)
    subject = {"run": str(run), "weights": weights, "checkpoint_step": system.config.steps}
    drawing = drawing_of(config, sampling)
    images, shards = draw(system, weights, config, sampling, run / "evaluation", world, progress)
    if images is not None:
        if reference is not None:
            against = read_reference(reference, extractor)
        else:
            import numpy as np

            from udit.data.sources import parts_of

            source = values.data.build()
            part = parts_of(source, values.data).train
            against = reference_of(np.stack([source.image(int(i)) for i in part]), extractor)
        found = score(images.numpy(), extractor, against, subject=subject, protocol={"name": name, **drawing})
        path = run / "evaluation" / f"metrics-{name or features}.json"
        found.write(path)
        shards.remove()
        say(tables([(run.name, found)]))
        say(f"\nwrote {path}; `udit scores` shows several side by side")
    world.barrier()
    world.close()
    return 0


def _judged(run: Path, n: int | None, given: dict[str, Any], device: str, again: bool, progress: bool) -> int:
    """A run under the judge of its own data."""
    from udit.store import read_run_config

    values = read_run_config(run)
    config = values.evaluation.replace(**_given(num_samples=n))
    how = values.sampling.replace(**given)
    if not values.model.num_classes:
        raise UserError(
            "class agreement and class features need labels and this model is unconditional; train one with classes"
        )

    from udit import dist
    from udit.evaluation.report import Report
    from udit.evaluation.score import evaluate as score
    from udit.evaluation.shards import labels_for
    from udit.store import fingerprint, load

    world = dist.start(device)
    system = load(run)
    weights = fingerprint(system.backbone)
    protocol: dict[str, Any] = {
        "weights": weights,
        "checkpoint_step": system.config.steps,
        "sampling": how.model_dump(mode="json"),
        "evaluation": config.model_dump(mode="json"),
        "labels": config.labels,
        "data": values.data.kind,
    }
    target = run / "evaluation"
    report = None if again else Report.read(target / "metrics.json", protocol)
    if world.agree(int(report is None)):
        images, shards = draw(system, weights, config, how, target, world, progress)
        if images is not None:
            from udit.data.sources import parts_of

            source = values.data.build()
            parts = parts_of(source, values.data)
            labels = labels_for(config.num_samples, values.model.num_classes, config.labels, config.first_seed)
            report = score(images, labels, source, parts, config, protocol, target / "judge.safetensors")
            _write(target, report, images, labels, system.config.id2label)
            shards.remove()
    elif world.is_main:
        shards_of(weights, config, how, target).remove()  # of a command that died when all was written
    if world.is_main:
        assert report is not None, "rank 0 has read it or made it"
        say(report.table())
        say(f"\nwrote {target}/: metrics.json, report.md, grid.png, samples.npz; the loss curve is {run}/loss.png")
    world.barrier()
    world.close()
    return 0


def drawing_of(config: EvaluationConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What the pictures depend on besides the weights, as plain values."""
    return {
        "sampling": sampling.model_dump(mode="json"),
        "labels": config.labels,
        "first_seed": config.first_seed,
        "batch_size": config.batch_size,
    }


def shards_of(weights: str, config: EvaluationConfig, sampling: SamplingConfig, parent: Path) -> Shards:
    """Where the pictures of some weights, drawn in some way, lie until they are scored."""
    from udit.evaluation.shards import Shards

    key = {"weights": weights, "drawing": drawing_of(config, sampling)}
    return Shards(parent, key, config.num_samples, config.batch_size)


def draw(
    system: System,
    weights: str,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    parent: Path,
    world: World,
    progress: bool,
) -> tuple[Tensor | None, Shards]:
    """Draws the samples of a score, each rank its shards; shards that are there already are kept.

    Returns:
        All pictures, uint8 [N, C, H, W], on rank 0, None on the others; and the shards, to be removed when scored.
    """
    import torch
    from tqdm.auto import tqdm

    from udit.evaluation.shards import labels_for

    classes = system.config.model.num_classes
    shards = shards_of(weights, config, sampling, parent)
    labels = labels_for(config.num_samples, classes, config.labels, config.first_seed) if classes else None
    todo = list(shards.missing(world.rank, world.size))
    fast = system.fused().to(world.device)
    total = sum(len(shards.places(shard)) for shard in todo) * sampling.steps
    off = None if progress and world.is_main else True
    with world.together(), tqdm(total=total, desc="sample", unit="step", disable=off) as bar:
        for shard in todo:
            places = shards.places(shard)
            own = labels[places.start : places.stop] if labels is not None else None
            seeds = [config.first_seed + i for i in places]
            batches = fast.generate(seeds, own, sampling=sampling, batch_size=len(places), on_step=bar.update)
            shards.write(shard, torch.cat(list(batches)).numpy())
        world.barrier()
    return (torch.from_numpy(shards.read()) if world.is_main else None), shards


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _write(target: Path, report: Any, images: Tensor, labels: list[int], names: tuple[str, ...]) -> None:
    import numpy as np

    from udit.files import whole_file, write_text
    from udit.images import grid, save_png

    target.mkdir(parents=True, exist_ok=True)
    with whole_file(target / "samples.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.array(labels))
    columns = min(10, len(set(labels)))
    shown = columns * 10
    save_png(
        grid(images[:shown], [names[label] for label in labels[:shown]], columns), target / "grid.png", report.protocol
    )
    write_text(target / "report.md", report.table() + "\n")
    report.write(target / "metrics.json")
