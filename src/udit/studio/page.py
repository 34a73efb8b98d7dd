"""The page: gradio's components around ``session``. This module and ``serve`` alone import gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

import gradio as gr

from udit.studio.comparing import compare
from udit.studio.fields import CHANGES, Fields, compared, following, light, model_of, wanted_of
from udit.studio.session import Shown, Studio
from udit.studio.sheet import hint, status
from udit.studio.training import training_tab

QUEUED = 64
"""Most drawings that wait; further ones are refused at once."""
THREADS = 8
"""For answers of all kinds; drawings are made one at a time."""
SESSIONS = 200
"""Browser tabs whose state is kept."""
KEPT = (600, 3600)
"""Seconds between two removals of old files, and their age."""


def theme() -> gr.themes.Base:
    """The fonts of the system, so that none is loaded, and grey text that is dark enough to read."""
    look = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=("ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
        radius_size="sm",
        spacing_size="sm",
    )
    return look.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def style() -> str:
    """The page's own style sheet."""
    return resources.files("udit.studio").joinpath("page.css").read_text(encoding="utf-8")


def build(studio: Studio) -> gr.Blocks:
    """The page of a place; its queue has all limits set."""
    with gr.Blocks(title="udit studio", analytics_enabled=False, fill_width=True, delete_cache=KEPT) as page:
        gr.HTML(f"<div class='top'><h1>udit studio</h1><p>{escape(studio.place.shown)}</p></div>")
        with gr.Tabs():
            with gr.Tab("Draw"):
                draw_tab(studio, page)
            with gr.Tab("Compare"):
                compare_tab(studio, page)
            if studio.place.may_have_runs:
                with gr.Tab("Training") as tab:
                    training_tab(studio, page, tab)
    page.max_threads = THREADS
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=QUEUED, default_concurrency_limit=1, api_open=False)


def draw_tab(studio: Studio, page: gr.Blocks) -> None:
    """One model: its settings on the left, its images on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = model_of(studio, "Model")
            fields = Fields(studio, model, page)
        with gr.Column(scale=5, min_width=320):
            with gr.Row(elem_classes="actions"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                more = gr.Button("Next seeds", elem_id="next-seeds")
                stop = gr.Button("Stop", elem_id="stop")
            told = gr.HTML(status("Ready."), elem_id="draw-status")
            sheet = gr.HTML(hint("Choose classes and seeds, then Draw: every seed of every class."), elem_id="draw-sheet")
            with gr.Row(elem_classes="actions"):
                grid = gr.DownloadButton("Save grid (PNG)", interactive=False, elem_id="save-grid", size="sm")
                every = gr.DownloadButton("Save all (zip)", interactive=False, elem_id="save-all", size="sm")
            command = gr.Textbox(
                label="The same as a command", visible=False, interactive=False, max_lines=3, buttons=["copy"], elem_id="command"
            )

    def run(key: str, *values: Any) -> Iterator[list[Any]]:
        for shown in studio.draw(wanted_of(key, values)):
            yield [*_sheet(shown), *_files(shown.grid, shown.archive), _command(shown)]

    outputs = [sheet, told, grid, every, command]
    drawing = gr.on([draw.click, fields.seeds.submit], run, [model, *fields.all], outputs, **queued("draw"))
    moved = more.click(following, fields.seeds, fields.seeds, **light("next_seeds"))
    next_drawing = moved.then(run, [model, *fields.all], outputs, **queued("draw_next"))
    stop.click(lambda: status("Stopped."), None, told, cancels=[drawing, next_drawing], **light("stop_drawing"))


def compare_tab(studio: Studio, page: gr.Blocks) -> None:
    """Two models on the same seeds and classes."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            one = model_of(studio, "Model A")
            other = model_of(studio, "Model B", last=True)
            fields = compared(studio, one, page)
        with gr.Column(scale=5, min_width=320):
            with gr.Row(elem_classes="actions"):
                draw = gr.Button("Compare", variant="primary", elem_id="compare")
                stop = gr.Button("Stop")
            told = gr.HTML(status("Ready."), elem_id="compare-status")
            sheet = gr.HTML(
                hint("Choose two models, or two checkpoints of a run: the same seeds and classes of both, side by side."),
                elem_id="compare-sheet",
            )
            with gr.Row(elem_classes="actions"):
                grid = gr.DownloadButton("Save grid (PNG)", interactive=False, size="sm")

    def run(a: str, b: str, classes: Sequence[int], seeds: str, of_a: str, of_b: str, preset: str) -> Iterator[list[Any]]:
        first = wanted_of(a, [classes, seeds, preset, *[None] * len(CHANGES), of_a, "x0"])
        second = wanted_of(b, [classes, seeds, preset, *[None] * len(CHANGES), of_b, "x0"])
        for shown in compare(studio, first, second):
            yield [*_sheet(shown), *_files(shown.grid)]

    inputs = [one, other, fields.classes, fields.seeds, fields.weights_a, fields.weights_b, fields.preset]
    drawing = gr.on([draw.click, fields.seeds.submit], run, inputs, [sheet, told, grid], **queued("compare"))
    stop.click(lambda: status("Stopped."), None, told, cancels=drawing, **light("stop_comparing"))


def queued(name: str) -> dict[str, Any]:
    """Options of events that draw: one at a time, in order."""
    options = {"concurrency_id": "sampling", "concurrency_limit": 1, "trigger_mode": "once"}
    return options | {"preprocess": False, "show_progress": "hidden", "api_name": name}


def _sheet(shown: Shown) -> list[Any]:
    return [gr.skip() if shown.sheet is None else shown.sheet, shown.status]


def _files(*paths: Any) -> list[Any]:
    """Buttons that save a file, or wait for it."""
    return [
        gr.DownloadButton(interactive=False) if path is None else gr.DownloadButton(value=str(path), interactive=True)
        for path in paths
    ]


def _command(shown: Shown) -> Any:
    return gr.Textbox(value=shown.command, visible=bool(shown.command)) if shown.grid else gr.skip()
