"""Writes docs/sampling.md and its picture from benchmarks/frontier.json; ``benchmarks/frontier.py --page`` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udit.config.diffusion import SamplingConfig
from udit.config.quality import DEFAULTS, Scored

DOCS = Path(__file__).parent.parent / "docs"
ANCESTRAL = "ancestral 250"
SPEED, CACHED = 40.0, 1.8
"""What was asked for: an image of no worse score, and step caching on top of a 50-step solver."""
INTRO = """# Quick sampling

    udit tune RUN                          # scores and times ways of drawing from a run: RUN/quality.json
    udit sample RUN --quality draft        # or good, or best: the quickest within 50, 10 or 2 % of the best score

Without a `quality.json` beside the run or model folder, `--quality` takes these, guided as the model's own setting
says:

| | draft | good | best |
| --- | --- | --- | --- |
{defaults}

Steps may be **cached**: the deep part of a network (in a U all below full resolution, in a DiT the middle half of
the blocks) is run at some evaluations only, the outer parts at all of them. A network without long skips keeps what
the deep part added. `sampling.cache=N` runs it at every N-th evaluation; `sampling.refresh=[0,3,...]` at those
named. The others take its last output, or with `sampling.forecast=true` the line through its last two; with
`sampling.keep_guidance=true` they also take guidance's step from the null prediction to the label's as it was, and
run the label's half alone. `udit tune` watches one run of 16 pictures, derives from it which evaluations to refresh
for any number of them (`diffusion/calibrate.py`), and takes the smallest number whose score is within 2 %. What is
kept lives in one sampling call.

What time and label decide, the products of adaLN above all, is made once a call for all steps, labels and batches
(`diffusion/conditions.py`).
"""

BASELINE = """\
The baseline is DDPM's ancestral sampler of 250 steps with guidance at every step. Its pictures are drawn by our
fused network, which computes what the literal one does to rounding, walked along DDPM's noise levels: a
variance-preserving x_t of noise to signal r is the linear path's at t = r / (1 + r), scaled, so that the very same
weights are compared. Its seconds are those of {network} (the literal U-DiT is
[benchmarks/literal.py](../benchmarks/literal.py) and has three levels): two guided steps of {batch} pictures, times
125, in the same interleaved rounds as the other rows.
"""
CACHES = """\
Euler's 50 steps, guided at all of them. Caches are calibrated to a loss of 2 % of the score: distance at most so
much larger, agreement at most so much smaller, on the same seeds. Speed is of interleaved rounds.
"""
MEASURED = """\
The rest of this page is written by `python benchmarks/frontier.py --page` from
[benchmarks/frontier.json](../benchmarks/frontier.json). Distances are squared Fréchet distances of the features of
the run's own judge to its training pictures, too large by chance at these numbers of pictures, and not the FID of
the literature; intervals are 95 %, by bootstrap over pictures. All ways of a section draw the same seeds, so that
two ways differ by less than their intervals say. Seconds are a processor thread's.
"""
WANDER = """\
Milliseconds of this table were taken while each way was scored, one after another, and wander with what else the
machine did.
"""


def write_page(record: dict[str, Any]) -> None:
    """Page and picture."""
    defaults = "\n".join(
        f"| {kind} | " + " | ".join(f"{sampler}, {steps} steps" for sampler, steps in levels.values()) + " |"
        for kind, levels in DEFAULTS.items()
    )
    lines = [INTRO.format(defaults=defaults)]
    if record:
        lines += [MEASURED]
    if "frontier" in record:
        lines += ["## The frontier\n", *frontier(record["frontier"])]
    if record:
        lines += ["\n## Caching on top of a 50-step solver\n", *caching(record)]
    (DOCS / "sampling.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")


def scored(section: dict[str, Any]) -> dict[str, Scored]:
    """The ways of a section by name."""
    return {name: Scored.model_validate(row) for name, row in section["rows"].items()}


def about(section: dict[str, Any]) -> str:
    """What was measured, in words."""
    protocol, facts = section["about"]["protocol"], section["facts"]
    return (
        f"{facts['model']} of the run {facts['run']}, weights {section['about']['weights']} of "
        f"step {facts['step']}, {protocol['pictures']} pictures a way, seeds from {protocol['first_seed']}, batches of "
        f"{protocol['batch_size']}, {protocol['threads']} thread, torch {protocol['torch']}, {facts['date']}"
    )


def told(how: SamplingConfig) -> tuple[str, str, str]:
    """Solver, guidance and cache in words."""
    low, high = how.guidance_interval
    guided = "never" if how.guidance == 1 else "always" if (low, high) == (0, 1) else f"t from {low:g} to {high:g}"
    cache = f"{len(how.refresh)} of {how.steps}" if how.refresh else "always"
    cache += (", forecast" if how.forecast else "") + (", guidance kept" if how.keep_guidance else "")
    return f"{how.sampler} {how.steps}", guided, cache


def score(each: Scored) -> str:
    """Cells of distance and agreement."""
    (low, high), (sure, surer) = each.distance_interval, each.agreement_interval
    return (
        f"{each.distance:.3f} ({low:.3f} to {high:.3f}) | "
        f"{100 * each.agreement:.1f} % ({100 * sure:.1f} to {100 * surer:.1f})"
    )


def overlap(a: Scored, b: Scored) -> bool:
    """Whether a is no worse than b as far as intervals tell, in both scores."""
    return a.distance_interval[0] <= b.distance_interval[1] and a.agreement_interval[1] >= b.agreement_interval[0]


def frontier(section: dict[str, Any]) -> Iterator[str]:
    """The first run's part."""
    ways, clock = scored(section), section["clock"]["median"]
    ancestral, slow = ways[ANCESTRAL], clock[ANCESTRAL]
    yield f"{about(section)}.\n"
    yield BASELINE.format(network=section["clock"]["baseline"], batch=section["clock"]["batch"])
    yield "| | solver | guided | deep part runs | distance | agreement | ms a picture | against the baseline |"
    yield "| --- | --- | --- | --- | --- | --- | ---: | ---: |"
    yield f"| baseline | ddpm 250 | always | always | {score(ancestral)} | {1e3 * slow:.0f} | 1x |"
    for level, name in section["picks"].items():
        cells = " | ".join(told(ways[name].sampling))
        yield f"| {level} | {cells} | {score(ways[name])} | {1e3 * clock[level]:.1f} | {slow / clock[level]:.0f}x |"
    good = {level: slow / clock[level] for level, name in section["picks"].items() if overlap(ways[name], ancestral)}
    level, speed = max(good.items(), key=lambda item: item[1], default=("nothing", 0.0))
    count = section["about"]["protocol"]["pictures"]
    yield f"\nAn image of no worse score, as far as intervals of {count} pictures tell: {speed:.0f}x faster by {level}."
    if section["clock"]["baseline"] == "the literal U-DiT":
        yield f"At least {SPEED:g}x asked for: **{'reached' if speed >= SPEED else 'missed'}**."
    else:
        yield "What is asked for is 40x against the literal U-DiT on Fashion-MNIST, which this run does not show."
    picture(ways, slow)
    yield "\n![score against seconds, every combination tried](images/frontier.png)\n"
    yield "*Every combination tried; bars are 95 % intervals.*\n"
    yield "| solver | guided | deep part runs | distance | agreement | ms a picture |"
    yield "| --- | --- | --- | --- | --- | ---: |"
    for name, each in sorted(ways.items(), key=lambda item: item[1].seconds):
        if name != ANCESTRAL:
            yield f"| {' | '.join(told(each.sampling))} | {score(each)} | {1e3 * each.seconds:.1f} |"
    yield f"\n{WANDER}"


def caching(record: dict[str, Any]) -> Iterator[str]:
    """Every run's three rows."""
    yield CACHES
    for section in record.values():
        ways = scored(section)
        if "clock" not in section:
            yield from unfinished(section, ways)
            continue
        clock = section["clock"]["median"]
        yield f"{about(section)}; rounds of {section['clock']['batch']} pictures:\n"
        yield "| cache | deep part runs | distance | agreement | distance against none | ms a picture | speed |"
        yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
        plain = ways[section["caches"]["plain"]]
        for cache, name in section["caches"].items():
            if name is None:
                yield f"| {cache} | - | no number of refreshes below all is within the loss | | | | |"
                continue
            each, speed = ways[name], clock["plain"] / clock[cache]
            yield (
                f"| {'none' if cache == 'plain' else cache} | {told(each.sampling)[2]} | {score(each)} | "
                f"{100 * (each.distance / plain.distance - 1):+.1f} % | {1e3 * clock[cache]:.1f} | {speed:.2f}x |"
            )
        fast = [cache for cache, name in section["caches"].items() if name and clock["plain"] / clock[cache] >= CACHED]
        verdict = f"**reached** by {' and by '.join(fast)}" if fast else "**missed**"
        yield f"\nAt least {CACHED:g}x asked for: {verdict}.\n"


def unfinished(section: dict[str, Any], ways: dict[str, Scored]) -> Iterator[str]:
    """What there is of a run that was cut short."""
    yield f"{about(section)}; cut short, so that milliseconds are those of scoring, one way after another:\n"
    yield "| deep part runs | distance | agreement | distance against none | ms a picture | speed |"
    yield "| --- | --- | --- | ---: | ---: | ---: |"
    plain = next(each for each in ways.values() if not each.sampling.refresh)
    for each in ways.values():
        yield (
            f"| {told(each.sampling)[2]} | {score(each)} | {100 * (each.distance / plain.distance - 1):+.1f} % | "
            f"{1e3 * each.seconds:.1f} | {plain.seconds / each.seconds:.2f}x |"
        )
    yield ""


def picture(ways: dict[str, Scored], slow: float) -> None:
    """Score against seconds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    solvers = sorted({each.sampling.sampler for each in ways.values()})
    for name, each in ways.items():
        how = each.sampling
        seconds = slow if name == ANCESTRAL else each.seconds
        low, high = each.distance_interval
        marker = "*" if name == ANCESTRAL else "s" if how.refresh else "o"
        always = how.guidance_interval == (0.0, 1.0)
        colour = f"C{solvers.index(how.sampler)}"
        ends = [[max(0, each.distance - low)], [max(0, high - each.distance)]]
        axes.errorbar(seconds, each.distance, ends, color=colour, alpha=0.25, zorder=1)
        axes.scatter(
            seconds,
            each.distance,
            s=160 if marker == "*" else 36,
            marker=marker,
            color=colour,
            facecolors=colour if always else "none",
            zorder=2,
        )
    for i, solver in enumerate(solvers):
        axes.scatter([], [], color=f"C{i}", label="ddpm 250 (baseline)" if solver == "ddpm" else solver)
    axes.scatter([], [], marker="s", color="gray", label="cached")
    axes.scatter([], [], facecolors="none", color="gray", label="guided within an interval")
    axes.set(xscale="log", yscale="log", xlabel="seconds a picture, one thread", ylabel="Fréchet distance (judge)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / "frontier.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    write_page(json.loads(Path(__file__).with_name("frontier.json").read_text(encoding="utf-8")))
