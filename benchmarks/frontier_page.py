"""Writes docs/sampling.md and its figure from benchmarks/frontier.json; ``benchmarks/frontier.py --page`` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from udit.diffusion.config import PROCESSES, SamplingConfig
from udit.diffusion.samplers import SAMPLERS
from udit.tuning.quality import LOSSES, Scored, fastest

DOCS = Path(__file__).parent.parent / "docs"
ANCESTRAL = "ancestral 250"
LITERAL, OURS = "the literal U-DiT", "our fused network, not of the literal U-DiT"
"""The networks whose seconds the baseline's may be."""
SPEED, CACHED = 40.0, 1.8
"""Target speed-ups: of an image with no worse score, and of step caching on top of a 50-step solver."""
INTRO = """# Fast sampling

<!-- not executed: scores some fifty settings, minutes -->
```console
$ udit tune runs/digits                     # once, after training: scores and times settings, writes quality.json
```

<!-- executed with: sample --n 2 -->
```console
$ udit sample runs/digits --quality good    # from then on
```

**Which to take.** `draft` for a look at a model, `good` for images to show, `best` for images to score: the fastest
setting within 50, 10 or 2 % of the best score that `udit tune` found, with `--n` images per setting (default 500).

`udit tune` is one sweep on the same seeds: first averages of the weights of other lengths (of a run with
`training.posthoc_ema`), then scales of guidance, at all times and within an interval; each replaces the run's own only
where the difference of both distances over the same seeds excludes zero ([evaluation.md](evaluation.md#paired-seeds)),
since the best of many settings that differ by chance alone is none. Then solvers and numbers of steps, then caches.
`--budget N` is the most evaluations of the network, counted for one image; what it does not allow is left out. The
result is frozen in `RUN/quality.json`, and another average in `RUN/tuned`; `--quality` of `udit sample` and `udit eval`
takes both.
Without a `quality.json` in the run or model folder, `--quality` uses this table, with the model's own guidance:

| | draft | good | best |
| --- | --- | --- | --- |
{defaults}

Samplers, and the noising processes (`diffusion.kind`) whose models they serve; the first that serves a process is its
default. A count is one of network evaluations; respacing is ADM's (`"ddim50"`, `"10,20,20"`), from Python only.

| sampler | what it is | serves | steps | options |
| --- | --- | --- | --- | --- |
{samplers}

Models that are trained for few evaluations (`udit train digits-mean-flow`, `digits-consistency`) are sampled in one to
four; [their scores](training.md#few-evaluations) stand with how they are trained. Neither takes a cache.

To choose by hand, under `sampling` of a recipe: first `sampler` and `steps`; then `guidance_interval: [0.2, 0.8]`,
which applies guidance only in the middle of sampling, saves time and scored better here; then a cache
(`refresh: [0, 3]` and `keep_guidance: true` at 9 steps).

**Step caching** runs the deep part of a network (in a U everything below full resolution, in a DiT the middle half of
the blocks) at some steps only, and the outer parts at every step. For a network without long skips, what is kept is
what the deep part added. `sampling.cache=N` runs the deep part at every N-th step; `sampling.refresh=[0,3,...]` at the
steps named. The other steps reuse its last output, or with `sampling.forecast=true` extrapolate linearly from its last
two. With `sampling.keep_guidance=true` they also reuse the difference between the conditional and the null prediction,
so that only the conditional half of the batch runs. `udit tune` records one run of 16 images, estimates from it which
steps to refresh for each number of refreshes (`diffusion/calibrate.py` derives the formula), and takes the smallest
number whose score is within 2 %. A cache lives for one sampling call.

What depends on time and label alone, mostly the matrix products of adaLN, is computed once per call for all steps,
labels and batches (`diffusion/conditions.py`).
"""

BASELINE = """\
The baseline is DDPM's ancestral sampler: 250 steps, guidance at every step. Its images are drawn by our fused network,
which equals the literal one up to rounding, along DDPM's noise levels: a variance-preserving x_t whose ratio of noise
to signal is r is the x_t of the linear path at t = r / (1 + r), scaled, so the same weights are compared. Its seconds
are those of {network} (`benchmarks/literal.py`): two guided steps, times 125, in the
same rounds as the other rows. The other three rows are the fastest settings within 50, 10 and 2 % of the best score,
chosen as `udit tune` chooses.
"""
CACHES = """\
Euler's 50 steps, guided at every step. Caches are calibrated to lose at most 2 % of the score: the distance may be at
most that much larger and the agreement at most that much smaller, on the same seeds. Speed is the median of the ratios
of all rounds, with their range. The rule is the same for all networks. The DiT has 2.5 million weights and 110 million
MACs where the U-DiT has 2.4 and 85; its run is `udit train fashion-mnist training.batch_size=32
'model={family: DiT, width: 128, depth: 8, heads: 4, patch: 2}'`, stopped at the step given with its table.
"""
MEASURED = """\

The rest of this page is written by `python benchmarks/frontier.py --page` from
`benchmarks/frontier.json`. Distances are squared Fréchet distances between features of
the run's own judge and its training images. They are biased upwards at these numbers of images and are not the FID of
the literature. Intervals are 95 %, by bootstrap over images. All settings of a section draw the same seeds, so two
settings differ by less than their intervals suggest. Seconds are processor time of one thread.

Rows of `flow-heun` were measured with diffusers' levels, which spend the last evaluation on a thousandth of the path.
Since then it has levels of its own, whose last step is 1 / (2 n) of the path for n evaluations
(`diffusion/transport.py`). Its scores are others now; its times are not.
"""


def write_page(record: dict[str, Any]) -> None:
    """Writes the page and its figure."""
    lines = [intro()]
    if record:
        lines += [MEASURED]
    if "frontier" in record:
        lines += ["## The frontier\n", *frontier(record["frontier"])]
    if record:
        lines += ["\n## Caching on top of a 50-step solver\n", *caching(record)]
    (DOCS / "sampling.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")


def intro() -> str:
    """The part of the page without measurements: advice, and the tables of processes and samplers."""
    defaults = [
        f"| {kind} | " + " | ".join(f"{sampler}, {steps} steps" for sampler, steps in config.quality.values()) + " |"
        for kind, config in PROCESSES.items()
    ]
    samplers = []
    for name, row in SAMPLERS.items():
        options = " ".join(f"`{option}`" for option in ("eta", "clip") if getattr(row, option)) or "none"
        steps = "a count, or respacing" if row.respaces else "a count"
        samplers.append(f"| `{name}` | {row.about} | {', '.join(row.processes)} | {steps} | {options} |")
    return INTRO.format(defaults="\n".join(defaults), samplers="\n".join(samplers))


def scored(section: dict[str, Any]) -> dict[str, Scored]:
    """The settings of a section by name, with the seconds of ``--clock`` where it has run."""
    rounds = section.get("clock", {}).get("rounds", {})
    ways = {name: Scored.model_validate(row) for name, row in section["rows"].items()}
    return {name: each.replace(seconds=median(rounds[name])) if name in rounds else each for name, each in ways.items()}


def picked(ways: dict[str, Scored]) -> dict[str, Scored]:
    """For each quality level, the fastest setting whose score is within the level's loss of the best."""
    tried = [each for name, each in ways.items() if name != ANCESTRAL]
    best = min(tried, key=lambda each: each.distance)
    return {level: fastest(tried, loss, best) for level, loss in LOSSES.items()}


def about(section: dict[str, Any]) -> str:
    """A sentence on what was measured and where."""
    protocol, facts = section["about"]["protocol"], section["facts"]
    words = (
        f"{facts['model']} of the run {facts['run']}, weights {section['about']['weights']} of step {facts['step']}; "
        f"{protocol['pictures']} images per setting, seeds from {protocol['first_seed']}"
    )
    if clock := section.get("clock"):
        where, rounds = clock["machine"], next(iter(clock["rounds"].values()))
        words += (
            f"; seconds: medians of {len(rounds)} rounds over all settings, batches of {clock['batch']} images, "
            f"{where['processor']}, {where['threads']} thread, torch {where['torch']}, {where['date']}"
        )
    else:
        words += "; seconds: of scoring, one setting after another, so they vary with the load of the machine"
    return words


def told(how: SamplingConfig) -> tuple[str, str, str]:
    """Cells of a table row: solver, guidance, cache."""
    low, high = how.guidance_interval
    guided = "never" if how.guidance == 1 else "always" if (low, high) == (0, 1) else f"t from {low:g} to {high:g}"
    cache = f"{len(how.refresh)} of {how.steps}" if how.refresh else "always"
    cache += (", forecast" if how.forecast else "") + (", guidance reused" if how.keep_guidance else "")
    return f"{how.sampler} {how.steps}", guided, cache


def score(each: Scored) -> str:
    """Cells of a table row: distance and agreement."""
    (low, high), (sure, surer) = each.distance_interval, each.agreement_interval
    return (
        f"{each.distance:.3f} ({low:.3f} to {high:.3f}) | "
        f"{100 * each.agreement:.1f} % ({100 * sure:.1f} to {100 * surer:.1f})"
    )


def overlap(a: Scored, b: Scored) -> bool:
    """Whether a is no worse than b in both scores, up to their intervals."""
    return a.distance_interval[0] <= b.distance_interval[1] and a.agreement_interval[1] >= b.agreement_interval[0]


def frontier(section: dict[str, Any]) -> Iterator[str]:
    """Lines of the section on the first run."""
    ways = scored(section)
    ancestral = ways[ANCESTRAL]
    network = section.get("clock", {}).get("baseline", OURS)
    yield f"{about(section)}.\n"
    yield BASELINE.format(network=network)
    yield "| | solver | guided | deep part runs | distance | agreement | ms per image | speed-up |"
    yield "| --- | --- | --- | --- | --- | --- | ---: | ---: |"
    yield f"| baseline | ddpm 250 | always | always | {score(ancestral)} | {1e3 * ancestral.seconds:.0f} | 1x |"
    for level, way in picked(ways).items():
        cells, speed = " | ".join(told(way.sampling)), ancestral.seconds / way.seconds
        yield f"| {level} | {cells} | {score(way)} | {1e3 * way.seconds:.1f} | {speed:.0f}x |"
    yield f"\n{verdict(section)}"
    draw_figure(ways)
    yield "\n![score against seconds, every setting tried](images/frontier.png)\n"
    yield "*Every setting tried; bars are 95 % intervals.*\n"
    yield "| solver | guided | deep part runs | distance | agreement | ms per image |"
    yield "| --- | --- | --- | --- | --- | ---: |"
    for name, each in sorted(ways.items(), key=lambda item: item[1].seconds):
        if name != ANCESTRAL:
            yield f"| {' | '.join(told(each.sampling))} | {score(each)} | {1e3 * each.seconds:.1f} |"


def verdict(section: dict[str, Any]) -> str:
    """A sentence on how much faster an image of no worse score is, and whether that reaches the target."""
    ways = scored(section)
    slow, picks = ways[ANCESTRAL], picked(ways)
    count = section["about"]["protocol"]["pictures"]
    near = {level: slow.seconds / way.seconds for level, way in picks.items() if overlap(way, slow)}
    sure = {level: speed for level, speed in near.items() if picks[level].within(0, slow)}
    speed = max(near.values(), default=0.0)
    words = f"An image of no worse score is {fastest_of(near)} (the intervals of {count} images overlap), "
    words += f"and {fastest_of(sure)} with neither a larger distance nor a smaller agreement"
    if section.get("clock", {}).get("baseline") != LITERAL:
        return f"{words}. The target, {SPEED:g}x against the literal U-DiT, is not measured by this."
    return f"{words}. Target: at least {SPEED:g}x; **{'reached' if speed >= SPEED else 'missed'}**."


def fastest_of(speeds: dict[str, float]) -> str:
    """The largest of some speed-ups by level, as part of a sentence."""
    if not speeds:
        return "not faster at any quality"
    level, speed = max(speeds.items(), key=lambda item: item[1])
    return f"{speed:.0f}x faster at `{level}`"


def caching(record: dict[str, Any]) -> Iterator[str]:
    """Lines of the section on caches: a table of three rows for each run."""
    yield CACHES
    for section in record.values():
        ways = scored(section)
        yield f"{about(section)}:\n"
        yield "| cache | deep part runs | distance | agreement | distance against no cache | ms per image | speed |"
        yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
        plain = ways[section["caches"]["plain"]]
        for cache, name in section["caches"].items():
            if name is None:
                yield f"| {cache} | - | no cache that refreshes at most half of the steps is within the loss | | | | |"
                continue
            each = ways[name]
            yield (
                f"| {'none' if cache == 'plain' else cache} | {told(each.sampling)[2]} | {score(each)} | "
                f"{100 * (each.distance / plain.distance - 1):+.1f} % | {1e3 * each.seconds:.1f} | "
                f"{span(cached(section)[cache])} |"
            )
        fast = [cache for cache, speeds in cached(section).items() if min(speeds) >= CACHED]
        yield (
            f"\nTarget: at least {CACHED:g}x in every round; "
            f"{f'**reached** by {fast[-1]}' if fast else '**missed**'}.\n"
        )


def cached(section: dict[str, Any]) -> dict[str, list[float]]:
    """Speed-up of the 50-step solver by each cache within the allowed loss, one per round."""
    rounds = section.get("clock", {}).get("rounds") or {name: [row["seconds"]] for name, row in section["rows"].items()}
    plain = rounds[section["caches"]["plain"]]
    return {
        cache: [slow / quick for slow, quick in zip(plain, rounds[name], strict=True)]
        for cache, name in section["caches"].items()
        if name
    }


def span(speeds: list[float]) -> str:
    """Median, minimum and maximum."""
    return f"{median(speeds):.2f}x ({min(speeds):.2f} to {max(speeds):.2f})"


def whole_images(record: dict[str, Any]) -> Iterator[str]:
    """The lines and the figure in docs/performance.md."""
    section = record["frontier"]
    ways = scored(section)
    slow, pick, run = ways[ANCESTRAL], picked(ways), section["facts"]["run"]
    yield f"- {verdict(section)}"
    yield (
        f"  The baseline, 250 guided ancestral steps, takes {slow.seconds:.2f} s per image of {run}; "
        + ", ".join(f"{level} {1e3 * way.seconds:.0f} ms" for level, way in pick.items())
        + " (`udit sample --quality`), one thread."
    )
    for each in record.values():
        found = {cache: speeds for cache, speeds in cached(each).items() if cache != "plain"}
        speeds = ", ".join(f"{cache} {span(speeds)}" for cache, speeds in found.items()) or "no cache"
        reached = [cache for cache, speeds in found.items() if min(speeds) >= CACHED]
        yield (
            f"- Step caching on top of 50 steps, {each['facts']['model']} of the run {each['facts']['run']}, within "
            f"2 % of the score: {speeds}. Target: at least {CACHED:g}x in every round; "
            f"{f'**reached** by {reached[-1]}' if reached else '**missed**'}."
        )
    yield "\n![score against seconds, every setting tried](images/frontier.png)\n"
    yield "*Score against seconds, every setting tried: [sampling.md](sampling.md) has the numbers.*"


def draw_figure(ways: dict[str, Scored]) -> None:
    """Writes docs/images/frontier.png: score against seconds."""
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
    axes.set(xscale="log", xlabel="seconds per image, one thread", ylabel="Fréchet distance (judge)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / "frontier.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    write_page(json.loads(Path(__file__).with_name("frontier.json").read_text(encoding="utf-8")))
