"""What parts of a run must fit each other: one rule a function, each with its message."""

from __future__ import annotations

from collections.abc import Callable

from udit.data.codec_config import VAECodec
from udit.data.config import DataInfo
from udit.errors import UserError
from udit.run.beside_rules import (
    alignment_is_of_whole_weights,
    codec_is_the_data_s,
    condition_channels_are_the_condition_s,
    condition_is_of_images,
    condition_is_of_pixels,
    previous_state_is_of_fields,
)
from udit.run.config import Run
from udit.run.method_rules import (
    adapter_has_no_other_average,
    adapter_is_of_whole_weights,
    cuda_graphs_repeat_nothing_of_the_host,
    forward_derivatives_are_not_compiled,
    forward_derivatives_are_of_whole_weights,
    forward_derivatives_have_no_dropout,
    learned_guidance_needs_a_null_label,
    mean_flow_starts_at_pure_noise,
    second_time_is_trained,
)
from udit.run.text_rules import (
    context_is_the_language_model_s,
    texts_are_captions,
    texts_are_for_a_model_that_takes_them,
    vectors_are_those_of_texts,
)

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


def clips_are_for_networks_of_clips(run: Run, seen: DataInfo) -> str | None:
    """A network of clips needs clips of its number of frames, and one of images needs images."""
    frames = run.model.clip_frames
    if frames == seen.frames:
        return None
    if frames is None:
        return (
            f"the data are clips of {seen.frames} frames and {run.model.family} takes images; take a network of clips, "
            "e.g. model=Latte-tiny"
        )
    if seen.frames is None:
        return f"the data are images and {run.model.family} takes clips; take clips, e.g. data.kind=moving-digits"
    return f"model.frames is {frames} and the data's clips have {seen.frames}; leave frames out, or change data.frames"


def shapes_are_those_the_model_takes(run: Run, seen: DataInfo) -> str | None:
    """A model that learns images of several shapes takes them all."""
    sizes = run.sizes
    if len(sizes) == 1:
        return None
    if run.model.size_step is None:
        return f"data.buckets gives several shapes and the model ({run.model.family}) takes one size; leave buckets out"
    for (height, width), (rows, columns) in zip(sizes, run.data.shapes, strict=True):
        try:
            run.model.check_size(height, width)
        except ValueError as error:
            return f"data.buckets gives {rows}x{columns}, for the network {height}x{width}: {error}"
    return None


def latents_are_those_of_the_vae(run: Run, seen: DataInfo) -> str | None:
    """Latents in place of images are those of the codec's VAE."""
    if seen.latents is None:
        return None
    if not isinstance(run.codec, VAECodec) or not run.codec.has_posterior:
        return f"data.holds is moments and codec.kind {run.codec.kind}; name their VAE, codec.kind=vae codec.source=VAE"
    if seen.latents != (seen.channels, seen.height, seen.width):
        own, vae = ("x".join(map(str, shape)) for shape in (seen.latents, (seen.channels, seen.height, seen.width)))
        return f"the latents of the data are {own} and the VAE's would be {vae}; take their VAE, or set data.factor"
    return None


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


def shards_are_of_split_weights(run: Run, seen: DataInfo) -> str | None:
    """DDP splits nothing."""
    if run.training.shards is None or run.training.parallel == "fsdp":
        return None
    return (
        f"training.shards is {run.training.shards} and training.parallel {run.training.parallel}, which splits no "
        "weights; set training.parallel=fsdp, or leave shards out"
    )


def split_weights_are_changed_one_by_one(run: Run, seen: DataInfo) -> str | None:
    """An optimiser that looks at whole matrices, or packs its state, cannot change a part of one."""
    if run.training.parallel != "fsdp" or run.training.optimizer.elementwise:
        return None
    return (
        f"training.parallel is fsdp, which splits every weight over processes, and training.optimizer="
        f"{run.training.optimizer.kind} needs whole ones; set training.optimizer=adamw, or training.parallel=ddp"
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
    clips_are_for_networks_of_clips,
    input_size_is_that_of_the_data,
    shapes_are_those_the_model_takes,
    latents_are_those_of_the_vae,
    channels_are_those_of_the_data,
    codec_is_the_data_s,
    condition_is_of_pixels,
    condition_is_of_images,
    previous_state_is_of_fields,
    condition_channels_are_the_condition_s,
    vectors_are_those_of_texts,
    texts_are_for_a_model_that_takes_them,
    texts_are_captions,
    context_is_the_language_model_s,
    classes_need_labels,
    all_classes_have_a_label,
    guidance_needs_a_null_label,
    guidance_is_the_process_s,
    label_dropout_needs_a_null_label,
    guided_channels_are_predicted,
    variance_is_the_process_s,
    caching_needs_the_usual_direction,
    reversed_flow_is_trained_as_flow,
    reversed_flow_predicts_velocity_or_data,
    ratio_of_noise_is_finite,
    sampler_is_the_process_s,
    steps_are_within_the_schedule,
    level_dropout_needs_labels_at_levels,
    shards_are_of_split_weights,
    split_weights_are_changed_one_by_one,
    alignment_is_of_whole_weights,
    batch_splits_into_accumulated_parts,
    warmup_ends_before_the_run,
    schedule_free_has_no_decay,
    schedule_free_has_no_other_average,
    schedule_free_divides_by_its_momentum,
    second_time_is_trained,
    mean_flow_starts_at_pure_noise,
    forward_derivatives_have_no_dropout,
    forward_derivatives_are_not_compiled,
    learned_guidance_needs_a_null_label,
    forward_derivatives_are_of_whole_weights,
    adapter_is_of_whole_weights,
    adapter_has_no_other_average,
    cuda_graphs_repeat_nothing_of_the_host,
)
"""In the order in which they are checked."""
