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
    seen = gr.Textbox("", visible=False)
    timer = gr.Timer(SECONDS, active=False)

    def look(title: str | None, wanted: str, before: str) -> list[Any]:
        try:
            watch = studio.watch(title)
            return refreshed(watch, title, wanted, before)
        except UserError as error:
            return [problem(str(error)), "", "", gr.skip(), hint("No sample grid yet."), ""]

    outputs = [told, chart, odd, step, grid, seen]
    gr.on([tab.select, run.change, step.input, timer.tick], look, [run, step, seen], outputs, **light("look"))
    tab.select(lambda: gr.Timer(active=True), None, timer, **light("watch"))
    run.focus(lambda: gr.Dropdown(choices=list(studio.place.runs())), None, run, **light("runs"))


def refreshed(watch: Watch, title: str | None, wanted: str, before: str) -> list[Any]:
    """The tab's contents; what has not changed since ``before``, the last of them, is left alone."""
    watch.log.read()
    grids = dict(watch.grids())
    number = int(wanted) if str(wanted).isdecimal() else -1
    chosen = number if number in grids else max(grids, default=None)
    of_log, of_grids = f"{title} {watch.log.changed} {len(watch.log.steps)}", f"{title} {sorted(grids)} {chosen}"
    log_before, _, grids_before = before.partition("|")
    contents: list[Any] = [status(str(watch.progress())), *[gr.skip()] * 4, f"{of_log}|{of_grids}"]
    if of_log != log_before:
        odd = "".join(f"<li class='{f.verdict}'>{escape(str(f))}</li>" for f in watch.findings())
        chart = loss_chart(watch.log.curve(), watch.log.held_out)
        contents[1] = chart + legend(bool(watch.log.held_out)) if chart else hint("No step is logged yet.")
        contents[2] = f"<ul class='findings'>{odd}</ul>" if odd else ""
    if of_grids != grids_before:
        listed = [("newest", NEWEST), *((f"{step:,}", str(step)) for step in sorted(grids, reverse=True))]
        contents[3] = gr.Dropdown(choices=listed)
        contents[4] = sample_grid(grids[chosen], chosen) if chosen is not None else hint("No sample grid yet.")
    return contents


def legend(held_out: bool) -> str:
    """What the curves are."""
    second = "<span class='held-out'>held out (averaged weights)</span>" if held_out else ""
    return f"<p class='legend'><span class='training'>training loss</span>{second}</p>"
