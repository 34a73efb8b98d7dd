"""``udit eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from udit.cli.output import say
from udit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from udit.assemble import System
    from udit.config.diffusion import SamplingConfig
    from udit.config.run import EvaluationConfig


def evaluate(
    run: Path,
    /,
    *,
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    device: str = "auto",
    again: bool = False,
    progress: bool = True,
) -> int:
    """Score a run's averaged weights on samples of all classes in turn.

    Fréchet distance and class agreement come from a small classifier that is trained here, on a part of the data that
    the generator never saw; they compare models on this data set and are not the FID of the literature. Everything is
    written to RUN/evaluation, with the protocol beside the numbers; a finished evaluation is shown again at once.

    Parameters
    ----------
    run
        A run folder of `udit train`.
    n
        Number of samples; the run's own setting if not given, as for the next three.
    steps
        Network evaluations per sample.
    guidance
        Guidance scale; 1 is none.
    sampler
        ddpm, ddim, dpmpp, unipc, flow-euler or flow-heun.
    device
        auto, cpu, cuda, cuda:N or mps.
    again
        Score again even if this protocol has been scored.
    progress
        Show the progress bar.
    """
    from udit.store import load, read_run_config

    values = read_run_config(run)
    config = values.evaluation.replace(**_given(num_samples=n))
    how = values.sampling.replace(**_given(steps=steps, guidance=guidance, sampler=sampler))
    if not values.model.num_classes:
        raise UserError(
            "class agreement and class features need labels and this model is unconditional; train one with classes"
        )

    from udit import dist
    from udit.evaluation.report import Report
    from udit.evaluation.score import evaluate as score
    from udit.store import fingerprint

    where = dist.start(device).device
    system = load(run)
    protocol: dict[str, Any] = {
        "weights": fingerprint(system.backbone),
        "checkpoint_step": system.config.steps,
        "sampling": how.model_dump(mode="json"),
        "evaluation": config.model_dump(mode="json"),
        "labels": "balanced",
        "data": values.data.kind,
    }
    target = run / "evaluation"
    report = None if again else Report.read(target / "metrics.json", protocol)
    if report is None:
        from udit.data.sources import parts_of

        source = values.data.build()
        parts = parts_of(source, values.data)
        labels = [i % values.model.num_classes for i in range(config.num_samples)]
        images = _draw(system.fused().to(where), labels, how, config, progress)
        report = score(images, labels, source, parts, config, protocol, target / "judge.safetensors")
        _write(target, report, images, labels, system.config.id2label)
    say(report.table())
    say(f"\nwrote {target}/: metrics.json, report.md, grid.png, samples.npz; the loss curve is {run}/loss.png")
    return 0


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _draw(system: System, labels: list[int], how: SamplingConfig, config: EvaluationConfig, progress: bool) -> Tensor:
    import torch
    from tqdm.auto import tqdm

    seeds = [config.first_seed + i for i in range(len(labels))]
    with tqdm(total=len(seeds) * how.steps, desc="sample", unit="step", disable=None if progress else True) as bar:
        batches = system.generate(seeds, labels, sampling=how, batch_size=config.batch_size, on_step=bar.update)
        return torch.cat(list(batches))


def _write(target: Path, report: Any, images: Tensor, labels: list[int], names: tuple[str, ...]) -> None:
    import numpy as np

    from udit.pictures import grid, save_png

    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "samples.npz", arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.array(labels))
    columns = min(10, len(set(labels)))
    shown = columns * 10
    save_png(
        grid(images[:shown], [names[label] for label in labels[:shown]], columns), target / "grid.png", report.protocol
    )
    (target / "report.md").write_text(report.table() + "\n", encoding="utf-8")
    report.write(target / "metrics.json")
