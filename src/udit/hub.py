"""Downloads from the Hugging Face hub; free of torch. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

A repository is ``owner/name``, or ``owner/name@revision`` with a branch, tag or commit.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from udit.errors import UserError

PIPELINE, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"
"""Of a folder that diffusers has saved; a model folder of udit may have the last."""
DESCRIPTION = ("config.json", "export.json", PIPELINE, TRANSFORMER, VAE)
"""Small files that say what a repository holds."""

PIPELINE_CLASS, NETWORK_CLASS = "UditPipeline", "UditNetwork"
"""Of a folder that ``udit export diffusers`` wrote, whose own pipeline.py has them."""
PIPELINE_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
"""Its weights."""
PIPELINE_FILES = (
    *("config.json", PIPELINE, "pipeline.py", "scheduler/scheduler_config.json"),
    *(TRANSFORMER, PIPELINE_WEIGHTS),
)
"""All of it, but for the VAE."""
PREFIX = "network."
"""Before their names."""


def is_hub_id(name: str) -> bool:
    """Whether a name can be an ``owner/name`` of the hub: one slash, and not written as a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def snapshot(name: str, files: Sequence[str], *, what: str, revision: str | None = None, remedy: str = "") -> Path:
    """Downloads files of a model repository; files that are in the cache already are not downloaded again.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        files: paths within the repository; those it does not have are left out, and nothing else is downloaded.
        what: the error's first words, e.g. ``no folder 'owner/name'``.
        revision: branch, tag or commit; None is the one in the name, or the newest.
        remedy: the error's last words.

    Returns:
        The folder that holds them; its name is the commit.

    Raises:
        UserError: the hub has no such repository or revision, does not give it to this user, or cannot be reached and
            the files are not in the cache.
    """
    from huggingface_hub import snapshot_download

    name, _, named = name.partition("@")
    if revision and named and revision != named:
        raise UserError(f"{what}: the name says revision {named!r} and the call {revision!r}; give one of them")
    revision = revision or named or None
    with errors_told(f"{what}, and the hub gave none", remedy, revision), _absent_files_not_told():
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))


def describe(name: str, *, what: str, revision: str | None = None) -> Path:
    """Downloads the small files that say what a repository holds (``DESCRIPTION``); see ``snapshot``."""
    return snapshot(name, DESCRIPTION, what=what, revision=revision)


def complete(name: str, described: Path, files: Sequence[str], *, what: str) -> None:
    """Downloads further files of the commit that ``describe`` found; those that are there already are left alone.

    Raises:
        UserError: see ``snapshot``.
    """
    missing = [file for file in files if not (described / file).is_file()]
    if missing:
        snapshot(name.partition("@")[0], missing, what=what, revision=described.name)


def pinned(name: str, described: Path) -> str:
    """A repository's name with the commit that ``describe`` found."""
    return f"{name.partition('@')[0]}@{described.name}"


def unpinned(name: str) -> str:
    """A repository's name without the commit that ``pinned`` adds."""
    return re.sub("@[0-9a-f]{40}$", "", name)


def diffusers_class(folder: Path) -> str | None:
    """What diffusers has saved in a folder, by the class in its JSON files; None where that is nothing."""
    for file in (PIPELINE, "config.json", TRANSFORMER):
        try:
            values = json.loads((folder / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            return None
        return str(values["_class_name"]) if isinstance(values, dict) and "_class_name" in values else None
    return None


def is_pipeline(folder: Path) -> bool:
    """Whether ``udit export diffusers`` wrote a folder."""
    try:
        values = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("_class_name") == ["pipeline", PIPELINE_CLASS]


def cached(name: str, file: str) -> Path | None:
    """A file of a model repository that has been downloaded before; None where it has not."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = name.partition("@")
    path = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(path) if isinstance(path, str) else None


def dataset_commit(name: str, revision: str | None, *, what: str, remedy: str) -> str:
    """The commit that a revision of a data set names today.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit; None is the newest.
        what: the error's first words.
        remedy: the error's last words.

    Raises:
        UserError: the hub has no such data set or cannot be reached.
    """
    from huggingface_hub import HfApi

    with errors_told(what, remedy, revision):
        return str(HfApi().dataset_info(name, revision=revision).sha)


@dataclass(frozen=True)
class Answer:
    """How the hub answers this machine."""

    endpoint: str
    """Its address."""
    reached: bool
    user: str | None
    """Whose the token is; None without one, or with one that is refused."""
    detail: str = ""
    """Why it cannot be reached, or refuses the token."""


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids downloads."""
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def ask() -> Answer:
    """Asks the hub once who we are, without a second try."""
    from huggingface_hub import constants, get_session, get_token

    token = get_token()
    path = "/api/whoami-v2" if token else "/api/models?limit=1"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = get_session().get(constants.ENDPOINT + path, headers=headers)
    except _client_errors() as error:
        return Answer(constants.ENDPOINT, reached=False, user=None, detail=_first_lines(str(error), 100))
    if answer.status_code in (401, 403):
        return Answer(constants.ENDPOINT, reached=True, user=None, detail=f"HTTP {answer.status_code}")
    if answer.status_code != 200:
        return Answer(constants.ENDPOINT, reached=False, user=None, detail=f"HTTP {answer.status_code}")
    return Answer(constants.ENDPOINT, reached=True, user=answer.json()["name"] if token else None)


def _client_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises; that a hub cannot be reached is an error of its HTTP library and no OSError."""
    from huggingface_hub.errors import HFValidationError

    return (_network_error(), HFValidationError, OSError)


def _network_error() -> type[Exception]:
    """The base of the HTTP library's errors, httpx's or httpx2's; an answer that is an error is one of them, too."""
    from huggingface_hub.errors import HfHubHTTPError

    (library,) = (base for base in HfHubHTTPError.__bases__ if base is not OSError)
    return library


@contextmanager
def errors_told(what: str, remedy: str = "", revision: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's client into a ``UserError`` of one line: ``what``, the reason, ``remedy``.

    Args:
        what: the first words.
        remedy: the last words.
        revision: that was asked for.
    """
    try:
        yield
    except _client_errors() as error:
        raise UserError(f"{what}: {reason(error, revision)}" + (f"; {remedy}" if remedy else "")) from None


def reason(error: Exception, revision: str | None = None) -> str:
    """Why the hub gave nothing, and what to do, in words.

    Args:
        error: of the hub's client.
        revision: that was asked for.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    network = _network_error()
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, network):
        error = error.__cause__  # why it was not downloaded; that it is not in the cache either follows
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled) and offline():
        return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold it; unset that to ask the hub"
    if isinstance(error, GatedRepoError):
        return "it is gated; ask for access on its page there, and set HF_TOKEN or run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a branch, a tag or a commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return "it knows none of that name; check it, or set HF_TOKEN if it is private"
    if isinstance(error, network) and not isinstance(error, HfHubHTTPError):
        return f"{constants.ENDPOINT} cannot be reached ({_first_lines(str(error), 100) or type(error).__name__}); " + (
            "check the network, its proxy, and HF_ENDPOINT"
        )
    return _first_lines(str(error), 200)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Context in which the client shows its bars, or not: where standard error is no terminal, they are never shown."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if (shown and sys.stderr.isatty()) or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _absent_files_not_told() -> Iterator[None]:
    """Drops the client's warning that a repository has none of the files: it need not have them."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No files matched")

    logger = logging.getLogger("huggingface_hub._snapshot_download")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _first_lines(text: str, limit: int) -> str:
    """As many whole lines as fit into ``limit`` characters, joined; of a longer first line its beginning."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    kept = lines[0][:limit] if lines else ""
    for line in lines[1:]:
        if len(kept) + 1 + len(line) > limit:
            break
        kept = f"{kept} {line}"
    return kept
