"""What self-attention costs on full maps, on maps whose keys and values are downsampled, and on downsampled tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from udit.claims.claim import Judged, Measurement, markdown
from udit.spec.base import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

COMMAND = "udit claims attention-costs-a-quarter"
MODELS = ("U-DiT-S", "U-DiT-B")
AttentionKind = Literal["full", "kv-downsampled", "downsampled"]
KINDS: tuple[AttentionKind, ...] = ("full", "kv-downsampled", "downsampled")
ROUNDS = 7
EXACT = 0.01


class LayerCost(Spec):
    """One attention layer of one kind at one level of a U."""

    model: str
    side: PositiveInt
    """Of the level's map."""
    width: PositiveInt
    kind: AttentionKind
    comparing: PositiveInt
    """MACs of queries with keys, and of weights with values, for one map."""
    others: NonNegativeInt
    """MACs of the matrices and of the filter in front."""
    seconds: PositiveFloat
    """Processor time of the fused layer at batch 1: the least of interleaved rounds."""

    @property
    def macs(self) -> int:
        """Of the whole layer."""
        return self.comparing + self.others


class NetworkCost(Spec):
    """A whole U with one kind of attention at all levels."""

    model: str
    kind: AttentionKind
    macs: PositiveInt


class AttentionCosts(Measurement):
    """Layers by level and kind, and the whole networks."""

    layers: tuple[LayerCost, ...]
    networks: tuple[NetworkCost, ...]

    def ratios(self, kind: AttentionKind, of: Callable[[LayerCost], float]) -> list[float]:
        """A number of each layer of a kind over that of the full layer at the same level."""
        full = {(one.model, one.side): of(one) for one in self.layers if one.kind == "full"}
        return [of(one) / full[one.model, one.side] for one in self.layers if one.kind == kind]


RECORD = AttentionCosts


def measure(tell: Callable[[str], object] = lambda line: None) -> AttentionCosts:
    """Counts on the meta device, and times the layers."""
    from udit.analysis import cost
    from udit.claims.facts import facts
    from udit.models.catalog import find
    from udit.nn.specs import Attention, Downsampled, Full, KVDownsampled

    specs: dict[AttentionKind, Attention] = {
        "full": Full(),
        "kv-downsampled": KVDownsampled(),
        "downsampled": Downsampled(),
    }
    layers: list[LayerCost] = []
    networks = []
    for name in MODELS:
        config: Any = find(name).config
        for kind, spec in specs.items():
            networks.append(NetworkCost(model=name, kind=kind, macs=cost(config.replace(attention=spec)).macs))
        for level in range(config.levels):
            side, width = config.size[0] >> level, config.width << level
            built = {kind: spec.folded().build(width, config.heads) for kind, spec in specs.items()}
            seconds = _seconds(list(built.values()), side, width)
            for (kind, layer), time in zip(built.items(), seconds, strict=True):
                comparing, others = _macs(layer, side, width)
                layers.append(
                    LayerCost(
                        model=name,
                        side=side,
                        width=width,
                        kind=kind,
                        comparing=comparing,
                        others=others,
                        seconds=time,
                    )
                )
                tell(f"{name}, {side}x{side} of {width}: {kind} {layers[-1].macs / 1e6:.1f}M MACs, {1e3 * time:.2f} ms")
    scale = f"attention layers of {' and '.join(MODELS)}, at their own widths and 32x32 latents, batch 1"
    return AttentionCosts(scale=scale, layers=tuple(layers), networks=tuple(networks), **facts(COMMAND))


def _macs(layer: nn.Module, side: int, width: int) -> tuple[int, int]:
    """MACs of comparing tokens, and all others, of one map."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    meta = layer.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        positions = meta.positions(side, side, torch.device("meta"))  # type: ignore[operator]
        meta(torch.empty(1, side, side, width, device="meta"), positions)
    by_operator = {str(name): count // 2 for name, count in counter.get_flop_counts()["Global"].items()}
    comparing = sum(count for name, count in by_operator.items() if "attention" in name or "bmm" in name)
    return comparing, sum(by_operator.values()) - comparing


def _seconds(layers: list[nn.Module], side: int, width: int) -> list[float]:
    """The least processor time of each, in interleaved rounds."""
    import torch

    from udit import rng
    from udit.claims.facts import processor_seconds

    x = torch.randn(1, side, side, width, generator=rng.generator(0, "claims"))
    tables = []
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.02, generator=rng.generator(0, "claims"))
        tables.append(layer.positions(side, side, x.device))  # type: ignore[operator]
    best, repeats = [float("inf")] * len(layers), max(1, 64 // side)
    with torch.no_grad():
        for number in range(ROUNDS + 1):
            for i, layer in enumerate(layers):
                taken = processor_seconds(partial(_repeat, layer, x, tables[i], repeats))
                if number:  # the first compiles and fills the caches
                    best[i] = min(best[i], taken / repeats)
    return best


def _repeat(layer: nn.Module, x: Tensor, table: Tensor | None, repeats: int) -> None:
    for _ in range(repeats):
        layer(x, table)


def judge(name: str, record: AttentionCosts) -> Judged:
    """Whether comparing tokens costs a quarter at every level."""
    comparing = record.ratios("downsampled", lambda one: one.comparing)
    whole = record.ratios("downsampled", lambda one: one.macs)
    seconds = record.ratios("downsampled", lambda one: one.seconds)
    networks = {(one.model, one.kind): one.macs for one in record.networks}
    shares = [networks[model, "downsampled"] / networks[model, "full"] for model in MODELS]
    exact = all(abs(ratio - 0.25) < EXACT for ratio in comparing)
    told = (
        f"comparing tokens takes {_span(comparing)} of full attention's MACs; with the matrices around it a layer "
        f"takes {_span(whole)} of the MACs and {_span(seconds)} of the seconds, and a whole network {_span(shares)} of "
        "the MACs"
    )
    return Judged("holds" if exact else "does not hold", told)


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def details(record: AttentionCosts) -> list[str]:
    """MACs and milliseconds by level and kind."""
    full = {(one.model, one.side): one for one in record.layers if one.kind == "full"}
    rows = []
    for one in record.layers:
        base = full[one.model, one.side]
        rows.append(
            [
                one.model,
                f"{one.side}x{one.side}, {one.width} channels",
                one.kind,
                f"{one.comparing / 1e6:.2f} ({one.comparing / base.comparing:.2f})",
                f"{one.macs / 1e6:.2f} ({one.macs / base.macs:.2f})",
                f"{1e3 * one.seconds:.2f} ({one.seconds / base.seconds:.2f})",
            ]
        )
    return markdown(
        ["network", "map", "attention", "MACs of comparing, M (of full)", "MACs of the layer, M", "ms"], rows
    )
