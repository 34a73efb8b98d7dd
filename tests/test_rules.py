"""What parts of a run must fit each other: every rule refuses what breaks it, and lets the rest through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from image_files import noise
from udit.errors import UserError
from udit.run import rules
from udit.run.recipes import load_run
from udit.run.rules import RULES, Rule

DDPM = "diffusion.kind=ddpm + sampling.sampler=ddim"
TEXT = "text={source: there, width: 8, depth: 2, tokens: 2, sha256: '" + 64 * "0" + "'}"
UVIT = "model={name: U-ViT-M/4, patch: 2}"
SIT = "model={name: SiT-S/2, width: 16, depth: 1, heads: 2}"
BROKEN: dict[Rule, tuple[str, str]] = {
    rules.clips_are_for_networks_of_clips: ("model=Latte-tiny", "the data are images and Latte takes clips"),
    rules.input_size_is_that_of_the_data: ("model.input_size=16", "model.input_size is 16x16 and the data is 8x8"),
    rules.channels_are_those_of_the_data: ("model.in_channels=3", "model.in_channels is 3 and the data has 1"),
    rules.codec_is_the_data_s: (
        "codec.kind=field",
        "codec.kind is field and data.kind digits, whose images are of 8 bits",
    ),
    rules.condition_is_of_pixels: (
        "data.condition.kind=low-resolution + codec.kind=space-to-depth",
        "data.condition is made of pixels and codec.kind is space-to-depth",
    ),
    rules.condition_is_of_images: (
        "model=Latte-tiny + data={kind: moving-digits, condition: {kind: mask}}",
        "data.condition is for images and Latte draws clips",
    ),
    rules.previous_state_is_of_fields: (
        "data.condition.kind=previous",
        "data.condition is previous and data.kind digits has no order in time",
    ),
    rules.condition_channels_are_the_condition_s: (
        "model.condition_channels=3",
        "model.condition_channels is 3 and data.condition has 0",
    ),
    rules.alignment_is_of_whole_weights: (
        "training.align={} + training.parallel=fsdp",
        "training.align needs all weights on each rank and training.parallel is fsdp",
    ),
    rules.classes_need_labels: (
        "data={kind: folder, root: FLAT, size: 8, channels: 1} + model.num_classes=10",
        "model.num_classes is 10 and the images have no labels",
    ),
    rules.shapes_are_those_the_model_takes: (
        "data={kind: folder, root: FLAT, size: 16, channels: 1, buckets: [[8, 30]]}",
        "data.buckets gives 8x30, for the network 8x30: an input of 8x30 cannot pass",
    ),
    rules.latents_are_those_of_the_vae: (
        "data={kind: dataset-json, root: FLAT, holds: moments, factor: 1}",
        "data.holds is moments and codec.kind identity; name their VAE",
    ),
    rules.all_classes_have_a_label: ("model.num_classes=5", "is 5 and the data has 10 classes"),
    rules.guidance_needs_a_null_label: (
        "model.num_classes=0",
        "guidance is 2 and the model has no null label",
    ),
    rules.guidance_is_the_process_s: (
        f"{DDPM} + sampling.guidance_kind=cfg-zero + sampling.guidance_zero_init=0",
        "sampling.guidance_kind is cfg-zero, which corrects the velocity of a flow, and diffusion.kind is ddpm",
    ),
    rules.label_dropout_needs_a_null_label: (
        f"{UVIT} + sampling.guidance=1 + training.label_dropout=0.2",
        "training.label_dropout is 0.2 and the model has no null label",
    ),
    rules.guided_channels_are_predicted: ("sampling.guidance_channels=3", "is 3 and the model predicts 1"),
    rules.variance_is_the_process_s: ("model.learn_sigma=true", "flow matching learns no variance"),
    rules.caching_needs_the_usual_direction: (
        f"{SIT} + sampling.cache=2",
        "sampling.cache is 2 and DiT counts time from noise to data",
    ),
    rules.vectors_are_those_of_texts: (
        "model.num_classes=0 + model.context={width: 8, tokens: 2} + sampling.guidance=1",
        "model.context takes vectors and the data gives labels",
    ),
    rules.texts_are_for_a_model_that_takes_them: (
        f"{TEXT} + model=DiT-tiny",
        "text names a language model and DiT with its settings takes no texts",
    ),
    rules.texts_are_captions: (TEXT, "the model takes texts and the images have none; set data.captions"),
    rules.context_is_the_language_model_s: (
        f"{TEXT} + data={{kind: two-digits}} + model.context={{width: 9, tokens: 2}}",
        "the language model 'there' is 8 channels wide and model.context.width is 9",
    ),
    rules.reversed_flow_is_trained_as_flow: (
        f"{SIT} + {DDPM}",
        "diffusion.kind is ddpm and the model predicts a reversed flow",
    ),
    rules.reversed_flow_predicts_velocity_or_data: (
        f"{SIT} + diffusion.predict=v",
        "diffusion.predict is v and DiT counts time from noise to data",
    ),
    rules.ratio_of_noise_is_finite: (
        "model=HDiT-tiny + diffusion={kind: ddpm, zero_terminal_snr: true, predict: v} + sampling.sampler=ddim",
        "zero_terminal_snr is true and HDiT gets the ratio of noise to signal",
    ),
    rules.sampler_is_the_process_s: (
        "sampling.sampler=ddim",
        "is 'ddim'; a flow model takes flow-euler",
    ),
    rules.steps_are_within_the_schedule: (f"{DDPM} + diffusion.steps=10", "is 15 and the schedule has 10"),
    rules.level_dropout_needs_labels_at_levels: (
        "model={name: DiT-S/2, width: 16, depth: 1, heads: 2} + training.independent_level_dropout=true",
        "training.independent_level_dropout needs a U-DiT",
    ),
    rules.shards_are_of_split_weights: (
        "training.shards=2",
        "training.shards is 2 and training.parallel ddp, which splits no weights; set training.parallel=fsdp",
    ),
    rules.split_weights_are_changed_one_by_one: (
        "training.parallel=fsdp + training.optimizer=muon",
        "training.parallel is fsdp, which splits every weight over processes, and training.optimizer=muon needs whole",
    ),
    rules.batch_splits_into_accumulated_parts: (
        "training.accumulation=7",
        "32 does not split into 7 accumulated",
    ),
    rules.warmup_ends_before_the_run: (
        "training.steps=20 + training.lr_schedule=cosine",
        "training.lr_warmup is 20 and training.steps 20; a cosine schedule needs steps",
    ),
    rules.schedule_free_has_no_decay: (
        "training.optimizer=schedule-free + training.lr_schedule=linear",
        "lr_schedule is linear and training.optimizer schedule-free",
    ),
    rules.schedule_free_has_no_other_average: (
        "training.optimizer=schedule-free + training.posthoc_ema={}",
        "keeps an average of its own",
    ),
    rules.second_time_is_trained: (
        "model.second_time=true",
        "model.second_time is true and flow matching has one time, so that nothing would train the second",
    ),
    rules.mean_flow_starts_at_pure_noise: (
        "model={name: HDiT-tiny, time: sigma} + diffusion.kind=mean-flow",
        "HDiT gets the ratio of noise to signal, which is infinite at pure noise",
    ),
    rules.forward_derivatives_have_no_dropout: (
        "model={name: ADM-tiny, dropout: 0.1} + diffusion.kind=mean-flow",
        "model.dropout is 0.1 and MeanFlow compares a network with its own derivative",
    ),
    rules.forward_derivatives_are_not_compiled: (
        "diffusion.kind=mean-flow + training.compile=true",
        "training.compile is true and MeanFlow takes forward derivatives",
    ),
    rules.learned_guidance_needs_a_null_label: (
        "diffusion={kind: mean-flow, guidance: 2} + training.label_dropout=0",
        "diffusion.guidance is 2 and the null label that it compares with is not trained",
    ),
    rules.forward_derivatives_are_of_whole_weights: (
        "diffusion.kind=mean-flow + training.parallel=fsdp",
        "training.parallel is fsdp and MeanFlow takes forward derivatives",
    ),
    rules.adapter_is_of_whole_weights: (
        "training.adapter={} + training.parallel=fsdp",
        "training.parallel is fsdp, which splits weights and their optimiser state",
    ),
    rules.adapter_has_no_other_average: (
        "training.adapter={} + training.posthoc_ema={}",
        "training.posthoc_ema averages all weights and training.adapter trains few",
    ),
    rules.cuda_graphs_repeat_nothing_of_the_host: (
        "training.cuda_graphs=true + training.parallel=fsdp",
        "training.cuda_graphs is true with training.parallel=fsdp: the exchange of weights is in no graph",
    ),
    rules.schedule_free_divides_by_its_momentum: (
        "training.optimizer=schedule-free + training.betas=[0, 0.99]",
        "training.betas starts with 0",
    ),
}
"""Rule -> overrides of the digits' recipe that break it and no other, and what is said.

FLAT is a folder of images without labels, and of latents.
"""


def test_every_rule_is_in_the_table() -> None:
    assert set(BROKEN) == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_refuses_what_breaks_it(
    rule: Rule, one_line: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words, said = BROKEN[rule]
    if "FLAT" in words:
        noise(8, 8).save(tmp_path / "1.png")
        np.save(tmp_path / "1.npy", np.zeros((2, 8, 8), np.float32))
        words = words.replace("FLAT", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_run("digits", words.split(" + "))
    assert said in one_line(caught.value)
    monkeypatch.setattr(rules, "RULES", [other for other in RULES if other is not rule])
    load_run("digits", words.split(" + "))
