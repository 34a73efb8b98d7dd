"""``udit ref``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from udit.cli.output import say, table
from udit.errors import UserError

log = logging.getLogger(__name__)
ref = App(name="ref", help="References that generated images are scored against: make one, or look into one.")


@ref.command
def make(
    images: Path,
    out: Path,
    /,
    *,
    features: str | None = None,
    weights_file: Path | None = None,
    keep_images: bool = True,
    device: str = "cpu",
    keep_pictures: Annotated[bool | None, Parameter(show=False)] = None,
) -> int:
    """Make a reference .npz of images in ADM's format: arr_0, mu, sigma and, of Inception, mu_s and sigma_s.

    Parameters
    ----------
    images
        A folder of images, all squares of one size, or a .npz with arr_0.
    out
        The file to write, PATH.npz.
    features
        judge, efficientnet-lite0, inception, clip, dinov2 or timm, as NAME or NAME:SOURCE; efficientnet-lite0 if not
        given, or inception with --weights-file.
    weights_file
        The network's weights; downloaded if not given. For judge, RUN/evaluation/judge.safetensors.
    keep_images
        Keep the images in the file: KID, precision and recall need them.
    device
        cpu, cuda or cuda:N.
    keep_pictures
        The former name of keep_images.
    """
    if keep_pictures is not None:
        log.warning("--keep-pictures is now --keep-images; the old name is still read")
        keep_images = keep_pictures
    if out.suffix != ".npz":
        raise UserError(f"the reference is {str(out)!r}; its name must end in .npz")

    from udit.evaluation.extractors import default_features, load_extractor
    from udit.evaluation.sets import read_images, write_reference
    from udit.files import check_room

    check_room(out.parent, 0)
    found = read_images(images)
    name = features or ("inception" if weights_file else default_features(None))
    extractor = load_extractor(name, weights_file, device)
    write_reference(out, found, extractor, keep_images=keep_images)
    say(f"wrote {out}: statistics of {len(found)} images by {extractor.name}")
    return 0


@ref.command
def inspect(path: Path, /) -> int:
    """Show what a .npz of images or a reference .npz holds.

    Parameters
    ----------
    path
        The file.
    """
    from udit.evaluation.sets import summary

    say(table(("in the file", "contents", "note"), summary(path)))
    return 0
