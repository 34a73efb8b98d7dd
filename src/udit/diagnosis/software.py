"""Checks of what is installed, and of the way to the hub."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version

import torch
from packaging.requirements import Requirement

import udit
from udit import hub
from udit.diagnosis import finding
from udit.diagnosis.finding import Finding, within
from udit.errors import install_command

PURPOSES = {
    "train": "`udit train` and `udit eval`",
    "metrics": "`udit eval --reference` and `udit ref`",
    "hub": "data.kind=huggingface",
    "export": "`udit export` and `udit sample --engine`",
    "serve": "`udit serve`",
    "studio": "`udit studio`",
    "video": "MP4 files of clips",
    "ode": "SiT's adaptive sampler (Dopri5)",
    "optimizers": "training.optimizer=adamw-8bit and schedule-free",
    "tracking": "training.trackers=[wandb] and [trackio]",
}
"""What each extra is for; others are for developers."""


def versions() -> Iterator[Finding]:
    """Installed packages against the versions that udit's metadata asks for, and which extras are missing for what."""
    needed = _requirements()
    wrong = [text for requirement in needed[None] if (text := _unmet(requirement))]
    if wrong:
        yield Finding("wrong", "packages", ", ".join(wrong), "install udit again: pip install -U udit")
    else:
        yield Finding("ok", "packages", f"udit {udit.__version__}, torch {torch.__version__}, and all they need")
    for extra, purpose in PURPOSES.items():
        missing = [text for requirement in needed.get(extra, []) if (text := _unmet(requirement))]
        if missing:
            yield Finding("note", "extras", f"{purpose} needs {', '.join(missing)}", install_command(extra))
    yield from _vision()


def _requirements() -> dict[str | None, list[Requirement]]:
    """By extra; under None those that udit always needs."""
    try:
        lines = metadata("udit").get_all("Requires-Dist") or []
    except PackageNotFoundError:  # used from a source folder on the path
        return {None: []}
    found: dict[str | None, list[Requirement]] = {None: []}
    for line in lines:
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        found.setdefault(extra.group(1) if extra else None, []).append(requirement)
    return found


def _unmet(requirement: Requirement) -> str | None:
    """What is missing for a requirement: it is not there, or of another version; None if it is met."""
    if requirement.name == "udit":  # an extra that names other extras
        return None
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        return str(requirement.name)
    if requirement.specifier.contains(there, prereleases=True):
        return None
    return f"{requirement.name}{requirement.specifier} ({there} is installed)"


def _vision() -> Iterator[Finding]:
    """Whether a torchvision that is installed fits torch: other packages import it, and fail where it does not."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        detail = " ".join(str(error).split())[:100]
        yield Finding(
            "wrong",
            "packages",
            f"torchvision cannot be imported beside torch {torch.__version__}: {detail}",
            "remove it, or install the one that belongs to this torch",
        )


def reach_hub() -> Iterator[Finding]:
    """Whether the hub answers, and whether the token is good; an unreachable one is only worth a note."""
    if hub.offline():
        yield Finding("note", "hub", "HF_HUB_OFFLINE is set: only what was downloaded before is used")
        return
    answer = within(finding.PATIENCE, hub.ask)
    if answer is None:
        yield Finding(
            "note", "hub", f"it does not answer within {finding.PATIENCE:g} s", "folders on disk work without it"
        )
    elif not answer.reached:
        text = f"{answer.endpoint} cannot be reached ({answer.detail})"
        yield Finding("note", "hub", text, "folders on disk work without it")
    elif answer.detail:
        text = f"{answer.endpoint} refuses the token ({answer.detail})"
        yield Finding("wrong", "hub", text, "log in again: hf auth login")
    elif answer.user is None:
        yield Finding("ok", "hub", f"{answer.endpoint} answers; no token, which gated models need (hf auth login)")
    else:
        yield Finding("ok", "hub", f"{answer.endpoint} answers, and knows the token as {answer.user}'s")
