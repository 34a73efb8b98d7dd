"""``udit push``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say, table


def push(
    model: str,
    name: str,
    /,
    *,
    license_: Annotated[str | None, Parameter(name="--license")] = None,
    raw: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: int | None = None,
    vae: bool | None = None,
    diffusers: Annotated[bool, Parameter(negative="")] = False,
    grid: bool = True,
    private: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    replace_card: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    progress: bool = True,
) -> int:
    """Upload a model to the Hugging Face hub, with a card; `udit.load("owner/name")` and every command then take it.

    It is one commit: an interrupted push changes nothing there, and pushing again sends only what is missing. A run is
    pushed with its newest checkpoint. The token is that of `hf auth login`, or HF_TOKEN.

    Parameters
    ----------
    model
        A run folder, a model folder or a hub id.
    name
        owner/name; made if it does not exist.
    license_
        The hub's identifier, e.g. apache-2.0 or cc-by-4.0; the card says unknown if not given.
    raw
        Push the weights before averaging too; without, the averaged (EMA) ones alone.
    checkpoint
        Of a run: the step of a checkpoint, e.g. 500; the newest if not given.
    vae
        Of a model in a VAE's latents: push the VAE too, or name it by its hub id and the sha256 of its weights. If not
        given, one that has no hub id is pushed and others are named.
    diffusers
        Push what `udit export diffusers` writes, so that diffusers' DiffusionPipeline loads it as well, without udit.
    grid
        Put a grid of samples into the card: the run's last one, or one that is drawn now.
    private
        Make a new repository private; a public one is refused.
    revision
        A branch, made if it does not exist.
    replace_card
        Replace a card that somebody edited on the hub; it stays otherwise.
    dry_run
        Print files, sizes and the card's text, and upload nothing.
    progress
        Show progress bars, where standard error is a terminal.
    """
    from udit.publishing.push import push as push_model

    if checkpoint is not None:
        from udit.store import checkpoint_of

        model = str(checkpoint_of(model, checkpoint))
    found = push_model(
        model,
        name,
        license=license_,
        raw=raw,
        vae=vae,
        diffusers=diffusers,
        grid=grid,
        private=private,
        revision=revision,
        replace_card=replace_card,
        dry_run=dry_run,
        progress=progress,
    )
    size = f"{len(found.files)} files, {sum(found.files.values()) / 1e6:,.1f} MB"
    unfinished = found.last_step is not None and found.step != found.last_step
    of = f" of {found.last_step:,} (its training has not ended)" if unfinished else ""
    step = f", step {found.step:,}{of}" if found.step else ""
    if dry_run:
        say(table(("file", "bytes"), sorted(found.files.items())))
        say(f"\n{found.card}")
        say(f"would push {size}{step}; nothing was sent")
        return 0
    what = f"pushed {size}{step}" if found.changed else f"nothing to push: {size} are there already"
    say(
        f"{what}: {found.url} (commit {str(found.commit)[:12]}); next: udit sample {name}"
        + (f"@{revision}" if revision else "")
    )
    if found.kept_card:
        say("README.md there was written or edited by somebody and stays; --replace-card replaces it")
    elif license_ is None:
        say("the card states no licence; --license apache-2.0, for one, states it")
    return 0
