"""What parts of a run must fit each other: one rule a function, each with its message."""

from __future__ import annotations

from collections.abc import Callable

from udit.data.config import DataInfo
from udit.errors import UserError
from udit.run.config import Run

Rule = Callable[[Run, DataInfo], str | None]
"""(run, what the network sees of an image) -> what is wrong, None where nothing is."""


def check(run: Run, seen: DataInfo) -> None:
    """Refuses a run that breaks a rule.

    Raises:
        UserError: the first broken rule's message.
    """
    for rule in RULES:
        message = rule(run, seen)
        if message is not None:
            raise UserError(message)


def input_size_is_that_of_the_data(run: Run, seen: DataInfo) -> str | None:
    """The model is built for the size of the data."""
    size = run.model.size
    if size == (seen.height, seen.width):
        return None
    return (
        f"model.input_size is {size[0]}x{size[1]} and the data is {seen.height}x{seen.width}; leave input_size out, or "
        "change data.size"
    )


def channels_are_those_of_the_data(run: Run, seen: DataInfo) -> str | None:
    """The model takes as many channels as the data has."""
    if run.model.in_channels == seen.channels:
        return None
    return f"model.in_channels is {run.model.in_channels} and the data has {seen.channels}; leave in_channels out"


def classes_need_labels(run: Run, seen: DataInfo) -> str | None:
    """A conditional model needs images with labels."""
    if seen.labelled or not run.model.num_classes:
        return None
    return (
        f"model.num_classes is {run.model.num_classes} and the images have no labels; put those of each class into a "
        "folder of its own, or leave num_classes out"
    )


def all_classes_have_a_label(run: Run, seen: DataInfo) -> str | None:
    """A conditional model knows at least the data's classes."""
    if not run.model.num_classes or run.model.num_classes >= len(seen.id2label):
        return None
    return (
        f"model.num_classes is {run.model.num_classes} and the data has {len(seen.id2label)} classes; leave "
        "num_classes out, or set it to 0 for an unconditional model"
    )


def guidance_needs_a_null_label(run: Run, seen: DataInfo) -> str | None:
    """Guidance compares with the null label's prediction."""
    if run.model.null_label is not None or run.text is not None or run.sampling.guidance == 1:
        return None
    return (
        f"sampling.guidance is {run.sampling.guidance:g} and the model has no null label to compare with; set "
        "sampling.guidance=1"
    )


def guidance_is_the_process_s(run: Run, seen: DataInfo) -> str | None:
    """CFG-Zero* needs a velocity to correct."""
    if run.sampling.guidance_kind != "cfg-zero" or run.diffusion.has_velocity:
        return None
    return (
        f"sampling.guidance_kind is cfg-zero, which corrects the velocity of a flow, and diffusion.kind is "
        f"{run.diffusion.kind}; set it to cfg or apg"
    )


def label_dropout_needs_a_null_label(run: Run, seen: DataInfo) -> str | None:
    """Dropped labels become the null label."""
    if run.model.null_label is not None or not run.model.num_classes or not run.training.label_dropout:
        return None
    return (
        f"training.label_dropout is {run.training.label_dropout:g} and the model has no null label to replace labels "
        "with; set training.label_dropout=0"
    )


def guided_channels_are_predicted(run: Run, seen: DataInfo) -> str | None:
    """Guidance acts on channels that the model predicts."""
    if (run.sampling.guidance_channels or 0) <= run.model.in_channels:
        return None
    return (
        f"sampling.guidance_channels is {run.sampling.guidance_channels} and the model predicts "
        f"{run.model.in_channels}; leave it out to guide all"
    )


def variance_is_the_process_s(run: Run, seen: DataInfo) -> str | None:
    """A variance is learned where the process has one to learn."""
    if run.diffusion.learns_variance or not run.model.learn_sigma:
        return None
    return f"model.learn_sigma is true; {run.diffusion.title} learns no variance, set it to false"


def caching_needs_the_usual_direction(run: Run, seen: DataInfo) -> str | None:
    """Step caching is for networks whose t rises with the noise."""
    if run.sampling.cache == 1 or not run.model.reversed_flow:
        return None
    return (
        f"sampling.cache is {run.sampling.cache} and {run.model.family} counts time from noise to data (reversed "
        "flow), so that its last steps cannot be recognised by a time near 0; set it to 1, or give sampling.refresh"
    )


def vectors_are_those_of_texts(run: Run, seen: DataInfo) -> str | None:
    """A model that takes vectors gets those that a language model makes of captions."""
    if not run.model.condition_shape or run.text is not None:
        return None
    if not seen.captioned and run.model.readers == 1:
        return "model.context takes vectors and the data gives labels; leave context out"
    return "the model takes texts and no language model is named for them; set text.source=FOLDER"


def texts_are_for_a_model_that_takes_them(run: Run, seen: DataInfo) -> str | None:
    """A language model is for a model that takes vectors."""
    if run.text is None or run.model.condition_shape:
        return None
    return (
        f"text names a language model and {run.model.family} with its settings takes no texts; take U-DiT-text, or a "
        "U-DiT or U-ViT without classes"
    )


def texts_are_captions(run: Run, seen: DataInfo) -> str | None:
    """A model that takes texts needs images with captions."""
    if run.text is None or not run.model.condition_shape or seen.captioned:
        return None
    return (
        "the model takes texts and the images have none; set data.captions=files or metadata, or data.caption of a "
        "table's column"
    )


def context_is_the_language_model_s(run: Run, seen: DataInfo) -> str | None:
    """The vectors that a model takes are as wide, and as many, as the language model makes them."""
    shape = run.model.condition_shape
    if run.text is None or not shape or (shape[-2], shape[-1]) == (run.text.tokens, run.text.width):
        return None
    if shape[-1] == run.text.width:
        return f"text.tokens is {run.text.tokens} and model.context.tokens {shape[-2]}; leave the latter out"
    return (
        f"the language model {run.text.source!r} is {run.text.width} channels wide and model.context.width is "
        f"{shape[-1]}; leave that out, or give the language model that the weights were trained with"
    )


def reversed_flow_is_trained_as_flow(run: Run, seen: DataInfo) -> str | None:
    """A model of a reversed flow is trained by flow matching."""
    if not run.model.reversed_flow or run.diffusion.reversible:
        return None
    return f"diffusion.kind is {run.diffusion.kind} and the model predicts a reversed flow; set diffusion.kind=flow"


def reversed_flow_predicts_velocity_or_data(run: Run, seen: DataInfo) -> str | None:
    """A model of a reversed flow predicts what the other direction has as well."""
    predict = getattr(run.diffusion, "predict", "velocity")
    if not (run.model.reversed_flow and run.diffusion.reversible) or predict in ("velocity", "x0"):
        return None
    return (
        f"diffusion.predict is {predict} and {run.model.family} counts time from noise to data (reversed flow); set it "
        "to velocity or x0"
    )


def ratio_of_noise_is_finite(run: Run, seen: DataInfo) -> str | None:
    """A model that gets the ratio of noise to signal cannot be asked where there is no signal."""
    if run.model.time != "sigma" or not getattr(run.diffusion, "zero_terminal_snr", False):
        return None
    return (
        f"diffusion.zero_terminal_snr is true and {run.model.family} gets the ratio of noise to signal, which is "
        "infinite there; set it to false"
    )


def sampler_is_the_process_s(run: Run, seen: DataInfo) -> str | None:
    """The sampler is one of the noising process's."""
    if run.sampling.sampler in run.diffusion.samplers():
        return None
    return (
        f"sampling.sampler is {run.sampling.sampler!r}; a {run.diffusion.kind} model takes "
        f"{', '.join(run.diffusion.samplers())}"
    )


def steps_are_within_the_schedule(run: Run, seen: DataInfo) -> str | None:
    """A discrete schedule has no more sampling steps than steps."""
    most = run.diffusion.max_steps
    if most is None or run.sampling.steps <= most:
        return None
    return f"sampling.steps is {run.sampling.steps} and the schedule has {most}; set it to {most} or fewer"


def level_dropout_needs_labels_at_levels(run: Run, seen: DataInfo) -> str | None:
    """Labels are dropped at each level by itself where each level embeds the label."""
    if not run.training.independent_level_dropout or run.model.label_levels is not None:
        return None
    return "training.independent_level_dropout needs a U-DiT, which embeds the label at every level; set it to false"


def selective_checkpointing_is_not_compiled(run: Run, seen: DataInfo) -> str | None:
    """Compiled blocks keep all activations."""
    if run.training.checkpoint_activations != "selective" or not run.training.compile:
        return None
    return (
        "training.checkpoint_activations is selective and training.compile true; compiled blocks keep all activations: "
        "set one of them to false"
    )


def batch_splits_into_accumulated_parts(run: Run, seen: DataInfo) -> str | None:
    """Accumulated parts are of one size."""
    if run.training.batch_size % run.training.accumulation == 0:
        return None
    return (
        f"training.batch_size {run.training.batch_size} does not split into {run.training.accumulation} accumulated "
        "parts; choose a multiple"
    )


def warmup_ends_before_the_run(run: Run, seen: DataInfo) -> str | None:
    """A decaying schedule has steps left after the warm-up."""
    training = run.training
    if not training.lr_schedule.ends or training.lr_warmup < training.steps:
        return None
    return (
        f"training.lr_warmup is {training.lr_warmup} and training.steps {training.steps}; a "
        f"{training.lr_schedule.kind} schedule needs steps after the warm-up"
    )


def schedule_free_has_no_decay(run: Run, seen: DataInfo) -> str | None:
    """An optimiser that averages trains at a constant rate."""
    training = run.training
    if not training.optimizer.averages or training.lr_schedule.kind == "constant":
        return None
    return (
        f"training.lr_schedule is {training.lr_schedule.kind} and training.optimizer {training.optimizer.kind}, whose "
        "average takes the place of a decay; leave lr_schedule out"
    )


def schedule_free_has_no_other_average(run: Run, seen: DataInfo) -> str | None:
    """Post-hoc EMAs are of weights that are not averaged otherwise."""
    training = run.training
    if not training.optimizer.averages or training.posthoc_ema is None:
        return None
    return (
        f"training.posthoc_ema averages the trained weights and training.optimizer={training.optimizer.kind} keeps an "
        "average of its own; leave posthoc_ema out"
    )


def schedule_free_divides_by_its_momentum(run: Run, seen: DataInfo) -> str | None:
    """The average of Schedule-Free is computed from weights that momentum moved away from it."""
    training = run.training
    if not training.optimizer.averages or training.betas[0]:
        return None
    return (
        f"training.betas starts with 0, by which training.optimizer={training.optimizer.kind} divides for its average; "
        "set it to 0.9"
    )


RULES: tuple[Rule, ...] = (
    input_size_is_that_of_the_data,
    channels_are_those_of_the_data,
    classes_need_labels,
    all_classes_have_a_label,
    guidance_needs_a_null_label,
    guidance_is_the_process_s,
    label_dropout_needs_a_null_label,
    guided_channels_are_predicted,
    variance_is_the_process_s,
    caching_needs_the_usual_direction,
    vectors_are_those_of_texts,
    texts_are_for_a_model_that_takes_them,
    texts_are_captions,
    context_is_the_language_model_s,
    reversed_flow_is_trained_as_flow,
    reversed_flow_predicts_velocity_or_data,
    ratio_of_noise_is_finite,
    sampler_is_the_process_s,
    steps_are_within_the_schedule,
    level_dropout_needs_labels_at_levels,
    selective_checkpointing_is_not_compiled,
    batch_splits_into_accumulated_parts,
    warmup_ends_before_the_run,
    schedule_free_has_no_decay,
    schedule_free_has_no_other_average,
    schedule_free_divides_by_its_momentum,
)
"""In the order in which they are checked."""
