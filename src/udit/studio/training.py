"""The tab that watches a run while it trains."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from udit.errors import UserError
from udit.studio.chart import loss_chart
from udit.studio.fields import light
from udit.studio.session import Studio
from udit.studio.sheet import hint, problem, sample_grid, status
from udit.studio.watch import Watch

SECONDS = 5
"""Between two looks at the run's files."""
NEWEST = "newest"


def training_tab(studio: Studio, page: gr.Blocks, tab: gr.Tab) -> None:
    """Curves, progress, what is odd, and the sample grids of a run; read again while the tab is open."""
    titles = list(studio.place.runs())
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            run = gr.Dropdown(titles, value=titles[0] if titles else None, label="Run")
            told = gr.HTML(elem_id="training-status")
            chart = gr.HTML(elem_id="training-chart")
            odd = gr.HTML(elem_id="training-findings")
        with gr.Column(scale=1, min_width=320):
            step = gr.Dropdown([("newest", NEWEST)], value=NEWEST, label="Samples of step")
            grid = gr.HTML(hint("No sample grid yet."), elem_id="training-grid")
    seen = gr.State(None)
    timer = gr.Timer(SECONDS, active=False)

    def look(title: str | None, wanted: str, before: Any) -> list[Any]:
        try:
            watch = studio.watch(title)
            return refreshed(watch, title, wanted, before)
        except UserError as error:
            return [problem(str(error)), "", "", gr.skip(), hint("No sample grid yet."), None]

    outputs = [told, chart, odd, step, grid, seen]
    options = light("look") | {"api_name": False}
    for event in (tab.select, run.change, step.input, timer.tick):
        event(look, [run, step, seen], outputs, **options)
    tab.select(lambda: gr.Timer(active=True), None, timer, **light("watch"))
    run.focus(lambda: gr.Dropdown(choices=list(studio.place.runs())), None, run, **light("runs"))


def refreshed(watch: Watch, title: str | None, wanted: str, before: Any) -> list[Any]:
    """The tab's contents; what has not changed since ``before`` is left alone."""
    watch.log.read()
    grids = dict(watch.grids())
    chosen = max(grids, default=None) if wanted == NEWEST or int(wanted) not in grids else int(wanted)
    now = [title, watch.log.changed, len(watch.log.steps), sorted(grids), chosen]
    text = status(str(watch.progress()))
    if now == before:
        return [text, *[gr.skip()] * 5]
    odd = "".join(f"<li class='{f.verdict}'>{escape(str(f))}</li>" for f in watch.findings())
    chart = loss_chart(watch.log.curve(), watch.log.held_out) or hint("No step is logged yet.")
    choices = [("newest", NEWEST), *((f"{step:,}", str(step)) for step in sorted(grids, reverse=True))]
    same = before is not None and before[0] == title and before[3:] == now[3:]
    return [
        text,
        chart + legend(bool(watch.log.held_out)),
        f"<ul class='findings'>{odd}</ul>" if odd else "",
        gr.Dropdown(choices=choices),
        gr.skip() if same else sample_grid(grids.get(chosen or -1), chosen),
        now,
    ]


def legend(held_out: bool) -> str:
    """What the curves are."""
    second = "<span class='held-out'>held out (averaged weights)</span>" if held_out else ""
    return f"<p class='legend'><span class='training'>training loss</span>{second}</p>"
