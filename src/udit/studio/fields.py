"""The settings of a drawing as fields of the page; they follow the model that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from udit.diffusion.samplers import SAMPLERS
from udit.errors import UserError
from udit.run.system import SystemConfig
from udit.studio.drawing import MOST_STEPS, seeds_in
from udit.studio.session import Studio, Wanted

CHANGES = ("sampler", "steps", "guidance", "low", "high", "guidance_kind", "guidance_rescale", "eta", "clip")
"""The fields that make a setting, in the page's order."""
ALL_CLASSES = "None means all, or the first ten. Type to search."
PRESETS = [("Own", "own"), ("Draft", "draft"), ("Good", "good"), ("Best", "best")]
KINDS = [("Averaged (EMA)", "ema"), ("Raw", "raw")]
RULES = {"cfg": "Plain", "apg": "APG", "cfg-zero": "CFG-Zero*"}
"""Kinds of guidance by what the page calls them; the last is of flow matching alone."""
VIEWS = [("Predicted image", "x0"), ("Noisy image", "x")]


def light(name: str) -> dict[str, Any]:
    """Options of events that are answered at once, beside the queue of drawings.

    Values come as they are sent: gradio would compare them with the lists that this server gave to this tab, and refuse
    a tab that was open before the server was started again. What is wrong with a value is told by ``session``.
    """
    return {"queue": False, "preprocess": False, "show_progress": "hidden", "api_name": name}


def model_of(studio: Studio, label: str, last: bool = False) -> gr.Dropdown:
    """A list of everything to draw from, read again whenever it is opened.

    Args:
        studio: has the place.
        label: of the field.
        last: chooses the last one of the first model, e.g. its first checkpoint, to compare with.
    """
    choices = _titles(studio)
    first = choices[0][1] if choices else None
    same = [key for _, key in choices if first and key.rpartition("@")[0] == first.rpartition("@")[0]]
    return gr.Dropdown(choices, value=same[-1] if last and same else first, label=label, filterable=True)


def _titles(studio: Studio) -> list[tuple[str, str]]:
    return [(choice.title, choice.key) for choice in studio.place.choices()]


class Fields:
    """What a drawing takes beside the model, in the order of ``all``."""

    def __init__(self, studio: Studio, model: gr.Dropdown, page: gr.Blocks, name: str, seeds: str, told: str) -> None:
        """Makes the fields within the column that is open.

        Args:
            studio: has the models.
            model: that the fields follow.
            page: whose loading fills them.
            name: of the tab, for names that must differ.
            seeds: at first.
            told: below the label of the classes.
        """
        self.studio = studio
        self.classes = gr.Dropdown([], multiselect=True, label="Classes", info=told)
        self.seeds = gr.Textbox(seeds, label="Seeds", info="E.g. 0-3 or 3, 5, 8. Enter draws.")
        self.preset = gr.Radio(PRESETS, value="own", label="Setting")
        self.sampler = gr.Dropdown([], label="Sampler", info=" ")
        self.steps = gr.Number(50, label="Steps", precision=0, minimum=1, maximum=MOST_STEPS)
        self.guidance = gr.Slider(1, 10, 1, step=0.1, label="Guidance", info="1 means no guidance.")
        with gr.Accordion("More settings", open=False):
            self.low = gr.Slider(0, 1, 0, step=0.01, label="Guidance from time", info="0 is the image, 1 is noise.")
            self.high = gr.Slider(0, 1, 1, step=0.01, label="Guidance to time")
            self.kind = gr.Radio(_rules("cfg", "apg"), value="cfg", label="Kind of guidance")
            self.rescale = gr.Slider(0, 1, 0, step=0.05, label="Guidance rescaled by")
            self.eta = gr.Slider(0, 1, 0, step=0.05, label="Fresh noise (eta)")
            self.clip = gr.Checkbox(False, label="Clip predictions to the range of pixels")
            self.weights = gr.Radio(KINDS, value="ema", label="Weights")
            self.view = gr.Radio(VIEWS, value="x0", label="While sampling, show")
        guided = [self.guidance, self.low, self.high, self.kind, self.rescale]
        self.setting = [self.sampler, self.steps, *guided, self.eta, self.clip]
        self.all = [self.classes, self.seeds, self.preset, *self.setting, self.weights, self.view]
        own = [self.classes, *self.setting]
        gr.on([model.change, page.load], self._of_model, [model, self.preset], own, **light(f"{name}_model"))
        self.preset.input(self._of_preset, [model, self.preset], self.setting, **light(f"{name}_preset"))
        outputs = [self.sampler, self.eta, self.clip]
        self.sampler.input(_of_sampler, self.sampler, outputs, **light(f"{name}_sampler"))
        model.focus(lambda: gr.Dropdown(choices=_titles(studio)), None, model, **light(f"{name}_models"))

    def _of_model(self, key: str | None, preset: str) -> list[Any]:
        """The fields as the model has them; nothing changes where it is gone."""
        try:
            choice = self.studio.place.choice(key)
            config = self.studio.shelf.config(choice)
        except UserError as error:
            gr.Warning(str(error))
            return [gr.skip()] * (1 + len(self.setting))
        return [classes_of(config), *self._setting(key, preset, config)]

    def _of_preset(self, key: str | None, preset: str) -> list[Any]:
        try:
            config = self.studio.shelf.config(self.studio.place.choice(key))
        except UserError as error:
            gr.Warning(str(error))
            return [gr.skip()] * len(self.setting)
        return self._setting(key, preset, config)

    def _setting(self, key: str | None, preset: str, config: SystemConfig) -> list[Any]:
        sampling = self.studio.presets(self.studio.place.choice(key))[preset]
        guides = config.model.null_label is not None
        rules = RULES if config.diffusion.has_velocity else ("cfg", "apg")
        low, high = sampling.guidance_interval
        return [
            gr.Dropdown(
                choices=list(config.diffusion.samplers()), value=sampling.sampler, info=SAMPLERS[sampling.sampler].about
            ),
            gr.Number(value=sampling.steps, maximum=min(config.diffusion.max_steps or MOST_STEPS, MOST_STEPS)),
            gr.Slider(value=sampling.guidance, maximum=max(10, sampling.guidance), visible=guides),
            gr.Slider(value=low, visible=guides),
            gr.Slider(value=high, visible=guides),
            gr.Radio(choices=_rules(*rules), value=sampling.guidance_kind, visible=guides),
            gr.Slider(value=sampling.guidance_rescale, visible=guides),
            *_options(sampling.sampler, sampling.eta, sampling.clip),
        ]


def _rules(*kinds: str) -> list[tuple[str, str]]:
    return [(RULES[kind], kind) for kind in kinds]


def classes_of(config: SystemConfig) -> gr.Dropdown:
    """The list of a model's classes by name; hidden where it has none."""
    named = config.classes
    titles = [named.title(label) for label in range(named.trained)]
    twice = len(set(titles)) < len(titles)
    choices = [(f"{title} ({label})" if twice else title, label) for label, title in enumerate(titles)]
    return gr.Dropdown(choices=choices, value=[], visible=bool(named.count))


def _options(sampler: str, eta: float, clip: bool) -> list[Any]:
    """Fields that only some samplers take, hidden and off for the others."""
    spec = SAMPLERS[sampler]
    return [
        gr.Slider(value=eta if spec.eta else 0, visible=spec.eta),
        gr.Checkbox(value=clip and spec.clip, visible=spec.clip),
    ]


def _of_sampler(sampler: str) -> list[Any]:
    return [gr.Dropdown(info=SAMPLERS[sampler].about), *_options(sampler, 0.0, False)]


def following(text: str) -> str:
    """As many seeds as a text names, counted on from the largest; a text that names none stays, for its error."""
    try:
        seeds = seeds_in(text)
    except UserError:
        return text
    first = max(seeds) + 1
    return f"{first}-{first + len(seeds) - 1}" if len(seeds) > 1 else str(first)


@dataclass
class Compared:
    """Fields of a comparison beside the models."""

    classes: gr.Dropdown
    seeds: gr.Textbox
    preset: gr.Radio
    weights_a: gr.Radio
    weights_b: gr.Radio


def compared(studio: Studio, model: gr.Dropdown, page: gr.Blocks) -> Compared:
    """Makes the fields; classes are those of the first model."""
    fields = Compared(
        gr.Dropdown([], multiselect=True, label="Classes", info=ALL_CLASSES),
        gr.Textbox("0-3", label="Seeds", info="E.g. 0-3 or 3, 5, 8. Enter compares."),
        gr.Radio(PRESETS, value="own", label="Setting of each model"),
        gr.Radio(KINDS, value="ema", label="Weights of A"),
        gr.Radio(KINDS, value="ema", label="Weights of B"),
    )

    def follow(key: str | None) -> Any:
        try:
            return classes_of(studio.shelf.config(studio.place.choice(key)))
        except UserError as error:
            gr.Warning(str(error))
            return gr.skip()

    gr.on([model.change, page.load], follow, model, fields.classes, **light("compared_model"))
    return fields


def wanted_of(key: str, values: Sequence[Any]) -> Wanted:
    """What the fields ask for.

    Args:
        key: of the model.
        values: classes, seeds, preset, each of ``CHANGES``, weights, view; a change of None is the preset's own.
    """
    classes, seeds, preset, *setting, weights, view = values
    changes = {name: value for name, value in zip(CHANGES, setting, strict=True) if value is not None}
    low, high = changes.pop("low", None), changes.pop("high", None)
    if low is not None and high is not None:
        changes["guidance_interval"] = (low, high)
    return Wanted(key, str(seeds), classes or (), weights, preset, changes, view)
