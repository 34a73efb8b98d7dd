"""The report of a comparison: one HTML file that needs nothing else, PNGs of its plots, and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from udit.comparison import plots
from udit.comparison.config import UNITS, Comparison, plain_name, short_amount
from udit.comparison.job import Compared
from udit.comparison.records import Member
from udit.comparison.summary import Panel, Summary
from udit.comparison.words import Table, members_of, pairs_of, protocol_of, sizes_of, standings_of, title_of
from udit.files import write_text

PAGE = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #111;
  background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #999 }
h3 { font-size: 1.05rem }
table { border-collapse: collapse; margin: .6rem 0; font-size: .88rem }
th, td { border: 1px solid #bbb; padding: .25rem .55rem; text-align: left; vertical-align: top }
th { background: #eee } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto } svg { width: 100%; height: auto }
.verdict { font-weight: 600 } .problem { border-left: 4px solid #000; padding-left: .6rem }
.grids { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-size: .88rem }
.grids img { image-rendering: pixelated; max-width: 100% }
@media print { body { max-width: none; margin: 0 } h2, h3 { break-after: avoid } figure, svg, tr { break-inside: avoid }
  .wide { overflow: visible } table { font-size: .72rem } details { display: block } }
"""


def write_report(comparison: Comparison, found: Compared, out: Path | str) -> Path | None:
    """Writes ``report.html``, ``report.md``, ``summary.json`` and a PNG of each plot; nothing without members.

    Finished members alone decide every byte: a comparison that was killed and started again ends with the same report
    as one that was not, but for what was measured in seconds.
    """
    if found.summary is None:
        return None
    folder = Path(out)
    found.summary.write(folder / "summary.json")
    for panel in found.summary.panels:
        name = f"{plain_name(panel.score)}-{short_amount(panel.amount)}.png"
        plots.save_png(panel, title_of(panel, found.summary.budget), folder / name)
    write_text(folder / "report.md", markdown(comparison, found, found.summary))
    write_text(folder / PAGE, page(comparison, found, found.summary))
    return folder / PAGE


def page(comparison: Comparison, found: Compared, summary: Summary) -> str:
    """The whole page."""
    first = summary.panels[0].score
    main = [panel for panel in summary.panels if panel.score == first]
    others = [panel for panel in summary.panels if panel.score != first]
    parts = [f"<h1>{escape(comparison.name)}</h1>", _paragraphs(introduction(comparison, found))]
    parts += [f"<p class='problem'>{escape(line)}</p>" for line in [*found.problems, *_unfinished(found)]]
    for panel in main:
        parts += [_panel(panel, summary), _grids(found.members, panel)]
    parts.append("<h2>Systems</h2>" + _table(sizes_of(found.sizes, found.members)))
    if others:
        parts.append("<h2>Other scores</h2>")
        parts += [_panel(panel, summary, level=3) for panel in others]
    parts.append("<h2>Members</h2>" + _table(members_of(found.members)))
    parts.append("<h2>What all members share</h2>" + _table(protocol_of(found.members)))
    title = escape(comparison.name)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def markdown(comparison: Comparison, found: Compared, summary: Summary) -> str:
    """The tables alone."""
    lines = [f"# {comparison.name}", "", *introduction(comparison, found), ""]
    lines += [f"- {line}" for line in [*found.problems, *_unfinished(found)]]
    for panel in summary.panels:
        title, header, rows = standings_of(panel, summary.budget)
        lines += ["", f"## {title}", "", panel.verdict, "", *_markdown(header, rows), ""]
        lines += _markdown(*pairs_of(panel)[1:])
    lines += ["", "## Systems", "", *_markdown(*sizes_of(found.sizes, found.members)[1:])]
    return "\n".join(lines) + "\n"


def introduction(comparison: Comparison, found: Compared) -> list[str]:
    """What was done, in sentences."""
    member = found.members[0]
    grid = ", ".join(f"{rate:g}" for rate in comparison.rates)
    rates = (
        f"Each system's learning rate is the one of {grid} with the least loss of held-out images after "
        f"{comparison.rate_share:.3g} of the steps with seed {comparison.seeds[0]}."
        if comparison.rates
        else f"The learning rate is the recipe's, {member.lr:g}, for all systems; it was not tuned for any of them."
    )
    decay = (
        f"It is constant; before each score a branch of the training lets it fall to 0 over {comparison.decay:.0%} of "
        "its steps."
        if comparison.decay
        else "It is constant, and the averaged weights are scored."
    )
    scored = member.protocol["run"]["evaluation"]["num_samples"]
    sampling = member.protocol["run"]["sampling"]
    clock = "processor seconds of one thread" if member.clock == "processor" else "wall-clock seconds"
    return [
        f"Equal {UNITS[comparison.budget]}, to 2 %. Every member trains for {member.steps:,} steps of "
        f"{member.batch_size} images, the same images in the same order, with the same times and noise for each seed.",
        f"{rates} {decay}",
        f"Scores are of {scored:,} images, {sampling['sampler']} with {sampling['steps']} steps at guidance "
        f"{sampling['guidance']:g}, by the judge {member.evaluator.name} of the data set; its distance is not the "
        "FID of the literature.",
        "An interval of several seeds is Student's 95 % over seeds; of one seed it is that of its samples alone. "
        "Systems are compared by their differences seed by seed.",
        f"Seconds are {clock}: steps times the median step. Between two scores a curve is read on the line between "
        "them, over the logarithm.",
    ]


def _unfinished(found: Compared) -> list[str]:
    return [f"Not finished: {', '.join(found.missing)}."] if found.missing else []


def _panel(panel: Panel, summary: Summary, level: int = 2) -> str:
    title = title_of(panel, summary.budget)
    name = f"<h{level}>{escape(title[:1].upper() + title[1:])}</h{level}>"
    told = f"<p class='verdict'>{escape(panel.verdict)}</p>"
    tables = _table(standings_of(panel, summary.budget)) + _table(pairs_of(panel))
    return f"{name}{told}<figure>{plots.svg(panel, title)}</figure>{tables}"


def _grids(members: Sequence[Member], panel: Panel) -> str:
    """The samples of each system's first seed, side by side, the best system first."""
    figures = []
    for standing in panel.standings:
        own = next(one for one in members if one.system == standing.system and one.size.amount == panel.amount)
        told = f"{own.system}, seed {own.seed}: one column per class"
        figures.append(
            f"<figure><img alt='{escape(told, quote=True)}' src='data:image/png;base64,{own.images}'>"
            f"<figcaption>{escape(told)}</figcaption></figure>"
        )
    return f"<h3>Samples at the end</h3><div class='grids'>{''.join(figures)}</div>"


def _table(parts: Table) -> str:
    title, header, rows = parts
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table aria-label='{escape(title, quote=True)}'><tr>{head}</tr>{body}</table></div>"


def _cell(text: str) -> str:
    numeric = text[:1].isdigit() or (text[:1] in "+-" and text[1:2].isdigit())
    return f"<td class='number'>{escape(text)}</td>" if numeric and ":" not in text else f"<td>{escape(text)}</td>"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
