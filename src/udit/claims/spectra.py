"""Radial power spectra of trained features, level by level and through time, and what the filter of attention does.

x_t of held-out images passes through a network; at every place the features' power |FFT|^2 is averaged over channels,
their mean over the map left out. The low share is the part of it at radii up to half of the Nyquist frequency, which
maps of half the side can carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from udit.claims.claim import Interval, Judged, Measurement, markdown
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from udit.assemble import System
    from udit.claims.models import Trained

COMMAND = "udit claims low-frequencies"
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the noising process, 0 data to 1 noise."""
IMAGES = 64


class Moment(Spec):
    """Features at one place and time."""

    time: float
    low: Interval
    """Share of the power at low frequencies, over images."""
    spectrum: tuple[float, ...]
    """Mean power of a frequency at radius 1, 2, ... cycles per map, as a share of all; the corners are left out."""


class Place(Spec):
    """One place of one network."""

    network: str
    place: str
    """E.g. ``encoder 16x16``, or ``in front of attention 3, filtered``."""
    side: PositiveInt
    white: float
    """The low share of white noise on this map."""
    moments: tuple[Moment, ...]

    @property
    def mean(self) -> float:
        """The low share, averaged over times."""
        return sum(one.low.value for one in self.moments) / len(self.moments)


class Filter(Spec):
    """The depthwise filter in front of one attention layer, with the shortcut folded in."""

    network: str
    place: str
    side: PositiveInt
    before: float
    """Low share of its input, averaged over times."""
    after: float
    """Of its output."""
    change: Interval
    """``after`` less ``before``, over images."""
    gain: tuple[float, ...]
    """Root mean square of its frequency response over channels, at 0, 1/4, 1/2, 3/4 and 1 of the Nyquist frequency."""


class Spectra(Measurement):
    """Places and filters of all networks."""

    places: tuple[Place, ...]
    filters: tuple[Filter, ...]


RECORD = Spectra


def measure(tell: Callable[[str], object] = lambda line: None) -> Spectra:
    """Of the models that come with the library, and of a DiT that is trained on the digits."""
    from udit.claims.facts import facts
    from udit.claims.models import FASHION, FINE_DIT, U_DIT

    places: list[Place] = []
    filters: list[Filter] = []
    for model in (FASHION, U_DIT, FINE_DIT):
        system = model.system(tell)
        new, own = spectra_of(system, f"{model.name}, {model.recipe}", _noised(model, system))
        places += new
        filters += own
        for place in new:
            tell(f"{place.network}, {place.place}: {place.mean:.2f} of the power is at low frequencies")
    scale = (
        f"demo:fashion-mnist (16x16 maps), demo:digits (8x8) and a DiT of its MACs and its training on the digits with "
        f"patches of 1x1; {IMAGES} held-out images, x_t at times {', '.join(map(str, TIMES))}, one seed each"
    )
    return Spectra(scale=scale, places=tuple(places), filters=tuple(filters), **facts(COMMAND))


Inputs = dict[float, tuple["Tensor", "Tensor", "Tensor"]]
"""x_t [B, C, H, W], t [B] and y [B] by time."""


def _noised(model: Trained, system: System) -> Inputs:
    """Held-out images at all times, with one noise for each."""
    import numpy as np
    import torch

    from udit import rng
    from udit.data.codec import encode
    from udit.data.sources import parts_of
    from udit.diffusion.denoiser import mix

    data = model.run().data
    source = data.scored().build()
    chosen = parts_of(source, data).test[:IMAGES]
    pixels = torch.from_numpy(np.stack([source.image(int(i)) for i in chosen]))
    y = torch.from_numpy(np.asarray(source.labels)[chosen].astype("int64"))
    x0 = encode(system.codec, pixels)
    noise = torch.randn(x0.shape, generator=rng.generator(0, "claims"))
    found = {}
    for time in TIMES:
        t = torch.full((len(x0),), time)
        found[time] = (mix(system.denoiser.schedule, x0, noise, t), t, y)
    return found


def spectra_of(system: System, network: str, inputs: Inputs) -> tuple[list[Place], list[Filter]]:
    """The places and filters of one network."""
    import torch

    from udit.nn.attention import LowPass

    kept: dict[str, Tensor] = {}
    hooks = []

    def keep(name: str, index: int | None = None) -> Callable[..., None]:
        def hook(module: object, given: tuple[Tensor, ...], out: Tensor) -> None:
            kept[name] = (out if index is None else given[index]).detach().float()

        return hook

    low_passes: dict[str, LowPass] = {}
    for name, module in _places(system).items():
        hooks.append(module.register_forward_hook(keep(name)))
    for path, module in system.backbone.named_modules():
        if isinstance(module, LowPass):
            low_passes[path] = module
            hooks += [module.register_forward_hook(keep(f"{path} {i}", i)) for i in (None, 0)]
    low: dict[str, list[Tensor]] = {}
    moments: dict[str, list[Moment]] = {}
    sides: dict[str, int] = {}
    try:
        for time, (x, t, y) in inputs.items():
            with torch.no_grad():
                system.denoiser.raw(x, t, y)
            kept["x_t"] = x.permute(0, 2, 3, 1)
            for name, features in kept.items():
                power = power_of(features)
                share = low_share(power)
                low.setdefault(name, []).append(share)
                sides[name] = features.shape[1]
                moment = Moment(time=time, low=Interval.of(share.tolist()), spectrum=tuple(radial(power)))
                moments.setdefault(name, []).append(moment)
            kept.clear()
    finally:
        for one in hooks:
            one.remove()
    places = [
        Place(
            network=network,
            place=name,
            side=sides[name],
            white=low_share_of_white(sides[name]),
            moments=tuple(moments[name]),
        )
        for name in ("x_t", *_places(system))
    ]
    filters = []
    for path, module in low_passes.items():
        after, before = (torch.stack(low[f"{path} {i}"]).mean(0) for i in (None, 0))
        filters.append(
            Filter(
                network=network,
                place=path,
                side=sides[f"{path} 0"],
                before=float(before.mean()),
                after=float(after.mean()),
                change=Interval.of((after - before).tolist()),
                gain=tuple(gain(module.kernel())),
            )
        )
    return places, filters


def _places(system: System) -> dict[str, nn.Module]:
    """The last block of every stage of a U, or every block of a DiT, by what they are called in tables."""
    network: Any = system.backbone
    if network.config.family == "DiT":
        return {f"block {i + 1}": block for i, block in enumerate(network.blocks)}
    side, deepest = network.config.size[0], len(network.encoder) - 1
    found: dict[str, nn.Module] = {
        f"{'bottleneck' if level == deepest else 'encoder'} {side >> level}x{side >> level}": stage
        for level, stage in enumerate(network.encoder)
    }
    found |= {f"decoder {side >> level}x{side >> level}": network.decoder[level] for level in reversed(range(deepest))}
    return found


def power_of(features: Tensor) -> Tensor:
    """Power of each frequency, a mean over channels, as a share of all without the mean: [B, H, W, D] -> [B, H, W]."""
    import torch

    power = torch.fft.fft2(features.double(), dim=(1, 2)).abs().square().mean(-1)
    power[:, 0, 0] = 0
    total: Tensor = power / power.sum((1, 2), keepdim=True).clamp_min(1e-300)
    return total


def radii(side: int) -> Tensor:
    """Cycles per map of every frequency of an FFT of side x side: [side, side]."""
    import torch

    along = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    return (along[:, None].square() + along.square()).sqrt()


def low_share(power: Tensor) -> Tensor:
    """The share at radii up to half of the Nyquist frequency: [B, H, H] -> [B]."""
    side = power.shape[-1]
    return (power * (radii(side) <= side / 4)).sum((1, 2))


def low_share_of_white(side: int) -> float:
    """``low_share`` of equal power everywhere but at 0."""
    count = int((radii(side) <= side / 4).sum()) - 1
    return count / (side**2 - 1)


def radial(power: Tensor) -> Sequence[float]:
    """Mean power at radius 1, 2, ... up to the Nyquist frequency, to the nearest whole radius: [B, H, H] -> [H / 2]."""
    rings, mean = radii(power.shape[-1]).round(), power.mean(0)
    return [float(mean[rings == radius].mean()) for radius in range(1, power.shape[-1] // 2 + 1)]


def gain(kernel: Tensor) -> Sequence[float]:
    """Root mean square over channels of the response of depthwise kernels [D, 1, s, s], along rows and columns alike.

    At 0, 1/4, 1/2, 3/4 and 1 of the Nyquist frequency.
    """
    import torch

    response = torch.fft.fft2(kernel[:, 0].detach().double(), s=(8, 8)).abs().square().mean(0)
    return [float(((response[i, 0] + response[0, i]) / 2).sqrt()) for i in range(5)]


def judge(name: str, record: Spectra) -> Judged:
    """Of features: whether at every place of a U more than half of the power is low. Of filters: whether each adds."""
    if name == "low-pass":
        raised = [one for one in record.filters if one.change.low > 0]
        lowered = [one for one in record.filters if one.change.high < 0]
        changes = [one.after - one.before for one in record.filters]
        told = (
            f"{len(raised)} of {len(record.filters)} filters raise the share of low frequencies, {len(lowered)} lower "
            f"it; by {min(changes):+.2f} to {max(changes):+.2f}, {sum(changes) / len(changes):+.2f} on average"
        )
        if len(raised) == len(changes):
            return Judged("holds", told)
        return Judged("does not hold" if lowered else "cannot be tested at this scale", told)
    own = [one for one in record.places if one.network.startswith("U-DiT") and one.place != "x_t"]
    dit = [one for one in record.places if one.network.startswith("DiT") and one.place != "x_t"]
    least, most = min(own, key=lambda one: one.mean), max(own, key=lambda one: one.mean)
    told = (
        f"share of the power up to half of the Nyquist frequency, averaged over times: {least.mean:.2f} "
        f"({least.network}, {least.place}; white noise {least.white:.2f}) to {most.mean:.2f} ({most.network}, "
        f"{most.place}; white noise {most.white:.2f})"
    )
    if dit:
        told += f"; DiT's blocks {min(one.mean for one in dit):.2f} to {max(one.mean for one in dit):.2f}"
    return Judged("holds" if least.mean > 0.5 else "does not hold", told)


def details(record: Spectra) -> list[str]:
    """Low shares by place and time, and what the filters change."""
    times = [f"t = {moment.time:g}" for moment in record.places[0].moments]
    rows = [
        [
            one.network,
            f"{one.place}" if "x" in one.place[1:] and one.place != "x_t" else f"{one.place}, {one.side}x{one.side}",
            *(moment.low.text() for moment in one.moments),
            f"{one.white:.2f}",
        ]
        for one in record.places
    ]
    lines = ["Share of low frequencies, with the interval over images:", ""]
    lines += markdown(["network", "place", *times, "white noise"], rows)
    lines += ["Filters in front of attention; gain at 0, 1/4, 1/2, 3/4 and 1 of the Nyquist frequency:", ""]
    rows = [
        [
            one.network,
            f"{one.place}, {one.side}x{one.side}",
            f"{one.before:.2f}",
            f"{one.after:.2f}",
            one.change.text("+.3f"),
            ", ".join(f"{value:.2f}" for value in one.gain),
        ]
        for one in record.filters
    ]
    return lines + markdown(["network", "filter", "before", "after", "change", "gain"], rows)
