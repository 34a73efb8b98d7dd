"""``udit ref``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from udit.cli.extractor import FeaturesName
from udit.cli.output import say, table
from udit.errors import UserError

ref = App(name="ref", help="References that samples are scored against: make one, or look into one.")


@ref.command
def make(
    pictures: Path,
    out: Path,
    /,
    *,
    features: FeaturesName = "inception",
    weights_file: Path | None = None,
    keep_pictures: bool = True,
    device: str = "cpu",
) -> int:
    """Make a reference .npz of pictures in ADM's format: arr_0, mu, sigma and, of Inception, mu_s and sigma_s.

    Parameters
    ----------
    pictures
        A folder of pictures, all squares of one size, or a .npz with arr_0.
    out
        The file to write, PATH.npz.
    features
        judge, inception, clip or dinov2.
    weights_file
        The network's weights; downloaded if not given. For judge, RUN/evaluation/judge.safetensors.
    keep_pictures
        Keep the pictures in the file: KID, precision and recall need them.
    device
        cpu, cuda or cuda:N.
    """
    if out.suffix != ".npz":
        raise UserError(f"the reference is {str(out)!r}; its name must end in .npz")

    from udit.cli.extractor import extractor_of
    from udit.evaluation import npz
    from udit.evaluation.sets import read_pictures, reference_of

    images = read_pictures(pictures)
    extractor = extractor_of(features, weights_file, device)
    found = reference_of(images, extractor)
    facts = {"extractor": extractor.name, "extractor_sha256": extractor.sha256, "count": len(images)}
    npz.write(out, images=images if keep_pictures else None, pool=found.pool, spatial=found.spatial, facts=facts)
    say(f"wrote {out}: statistics of {len(images)} pictures by {extractor.name}")
    return 0


@ref.command
def inspect(path: Path, /) -> int:
    """Say what a sample batch or a reference .npz holds.

    Parameters
    ----------
    path
        The file.
    """
    import numpy as np

    from udit.evaluation import npz

    found = npz.read(path)
    rows: list[tuple[str, str, str]] = []
    if found.images is not None:
        n, c, h, w = found.images.shape
        rows.append(("arr_0", f"{n} pictures of {c}x{h}x{w}", f"mean {found.images.mean():.4g}"))
    if found.labels is not None:
        counts = np.unique(found.labels, return_counts=True)[1]
        rows.append(("arr_1", f"{len(counts)} classes", f"{counts.min()} to {counts.max()} pictures each"))
    for name, statistics in (("mu, sigma", found.pool), ("mu_s, sigma_s", found.spatial)):
        if statistics is not None:
            trace = float(np.trace(statistics.cov))
            rows.append((name, f"{len(statistics.mean)} features", f"trace of sigma {trace:.6g}"))
    rows += [(f"note: {key}", str(value), "") for key, value in found.facts.items()]
    say(table(("in the file", "what", "beside"), rows))
    return 0
