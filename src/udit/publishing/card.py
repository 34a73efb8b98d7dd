"""The card of a model on the hub: its ``README.md``, with data, scores, their protocol, how to load it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udit import hub
from udit.data.codec_config import VAECodec
from udit.errors import UserError
from udit.evaluation import standard
from udit.evaluation.compare import read as read_scores
from udit.evaluation.report import Report
from udit.evaluation.standard import Scores
from udit.exporting import pipelines
from udit.run.config import Run
from udit.run.recipes import to_yaml
from udit.run.system import SystemConfig
from udit.store import FILES, card_title, card_usage, pipeline_tag

CARD, GRID = "README.md", "samples.png"
"""Names in a repository."""
UNKNOWN = "unknown"
"""The hub's identifier of a licence that nobody has stated."""
_MARK = re.compile(r"<!-- written by `udit push`, ([0-9a-f]{16}) -->\n?")


@dataclass(frozen=True)
class Facts:
    """What a card tells beside the model's config."""

    name: str
    """``owner/name`` of the repository."""
    weights: int
    """Number of the network's weights."""
    license: str
    run: Run | None
    """That trained the weights; None where only a model folder is left."""
    scores: Sequence[tuple[str, Report | Scores]]
    """Of these weights; the file's name with each."""
    files: Sequence[str]
    """Of the repository."""


def card(config: SystemConfig, facts: Facts) -> str:
    """``README.md`` as it is pushed; ``is_ours`` recognises it as long as nobody edits it."""
    front = {
        "library_name": "udit",
        "license": facts.license,
        "pipeline_tag": pipeline_tag(config),
        "tags": ["diffusion", config.model.family.lower()],
    }
    if (dataset := _on_the_hub(facts.run)) is not None:
        front["datasets"] = [dataset]
    parts = [
        f"# {card_title(config)}",
        *([f"![samples, one column per class]({GRID})"] if GRID in facts.files else []),
        "## How to load it",
        "`pip install udit`, then",
        card_usage(config, facts.name).rstrip(),
        f"or `udit sample {facts.name} --n 16 --out samples`.",
        *(_diffusers(config, facts.name) if hub.PIPELINE in facts.files else []),
        "## What it is",
        "\n".join(f"- {line}" for line in _what(config, facts)),
        "## Scores",
        *(_scores(facts) or ["None are recorded for these weights (`udit eval` computes them)."]),
        "## Licence",
        _licence(facts),
    ]
    text = f"---\n{to_yaml(front)}---\n\n" + "\n\n".join(parts) + "\n"
    return f"{text}\n<!-- written by `udit push`, {_digest(text)} -->\n"


def is_ours(text: str) -> bool:
    """Whether a README is one that ``card`` wrote, and nobody has edited since."""
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()].removesuffix("\n"))


def scores_of(folder: Path, weights: str) -> list[tuple[str, Report | Scores]]:
    """The scores in RUN/evaluation that are of some weights, each setting once.

    Args:
        folder: RUN/evaluation.
        weights: their fingerprint.
    """
    found: dict[str, tuple[str, Report | Scores]] = {}
    for path in sorted(folder.glob("metrics*.json")):
        try:
            scores = read_scores(path)
        except UserError:
            continue  # of another version, or damaged: not of a kind that can be shown
        if scores.setting.get("weights") == weights:
            found.setdefault(str(scores.setting), (path.stem, scores))
    return list(found.values())


def _what(config: SystemConfig, facts: Facts) -> Iterator[str]:
    sampling = config.sampling
    yield f"model: {config.model.family}, {facts.weights:,} weights; `config.json` has all of its settings"
    yield f"noising process: {config.diffusion.title}"
    yield f"sampling unless asked otherwise: {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    if config.id2label:
        names = config.id2label
        more = f" and {len(names) - 20} more (`config.json` has all)" if len(names) > 20 else ""
        apart = [f"`{name}`" if "," in name else name for name in names[:20]]
        yield f"classes: {', '.join(apart)}{more}"
    yield from _training(config, facts.run)
    raw = f"; `{FILES['raw']}` those before averaging" if FILES["raw"] in facts.files else ""
    file, fused = (hub.PIPELINE_WEIGHTS, ", fused") if hub.PIPELINE in facts.files else (FILES["ema"], "")
    yield f"`{file}` holds the averaged (EMA) weights{fused}{raw}"
    if isinstance(config.codec, VAECodec):
        there = "a copy is in `vae/`" if config.codec.source == "vae" else f"it is `{config.codec.source}` on the hub"
        sha = f", sha256 of its weights {config.codec.sha256[:12]}" if config.codec.sha256 else ""
        yield f"in latents of {config.codec.network}: {there}{sha}; its own licence applies to it"


def _diffusers(config: SystemConfig, name: str) -> tuple[str, ...]:
    return "## With diffusers", pipelines.usage(config, name).rstrip(), pipelines.WHAT_RUNS


def _training(config: SystemConfig, run: Run | None) -> Iterator[str]:
    steps = f"{config.steps:,}" if config.steps else "an unknown number of"
    if run is None:
        yield f"trained for {steps} steps; the data is not recorded"
        return
    training = run.training
    unfinished = "" if config.steps == training.steps else f" of {training.steps:,}: training had not ended"
    yield (
        f"trained for {steps} steps{unfinished}, {training.batch_size:,} images each, at learning rate "
        f"{training.lr:g}, EMA decay {training.ema_decay:g}, seed {run.seed}"
        + (f", from the weights of {_place(run.init_from)}" if run.init_from else "")
    )
    plain = run.data.model_dump(mode="json", exclude_none=True)
    told = {key: _place(value) if key in ("root", "path") else value for key, value in plain.items() if value != []}
    about = " ".join((type(run.data).__doc__ or "").partition("\n\n")[0].split()).rstrip(".")
    yield f"data: {about} ({_listed(told)})"


def _place(name: str) -> str:
    """A hub id as it is, and of a folder its last part alone: the rest is the author's own machine."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() or name.count("/") != 1 else name


def _on_the_hub(run: Run | None) -> str | None:
    """The hub id of the data set, if it has one."""
    if run is None or run.data.kind != "huggingface" or Path(run.data.path).expanduser().exists():
        return None
    return run.data.path if run.data.path.count("/") == 1 and not run.data.path.startswith(("/", ".", "~")) else None


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _scores(facts: Facts) -> list[str]:
    parts = []
    for name, found in facts.scores:
        if isinstance(found, Report):
            parts += [f"### By a classifier of the same data, {found.num_samples:,} samples", found.table()]
        else:
            parts += [f"### {found.protocol.get('name') or name}", standard.tables([(name, found)])]
    return parts


def _licence(facts: Facts) -> str:
    if facts.license == UNKNOWN:
        return "The author has stated none; ask before you use these weights."
    return (
        f"These weights: {facts.license}. The data and the autoencoder, where there is one, have licences of their own."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
