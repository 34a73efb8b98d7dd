"""The tabs that draw: settings on the left, images on the right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from udit.assemble import STRENGTH
from udit.studio.comparing import compare
from udit.studio.fields import (
    ALL_CLASSES,
    SETTINGS,
    SUBJECTS,
    VIEWS,
    Settings,
    Subjects,
    following,
    light,
    model_of,
    wanted_of,
)
from udit.studio.session import Shown, Studio
from udit.studio.sheet import command_text, hint, status


def draw_tab(studio: Studio, page: gr.Blocks) -> None:
    """Every seed of every class or prompt, from noise or from an image."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = model_of(studio, "Model")
            subjects = Subjects(studio, model, page, "draw", "0-3", ALL_CLASSES)
            settings = Settings(studio, model, page, "draw")
            view = gr.Radio(VIEWS, value="x0", label="While sampling, show")
            with gr.Accordion("Start from an image", open=False):
                image = gr.Image(label="Image", sources=["upload"], type="filepath", height=180, buttons=[])
                strength = gr.Slider(
                    0.02,
                    1,
                    STRENGTH,
                    step=0.02,
                    label="Strength",
                    info="Little: the image stays. 1: it is lost in noise.",
                )
        with gr.Column(scale=5, min_width=320, elem_classes="results"):
            told = "Choose classes and seeds, then Draw: every seed of every class. A model of texts takes prompts."
            out = Results("Draw", told, following=True)

    def run(key: str, *values: Any) -> Iterator[list[Any]]:
        *plain, view, image, strength = values
        wanted = wanted_of(key, plain[:SUBJECTS], plain[SUBJECTS:])
        yield from out.shown(studio.draw(replace(wanted, view=view, image=image, strength=strength)))

    inputs = [model, *subjects.all, *settings.all, view, image, strength]
    drawing = gr.on([out.draw.click, *subjects.submits], run, inputs, out.all, **queued("draw"))
    assert out.following is not None
    moved = out.following.click(following, subjects.seeds, subjects.seeds, **light("next_seeds"))
    out.stops(drawing, moved.then(run, inputs, out.all, **queued("draw_next")))


def between_tab(studio: Studio, page: gr.Blocks) -> None:
    """Images between seeds and between classes."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = model_of(studio, "Model")
            count = gr.Number(12, label="Images", precision=0, minimum=2, maximum=100)
            told = "One stays; several are passed through in this order."
            subjects = Subjects(studio, model, page, "between", "0, 1", told)
            settings = Settings(studio, model, page, "between")
            view = gr.Radio(VIEWS, value="x0", label="While sampling, show")
        with gr.Column(scale=5, min_width=320, elem_classes="results"):
            out = Results("Draw", "Choose two classes, two seeds or both: the images pass from the first to the last.")

    def run(key: str, count: float, view: Any, *values: Any) -> Iterator[list[Any]]:
        wanted = wanted_of(key, values[:SUBJECTS], values[SUBJECTS:])
        yield from out.shown(studio.pass_between(replace(wanted, view=view), count))

    inputs = [model, count, view, *subjects.all, *settings.all]
    out.stops(gr.on([out.draw.click, *subjects.submits], run, inputs, out.all, **queued("between")))


def compare_tab(studio: Studio, page: gr.Blocks) -> None:
    """Two models on the same seeds and classes, each with a setting of its own."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            one = model_of(studio, "Model A")
            other = model_of(studio, "Model B", last=True)
            subjects = Subjects(studio, one, page, "compared", "0-3", ALL_CLASSES)
            with gr.Accordion("Settings of A", open=False):
                of_one = Settings(studio, one, page, "compared_a", " of A")
            with gr.Accordion("Settings of B", open=False):
                of_other = Settings(studio, other, page, "compared_b", " of B")
        with gr.Column(scale=5, min_width=320, elem_classes="results"):
            told = (
                "Choose two models, two checkpoints of a run, or one model with two settings: the same seeds and "
                "classes of both, side by side."
            )
            out = Results("Compare", told, every=False)

    def run(a: str, b: str, *values: Any) -> Iterator[list[Any]]:
        same, both = values[:SUBJECTS], values[SUBJECTS:]
        first, second = (wanted_of(key, same, own) for key, own in ((a, both[:SETTINGS]), (b, both[SETTINGS:])))
        yield from out.shown(compare(studio, first, second))

    inputs = [one, other, *subjects.all, *of_one.all, *of_other.all]
    out.stops(gr.on([out.draw.click, *subjects.submits], run, inputs, out.all, **queued("compare")))


def queued(name: str) -> dict[str, Any]:
    """Options of events that draw: one at a time, in order; values come as they are sent, as in ``light``."""
    options = {"concurrency_id": "sampling", "concurrency_limit": 1, "trigger_mode": "once"}
    return options | {"preprocess": False, "show_progress": "hidden", "api_name": name}


@dataclass(init=False)
class Results:
    """The right side of a tab: buttons, a line, the images, and what can be saved."""

    draw: gr.Button
    following: gr.Button | None
    stop: gr.Button
    status: gr.HTML
    sheet: gr.HTML
    files: list[gr.DownloadButton]
    command: gr.HTML

    def __init__(self, verb: str, told: str, *, following: bool = False, every: bool = True) -> None:
        """Makes them within the column that is open.

        Args:
            verb: of the button that draws.
            told: where there is nothing yet.
            following: with a button that goes on to the next seeds.
            every: with a zip of all images.
        """
        with gr.Row(elem_classes="actions"):
            self.draw = gr.Button(verb, variant="primary")
            self.following = gr.Button("Next seeds") if following else None
            self.stop = gr.Button("Stop")
        self.status = gr.HTML(status("Ready."), elem_classes="told")
        self.sheet = gr.HTML(hint(told), elem_classes="images")
        with gr.Row(elem_classes="actions"):
            titles = ["Save grid (PNG)", "Save all (zip)"][: 1 + every]
            self.files = [gr.DownloadButton(title, interactive=False, size="sm") for title in titles]
        self.command = gr.HTML(elem_classes="command")
        self.all = [self.status, self.sheet, *self.files, self.command]

    def shown(self, drawn: Iterator[Shown]) -> Iterator[list[Any]]:
        """What the components are to show; closing it closes the drawing."""
        for each in drawn:
            sheet = gr.skip() if each.sheet is None else each.sheet
            command: Any = command_text(each.command) if each.grid else gr.skip()
            files = [_file(path) for path in (each.grid, each.archive)[: len(self.files)]]
            yield [each.status, sheet, *files, command]

    def stops(self, *drawings: Any) -> None:
        """Lets the button stop them, and then say so: a step that is under way would overwrite the line."""
        stopped = self.stop.click(None, None, None, cancels=[*drawings], queue=False)
        stopped.then(lambda: status("Stopped."), None, self.status, **light("stop"))


def _file(path: Any) -> gr.DownloadButton:
    """A button that saves a file, or waits for it."""
    return (
        gr.DownloadButton(interactive=False) if path is None else gr.DownloadButton(value=str(path), interactive=True)
    )
