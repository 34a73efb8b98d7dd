"""Downloads from the Hugging Face hub; free of torch. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from udit.errors import UserError


def is_hub_id(name: str) -> bool:
    """Whether a name can be an ``owner/name`` of the hub: one slash, and not written as a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def snapshot(name: str, files: Sequence[str], *, what: str, revision: str | None = None, remedy: str = "") -> Path:
    """Downloads files of a model repository; files that are in the cache already are not downloaded again.

    Args:
        name: ``owner/name``.
        files: paths within the repository; those it does not have are left out, and nothing else is downloaded.
        what: the error's first words, e.g. ``no folder 'owner/name'``.
        revision: branch, tag or commit; None is the newest.
        remedy: the error's last words.

    Returns:
        The folder that holds them.

    Raises:
        UserError: the hub has no such repository, or cannot be reached and the files are not in the cache.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors_told(f"{what}, and the hub gave none", remedy):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))


def cached(name: str, file: str) -> Path | None:
    """A file of a model repository that has been downloaded before; None where it has not."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file)
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

    with _hub_errors_told(what, remedy):
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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    (library,) = (base for base in HfHubHTTPError.__bases__ if base is not OSError)  # httpx's, or httpx2's
    return (library, HFValidationError, LocalEntryNotFoundError, OSError)


@contextmanager
def _hub_errors_told(what: str, remedy: str) -> Iterator[None]:
    """Turns errors of the hub's client into a ``UserError`` of one line: ``what``, the client's words, ``remedy``."""
    try:
        yield
    except _client_errors() as error:
        detail = _first_lines(str(error), 200)
        raise UserError(f"{what}: {detail}" + (f"; {remedy}" if remedy else "")) from None


def _first_lines(text: str, limit: int) -> str:
    """As many whole lines as fit into ``limit`` characters, joined; of a longer first line its beginning."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    kept = lines[0][:limit] if lines else ""
    for line in lines[1:]:
        if len(kept) + 1 + len(line) > limit:
            break
        kept = f"{kept} {line}"
    return kept
