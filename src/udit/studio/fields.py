"""The settings of a drawing as fields of the page; they follow the model that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from udit.diffusion.samplers import SAMPLERS
from udit.errors import UserError
from udit.run.system import SystemConfig
from udit.studio.drawing import MOST_STEPS, seeds_in
from udit.studio.place import Choice
from udit.studio.session import Studio, Wanted

CHANGES = ("sampler", "steps", "guidance", "low", "high", "guidance_kind", "guidance_rescale", "eta", "clip")
"""The fields that make a setting, in the page's order."""
ALL_CLASSES = "None means all, or the first ten. Type to search."
PRESETS = [("Own", "own"), ("Draft", "draft"), ("Good", "good"), ("Best", "best")]
KINDS = [("Averaged (EMA)", "ema"), ("Raw", "raw")]
RULES = {"cfg": "Plain", "apg": "APG", "cfg-zero": "CFG-Zero*"}
"""Kinds of guidance by what the page calls them; the last is of flow matching alone."""
VIEWS = [("Predicted image", "x0"), ("Noisy image", "x")]
NONE = ("None", "")
"""The choice of no weaker model."""


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


class Subjects:
    """What is drawn: classes or prompts, and seeds, in the order of ``all``."""

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
        self.classes = gr.Dropdown([], multiselect=True, label="Classes", info=told)
        self.prompts = gr.Textbox("", label="Prompts", info="One a line. Shift+Enter draws.", lines=2, visible=False)
        negative = "What guidance leads away from, in place of no text."
        self.negative = gr.Textbox("", label="Negative prompt", info=negative, visible=False)
        self.seeds = gr.Textbox(seeds, label="Seeds", info="E.g. 0-3 or 3, 5, 8. Enter draws.")
        self.all = [self.classes, self.prompts, self.negative, self.seeds]

        def follow(key: str | None) -> list[Any]:
            try:
                config = studio.shelf.config(studio.place.choice(key))
            except UserError as error:
                gr.Warning(str(error))
                return [gr.skip()] * 3
            says = config.text is not None
            return [classes_of(config), gr.Textbox(visible=says), gr.Textbox(visible=says)]

        gr.on([model.change, page.load], follow, model, self.all[:3], **light(f"{name}_subjects"))

    @property
    def submits(self) -> list[Any]:
        """Events that ask for a drawing: Enter in a field."""
        return [self.seeds.submit, self.prompts.submit, self.negative.submit]


class Settings:
    """How it is drawn, in the order of ``all``."""

    def __init__(self, studio: Studio, model: gr.Dropdown, page: gr.Blocks, name: str, of: str = "") -> None:
        """Makes the fields within the column that is open.

        Args:
            studio: has the models.
            model: that the fields follow.
            page: whose loading fills them.
            name: of the tab and side, for names that must differ.
            of: behind each label, e.g. " of A".
        """
        self.studio = studio
        self.preset = gr.Radio(PRESETS, value="own", label=f"Setting{of}")
        self.sampler = gr.Dropdown([], label=f"Sampler{of}", info=" ")
        self.steps = gr.Number(50, label=f"Steps{of}", precision=0, minimum=1, maximum=MOST_STEPS)
        self.guidance = gr.Slider(1, 10, 1, step=0.1, label=f"Guidance{of}", info=" ")
        with gr.Accordion(f"More settings{of}", open=False):
            time = "0 is the image, 1 is noise."
            self.low = gr.Slider(0, 1, 0, step=0.01, label=f"Guidance from time{of}", info=time)
            self.high = gr.Slider(0, 1, 1, step=0.01, label=f"Guidance to time{of}")
            self.kind = gr.Radio(_rules("cfg", "apg"), value="cfg", label=f"Kind of guidance{of}")
            self.rescale = gr.Slider(0, 1, 0, step=0.05, label=f"Rescaling of guidance{of}")
            told = "Autoguidance: a worse model of the same data, which guidance compares with."
            self.weaker = gr.Dropdown([NONE], value="", label=f"Weaker model{of}", info=told, filterable=True)
            told = "The same with a shorter EMA of this run: its length, e.g. 0.05."
            self.average = gr.Number(None, label=f"Shorter EMA{of}", info=told, minimum=0, maximum=0.28, step=0.01)
            self.eta = gr.Slider(0, 1, 0, step=0.05, label=f"Fresh noise (eta){of}")
            self.clip = gr.Checkbox(False, label=f"Clip predictions to the range of pixels{of}")
            self.weights = gr.Radio(KINDS, value="ema", label=f"Weights{of}")
        guided = [self.guidance, self.low, self.high, self.kind, self.rescale]
        self.setting = [self.sampler, self.steps, *guided, self.eta, self.clip]
        self.all = [self.preset, *self.setting, self.weaker, self.average, self.weights]
        own = [*self.setting, self.average]
        gr.on([model.change, page.load], self._of_model, [model, self.preset], own, **light(f"{name}_model"))
        self.preset.input(self._of_preset, [model, self.preset], self.setting, **light(f"{name}_preset"))
        outputs = [self.sampler, self.eta, self.clip]
        self.sampler.input(_of_sampler, self.sampler, outputs, **light(f"{name}_sampler"))
        model.focus(lambda: gr.Dropdown(choices=_titles(studio)), None, model, **light(f"{name}_models"))
        listed = [self.weaker.focus, page.load]
        gr.on(
            listed, lambda: gr.Dropdown(choices=[NONE, *_titles(studio)]), None, self.weaker, **light(f"{name}_weaker")
        )

    def _of_model(self, key: str | None, preset: str) -> list[Any]:
        """The fields as the model has them; nothing changes where it is gone."""
        try:
            choice = self.studio.place.choice(key)
            config = self.studio.shelf.config(choice)
        except UserError as error:
            gr.Warning(str(error))
            return [gr.skip()] * (1 + len(self.setting))
        return [*self._setting(key, preset, config), gr.Number(value=None, visible=has_averages(choice))]

    def _of_preset(self, key: str | None, preset: str) -> list[Any]:
        try:
            config = self.studio.shelf.config(self.studio.place.choice(key))
        except UserError as error:
            gr.Warning(str(error))
            return [gr.skip()] * len(self.setting)
        return self._setting(key, preset, config)

    def _setting(self, key: str | None, preset: str, config: SystemConfig) -> list[Any]:
        sampling = self.studio.presets(self.studio.place.choice(key))[preset]
        rules = RULES if config.diffusion.has_velocity else ("cfg", "apg")
        low, high = sampling.guidance_interval
        alone = config.model.null_label is None and config.text is None
        told = "1 means no guidance." if not alone else "1 means none; above it, a weaker model (below) is needed."
        return [
            gr.Dropdown(
                choices=list(config.diffusion.samplers()), value=sampling.sampler, info=SAMPLERS[sampling.sampler].about
            ),
            gr.Number(value=sampling.steps, maximum=min(config.diffusion.max_steps or MOST_STEPS, MOST_STEPS)),
            gr.Slider(value=sampling.guidance, maximum=max(10, sampling.guidance), info=told),
            gr.Slider(value=low),
            gr.Slider(value=high),
            gr.Radio(choices=_rules(*rules), value=sampling.guidance_kind),
            gr.Slider(value=sampling.guidance_rescale),
            *_options(sampling.sampler, sampling.eta, sampling.clip),
        ]


def has_averages(choice: Choice) -> bool:
    """Whether a choice is of a run that keeps snapshots of EMAs (``training.posthoc_ema``)."""
    return any(Path(choice.source, "posthoc").glob("step-*.safetensors"))


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


SUBJECTS = 4
"""Values of ``Subjects``."""
SETTINGS = 4 + len(CHANGES)
"""Values of ``Settings``."""


def wanted_of(key: str, subjects: Sequence[Any], settings: Sequence[Any]) -> Wanted:
    """What the fields ask for.

    Args:
        key: of the model.
        subjects: the values of ``Subjects``.
        settings: those of ``Settings``; of ``CHANGES``, None is the preset's own.
    """
    classes, prompts, negative, seeds = subjects
    preset, *setting, weaker, average, weights = settings
    changes = {name: value for name, value in zip(CHANGES, setting, strict=True) if value is not None}
    low, high = changes.pop("low", None), changes.pop("high", None)
    if low is not None and high is not None:
        changes["guidance_interval"] = (low, high)
    return Wanted(
        key,
        str(seeds),
        classes or (),
        weights,
        preset,
        changes,
        prompts=str(prompts or ""),
        negative=str(negative or ""),
        weaker=str(weaker or ""),
        average=None if average is None or average == "" else average,
    )
