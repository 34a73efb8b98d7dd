"""Uploads to a model repository of the hub, through huggingface_hub: one commit, and only what is not there yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udit import hub
from udit.errors import UserError, one_line
from udit.publishing.card import CARD, GRID, is_ours
from udit.run.system import EXPORTED
from udit.store import FILES, read_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

OURS = frozenset({CARD, GRID, "config.json", *FILES.values(), *hub.PIPELINE_FILES})
"""Files that a push writes, beside those in ``vae/``: what an earlier push left of them is removed."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Commit:
    """What an upload has come to."""

    url: str
    """Of the repository, at the revision."""
    commit: str
    changed: bool
    """False where the repository held all of it already, and no commit was made."""
    kept_card: bool
    """Whether a card that somebody else wrote was left as it is."""


def check_name(name: str) -> None:
    """Refuses a name that the hub would.

    Raises:
        UserError: it is not of the form ``owner/name``, or has letters that the hub does not take.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, and not in __all__

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"cannot push to {name!r}: {' '.join(str(error).split())}") from None
    if not _NAME.fullmatch(name):
        raise UserError(f"cannot push to {name!r}; give owner/name, with your name on the hub or an organisation's")


def upload(
    name: str,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool = False,
    revision: str | None = None,
    replace_card: bool = False,
) -> Commit:
    """Makes a repository hold files, by one commit; a branch is whole before and after, whenever this is interrupted.

    Large files are sent first and apart from the commit; those that the hub has, of an interrupted upload too, are not
    sent again.

    Args:
        name: ``owner/name``; made if it does not exist.
        files: {path in the repository: file}.
        message: first line of the commit.
        private: a new repository is private; an existing public one is refused.
        revision: a branch, made from the default one if it does not exist; None is the default one.
        replace_card: overwrites a card that was not written by ``push``, or was edited.

    Raises:
        UserError: no token, one that may not write there, a repository that holds something else, or a hub that cannot
            be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    what = f"cannot push to {name!r}"
    if hub.offline():
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UserError(f"{what} without a token; make one that may write on the hub's page, and `hf auth login`")
    api = HfApi()
    with _errors_told(what, revision):
        _repository(api, name, private, what)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        before = api.model_info(name, revision=revision)
    there = {entry.rfilename for entry in before.siblings or ()}
    kept_card = _check_there(name, before, there, what) and not replace_card
    additions = [CommitOperationAdd(path, file) for path, file in files.items() if not (kept_card and path == CARD)]
    stale = sorted(path for path in there if (path in OURS or path.startswith("vae/")) and path not in files)
    with _errors_told(what, revision):
        made = api.create_commit(
            name,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            revision=revision,
            parent_commit=before.sha,
        )
    url = f"{api.endpoint}/{name}" + (f"/tree/{revision}" if revision else "")
    return Commit(url, str(made.oid), changed=made.oid != before.sha, kept_card=kept_card)


def _repository(api: HfApi, name: str, private: bool, what: str) -> None:
    """Makes the repository if there is none; an existing one keeps its visibility, whatever ``create_repo`` is told.

    Raises:
        UserError: it is to be private and is public.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=private or None, exist_ok=True)
        return
    if private and not found.private:
        raise UserError(f"{what}: it exists and is public; make it private on its page, or choose another name")


def _check_there(name: str, before: ModelInfo, there: set[str], what: str) -> bool:
    """Refuses to push over something that is no model of udit's.

    Returns:
        Whether the card there is not one that a push wrote.
    """
    named = [file for file in (*hub.DESCRIPTION, CARD) if file in there]
    if not named:
        return False
    folder = hub.snapshot(name, named, what=what, revision=before.sha)
    found = None if hub.is_pipeline(folder) else hub.diffusers_class(folder)
    other = f"diffusers' {found}" if found else None
    if other is None and (folder / EXPORTED).is_file():
        other = "an exported graph"
    if other is None and (folder / "config.json").is_file():
        try:
            read_config(folder / "config.json")
        except UserError:
            other = "a model of another library"
    if other is not None:
        raise UserError(f"{what}: it holds {other}, whose files would be replaced; choose another name")
    card = folder / CARD
    return card.is_file() and not is_ours(card.read_text(encoding="utf-8", errors="replace"))


@contextmanager
def _errors_told(what: str, revision: str | None) -> Iterator[None]:
    """As ``hub.errors_told``, with what an upload adds to it.

    Raises:
        UserError: in place of each.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub.errors_told(what, revision=revision):
            try:
                yield
            except RuntimeError as error:  # of a file that is being sent: it wraps what went wrong, or says it itself
                if isinstance(error.__cause__, Exception):
                    raise error.__cause__ from None
                raise UserError(f"{what}: {one_line(error)}") from None
            except HfHubHTTPError as error:
                if told := _refused(error):
                    raise UserError(f"{what}: {told}") from None
                raise
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: {one_line(error)}") from None  # e.g. the card's front matter


def _refused(error: Exception) -> str | None:
    """What the hub's refusal to write means; None for another answer."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError | RevisionNotFoundError):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not take the token; make one that may write, and `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not write there; give a name of yours, or a token that may write"
    if status == 412:
        return "somebody else has pushed to it meanwhile; push again"
    return None
