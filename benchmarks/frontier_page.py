"""Writes docs/sampling.md and its picture from benchmarks/frontier.json; ``benchmarks/frontier.py --page`` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from udit.diffusion.config import SamplingConfig
from udit.tuning.quality import DEFAULTS, LOSSES, Scored, fastest

DOCS = Path(__file__).parent.parent / "docs"
ANCESTRAL = "ancestral 250"
LITERAL, OURS = "the literal U-DiT", "our fused network, not of the literal U-DiT"
"""What the baseline's seconds may be of."""
SPEED, CACHED = 40.0, 1.8
"""What was asked for: an image of no worse score, and step caching on top of a 50-step solver."""
INTRO = """# Quick sampling

    udit tune RUN                     # once, after training: scores and times ways of drawing, writes RUN/quality.json
    udit sample RUN --quality good    # from then on

**Which to take.** `draft` to look at a model, `good` for pictures to show, `best` for pictures to score: the quickest
way within 50, 10 or 2 % of the best score that `udit tune` found on `--n` pictures of each way (500 if not told).
Without a `quality.json` beside the run or model folder, `--quality` takes these, guided as the model's own setting
says:

| | draft | good | best |
| --- | --- | --- | --- |
{defaults}

By hand, under `sampling` of a recipe: `sampler` and `steps`; then `guidance_interval: [0.2, 0.8]`, which guides in the
middle only, saves time and here scored better; then a cache (`refresh: [0, 3]` and `keep_guidance: true` at 9 steps).

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
weights are compared. Its seconds are those of {network} (which is
[benchmarks/literal.py](../benchmarks/literal.py)): two guided steps, times 125, in the same rounds as the other rows.
The other three rows are the quickest ways within 50, 10 and 2 % of the best score, chosen as `udit tune` chooses.
"""
CACHES = """\
Euler's 50 steps, guided at all of them. Caches are calibrated to a loss of 2 % of the score: distance at most so
much larger, agreement at most so much smaller, on the same seeds. Speed is the median of the rounds' own ratios and
their ends. The rule is the same for all networks; the DiT has 2.5 million weights and 110 million MACs beside
the U-DiT's 2.4 and 85, and is the run of `udit train fashion-mnist training.batch_size=32
'model={family: DiT, width: 128, depth: 8, heads: 4, patch: 2}'`, stopped at the step that is given with its table.
"""
MEASURED = """\
The rest of this page is written by `python benchmarks/frontier.py --page` from
[benchmarks/frontier.json](../benchmarks/frontier.json). Distances are squared Fréchet distances of the features of
the run's own judge to its training pictures, too large by chance at these numbers of pictures, and not the FID of
the literature; intervals are 95 %, by bootstrap over pictures. All ways of a section draw the same seeds, so that
two ways differ by less than their intervals say. Seconds are a processor thread's.
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
    """The ways of a section by name, their seconds the clock's where it has run."""
    rounds = section.get("clock", {}).get("rounds", {})
    ways = {name: Scored.model_validate(row) for name, row in section["rows"].items()}
    return {name: each.replace(seconds=median(rounds[name])) if name in rounds else each for name, each in ways.items()}


def picked(ways: dict[str, Scored]) -> dict[str, Scored]:
    """By level, the quickest way within its loss of the best one."""
    tried = [each for name, each in ways.items() if name != ANCESTRAL]
    best = min(tried, key=lambda each: each.distance)
    return {level: fastest(tried, loss, best) for level, loss in LOSSES.items()}


def about(section: dict[str, Any]) -> str:
    """What was measured, in words."""
    protocol, facts = section["about"]["protocol"], section["facts"]
    words = (
        f"{facts['model']} of the run {facts['run']}, weights {section['about']['weights']} of step {facts['step']}; "
        f"{protocol['pictures']} pictures a way, seeds from {protocol['first_seed']}"
    )
    if clock := section.get("clock"):
        where, rounds = clock["machine"], next(iter(clock["rounds"].values()))
        words += (
            f"; seconds: medians of {len(rounds)} rounds over all ways, {clock['batch']} pictures at a time, "
            f"{where['processor']}, {where['threads']} thread, torch {where['torch']}, {where['date']}"
        )
    else:
        words += "; seconds: of scoring, one way after another, which wander with what else the machine does"
    return words


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
    ways = scored(section)
    ancestral = ways[ANCESTRAL]
    network = section.get("clock", {}).get("baseline", OURS)
    yield f"{about(section)}.\n"
    yield BASELINE.format(network=network)
    yield "| | solver | guided | deep part runs | distance | agreement | ms a picture | against the baseline |"
    yield "| --- | --- | --- | --- | --- | --- | ---: | ---: |"
    yield f"| baseline | ddpm 250 | always | always | {score(ancestral)} | {1e3 * ancestral.seconds:.0f} | 1x |"
    for level, way in picked(ways).items():
        cells, speed = " | ".join(told(way.sampling)), ancestral.seconds / way.seconds
        yield f"| {level} | {cells} | {score(way)} | {1e3 * way.seconds:.1f} | {speed:.0f}x |"
    yield f"\n{verdict(section)}"
    picture(ways)
    yield "\n![score against seconds, every combination tried](images/frontier.png)\n"
    yield "*Every combination tried; bars are 95 % intervals.*\n"
    yield "| solver | guided | deep part runs | distance | agreement | ms a picture |"
    yield "| --- | --- | --- | --- | --- | ---: |"
    for name, each in sorted(ways.items(), key=lambda item: item[1].seconds):
        if name != ANCESTRAL:
            yield f"| {' | '.join(told(each.sampling))} | {score(each)} | {1e3 * each.seconds:.1f} |"


def verdict(section: dict[str, Any]) -> str:
    """Whether an image of no worse score is as much faster as was asked for."""
    ways = scored(section)
    slow, picks = ways[ANCESTRAL], picked(ways)
    count = section["about"]["protocol"]["pictures"]
    near = {level: slow.seconds / way.seconds for level, way in picks.items() if overlap(way, slow)}
    sure = {level: speed for level, speed in near.items() if picks[level].within(0, slow)}
    speed = max(near.values(), default=0.0)
    words = f"An image of no worse score is {fastest_of(near)} (intervals of {count} pictures overlap)"
    words += f", and {fastest_of(sure)} with no larger distance and no smaller agreement at all"
    if section.get("clock", {}).get("baseline") != LITERAL:
        return f"{words}; {SPEED:g}x was asked for against the literal U-DiT, which this does not show."
    return f"{words}; at least {SPEED:g}x was asked for: **{'reached' if speed >= SPEED else 'missed'}**."


def fastest_of(speeds: dict[str, float]) -> str:
    """In words."""
    if not speeds:
        return "not faster by any pick"
    level, speed = max(speeds.items(), key=lambda item: item[1])
    return f"{speed:.0f}x faster by {level}"


def caching(record: dict[str, Any]) -> Iterator[str]:
    """Every run's three rows."""
    yield CACHES
    for section in record.values():
        ways = scored(section)
        yield f"{about(section)}:\n"
        yield "| cache | deep part runs | distance | agreement | distance against none | ms a picture | speed |"
        yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
        plain = ways[section["caches"]["plain"]]
        for cache, name in section["caches"].items():
            if name is None:
                yield f"| {cache} | - | no number of refreshes up to half of all is within the loss | | | | |"
                continue
            each = ways[name]
            yield (
                f"| {'none' if cache == 'plain' else cache} | {told(each.sampling)[2]} | {score(each)} | "
                f"{100 * (each.distance / plain.distance - 1):+.1f} % | {1e3 * each.seconds:.1f} | "
                f"{span(cached(section)[cache])} |"
            )
        fast = [cache for cache, speeds in cached(section).items() if min(speeds) >= CACHED]
        yield (
            f"\nAt least {CACHED:g}x asked for, in every round: "
            f"{f'**reached** by {fast[-1]}' if fast else '**missed**'}.\n"
        )


def cached(section: dict[str, Any]) -> dict[str, list[float]]:
    """How much faster the 50-step solver is by each cache that keeps within the loss, round by round."""
    rounds = section.get("clock", {}).get("rounds") or {name: [row["seconds"]] for name, row in section["rows"].items()}
    plain = rounds[section["caches"]["plain"]]
    return {
        cache: [slow / quick for slow, quick in zip(plain, rounds[name], strict=True)]
        for cache, name in section["caches"].items()
        if name
    }


def span(speeds: list[float]) -> str:
    """Median and ends."""
    return f"{median(speeds):.2f}x ({min(speeds):.2f} to {max(speeds):.2f})"


def whole_images(record: dict[str, Any]) -> Iterator[str]:
    """The lines and the picture that stand in docs/performance.md."""
    section = record["frontier"]
    ways = scored(section)
    slow, pick, run = ways[ANCESTRAL], picked(ways), section["facts"]["run"]
    yield f"- {verdict(section)}"
    yield (
        f"  The baseline, 250 guided ancestral steps, takes {slow.seconds:.2f} s a picture of {run}; "
        + ", ".join(f"{level} {1e3 * way.seconds:.0f} ms" for level, way in pick.items())
        + " (`udit sample --quality`), one thread."
    )
    for each in record.values():
        found = {cache: span(speeds) for cache, speeds in cached(each).items() if cache != "plain"}
        speeds = ", ".join(map(" ".join, found.items())) or "no cache"
        yield (
            f"- Step caching on top of 50 steps, {each['facts']['model']} of the run {each['facts']['run']}, within "
            f"2 % of the score: {speeds}; {CACHED:g}x was asked for."
        )
    yield "\n![score against seconds, every combination tried](images/frontier.png)\n"
    yield "*Score against seconds, every way of drawing that was tried: [sampling.md](sampling.md) has the numbers.*"


def picture(ways: dict[str, Scored]) -> None:
    """Score against seconds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    solvers = sorted({each.sampling.sampler for each in ways.values()})
    for name, each in ways.items():
        how = each.sampling
        low, high = each.distance_interval
        marker = "*" if name == ANCESTRAL else "s" if how.refresh else "o"
        always = how.guidance_interval == (0.0, 1.0)
        colour = f"C{solvers.index(how.sampler)}"
        ends = [[max(0, each.distance - low)], [max(0, high - each.distance)]]
        axes.errorbar(each.seconds, each.distance, ends, color=colour, alpha=0.25, zorder=1)
        axes.scatter(
            each.seconds,
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
    axes.set(xscale="log", xlabel="seconds a picture, one thread", ylabel="Fréchet distance (judge)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / "frontier.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    write_page(json.loads(Path(__file__).with_name("frontier.json").read_text(encoding="utf-8")))
