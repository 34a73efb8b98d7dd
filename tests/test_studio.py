"""The studio without its page: what a place holds, what may be asked for, what is drawn, saved and told."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shlex
import shutil
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

import udit
from conftest import TINY, ErrorOf, perturb
from runs import small_run
from studio_page import STEPS, tiny_run
from udit.assemble import System
from udit.checkpoint import CheckpointStore
from udit.cli import main
from udit.diffusion.config import DDPMConfig, EDMConfig, FlowConfig, SamplingConfig
from udit.errors import UserError, missing_extra
from udit.images import read_pixels, read_settings
from udit.inputs import StartImages
from udit.interpolation import Between
from udit.run.system import SystemConfig
from udit.store import network
from udit.studio import drawing, session
from udit.studio.chart import loss_chart, round_length
from udit.studio.comparing import compare
from udit.studio.drawing import colours, draw, passage, presets, sampling_of, seeds_in
from udit.studio.place import find
from udit.studio.serve import Gate
from udit.studio.session import Shown, Studio, Wanted
from udit.studio.sheet import SMALL, figures, problem, sample_grid
from udit.studio.watch import Log, Watch, duration
from udit.training.folder import write_run

NEWEST = "run@newest"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, whose model folder is copied beside it."""
    folder = tmp_path_factory.mktemp("place")
    tiny_run(folder / "runs" / "run")
    shutil.copytree(folder / "runs" / "run" / "model", folder / "runs" / "kept" / "model")
    return folder / "runs"


@pytest.fixture
def studio(place: Path) -> Iterator[Studio]:
    made = Studio(find(place), "cpu")
    yield made
    made.close()
    assert not made.folder.exists()


def last(shown: Iterator[Shown]) -> Shown:
    return list(shown)[-1]


def error_in(shown: Iterator[Shown]) -> str:
    """The one line that ends a drawing."""
    status = last(shown).status
    assert "class='problem' role='alert'" in status
    text = status.partition("role='alert'>")[2].partition("</p>")[0]
    assert "\n" not in text
    return text


# ---- places ----------------------------------------------------------------------------------------------------------


def test_a_place_lists_runs_checkpoints_and_models(place: Path) -> None:
    found = find(place)
    keys = [choice.key for choice in found.choices()]
    assert sorted(keys) == sorted([NEWEST, *(f"run@{step}" for step in STEPS), "kept/model"])
    assert keys.index(NEWEST) < keys.index("run@6") < keys.index("run@3")
    assert set(found.runs()) == {"run"}
    assert [choice.title for choice in found.choices() if choice.key == "run@3"] == ["run, step 3"]
    assert found.choice("run@3").file_name == "run-step-3"


def test_a_run_and_a_model_folder_are_places_too(place: Path) -> None:
    assert next(choice.key for choice in find(place / "run").choices()) == NEWEST
    assert [choice.key for choice in find(place / "kept" / "model").choices()] == ["model"]
    assert not find(place / "kept" / "model").runs()


def test_checkpoints_that_come_later_are_listed(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    found = find(tmp_path)
    later = tmp_path / "run" / "checkpoints" / "step-00000009"
    assert "run@9" not in [choice.key for choice in found.choices()]
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step-00000006", later)
    assert "run@9" in [choice.key for choice in found.choices()]


def test_nothing_outside_of_a_place_can_be_named(place: Path) -> None:
    found = find(place / "run")
    for key in ("../kept/model", str(place / "kept" / "model"), "kept/model", None, 3, ["run@3"]):
        with pytest.raises(UserError, match="choose one from the list"):
            found.choice(key)


def test_a_checkpoint_is_drawn_from_itself(studio: Studio, place: Path) -> None:
    """And "newest" from the newest."""
    weights = {step: CheckpointStore(place / "run" / "checkpoints").at(step).tensors("ema") for step in STEPS}
    for key, step in (("run@3", 3), ("run@6", 6), (NEWEST, 6)):
        system = studio.shelf.system(studio.place.choice(key))
        own = System(system.config, network(studio.shelf.config(studio.place.choice(key)), weights[step], place))
        assert system.fingerprint == own.fingerprint


def test_two_models_stay_loaded(studio: Studio) -> None:
    one, two, three = (studio.place.choice(key) for key in ("run@3", "run@6", "kept/model"))
    first = studio.shelf.system(one)
    studio.shelf.system(two)
    assert studio.shelf.system(one) is first
    studio.shelf.system(three)
    assert studio.shelf.system(one) is first
    assert len(studio.shelf._systems) == 2


# ---- what may be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), (" 3, 5,8 ", [3, 5, 8]), ("7", [7]), ("1-2,9", [1, 2, 9])]
)
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert seeds_in(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "0-99999999999", "1.5", "9" * 40, "0-100", "²"])
def test_seeds_that_are_none_or_too_many_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match="seeds"):
        seeds_in(text)


def config_of(**diffusion: Any) -> SystemConfig:
    model = udit.build("U-DiT-S", **TINY, learn_sigma=False).config
    return SystemConfig(
        model=model, sampling=SamplingConfig(sampler="flow-euler", steps=4), diffusion=FlowConfig(), **diffusion
    )


def test_a_setting_takes_changes_and_drops_what_belonged_to_another_one() -> None:
    config = config_of()
    base = config.sampling.replace(steps=9, refresh=(0, 3, 6), guidance_kind="apg", guidance_eta=0.5)
    assert sampling_of(config, base, {"guidance": 2.0}).refresh == (0, 3, 6)
    changed = sampling_of(config, base, {"steps": 5, "guidance_kind": "cfg"})
    assert (changed.refresh, changed.guidance_eta, changed.steps) == ((), 0.0, 5)
    assert (
        sampling_of(config, config.sampling, {"sampler": "dpmpp", "guidance_kind": "cfg-zero"}).guidance_zero_init == 0
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampler": "ddim"}, "flow matching"),
        ({"steps": 5000}, "5000"),
        ({"steps": None}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
        ({"eta": 0.5}, "eta"),
        ({"guidance_kind": "other"}, "guidance_kind"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(changes: dict[str, Any], told: str) -> None:
    config = config_of()
    with pytest.raises(UserError, match=told) as raised:
        sampling_of(config, config.sampling, changes)
    assert "\n" not in str(raised.value)


def test_presets_are_those_of_the_process_or_of_quality_json(tmp_path: Path) -> None:
    config = config_of()
    found = presets(config, tmp_path)
    assert found["own"] == config.sampling
    assert (found["draft"].sampler, found["draft"].steps) == FlowConfig.quality["draft"]
    (tmp_path / "quality.json").write_text("{")
    assert presets(config, tmp_path) == found


def test_every_seed_is_drawn_with_every_class() -> None:
    config = config_of(id2label=("a", "b", "c", "d", "e"))
    wanted = drawing.drawing(config, "4, 7", [3, 1], config.sampling)
    assert (wanted.seeds, wanted.labels, wanted.columns) == ((4, 4, 7, 7), (3, 1, 3, 1), 2)
    assert drawing.drawing(config, "0", [], config.sampling).labels == (0, 1, 2, 3, 4)
    with pytest.raises(UserError, match="105 images and 100 the most"):
        drawing.drawing(config, "0-20", [], config.sampling)
    with pytest.raises(UserError, match="label 9"):
        drawing.drawing(config, "0", [9], config.sampling)


def test_a_passage_goes_from_the_first_to_the_last() -> None:
    config = config_of(id2label=("a", "b", "c", "d", "e"))
    wanted = passage(config, "4, 7", [3, 1], 3, config.sampling)
    assert wanted.seeds == (4, Between(4, 7, 0.5), 7)
    assert wanted.labels == (3, Between(3, 1, 0.5), 1)
    assert passage(config, "4, 7", [3], 3, config.sampling).labels == (3, 3, 3)
    for seeds, classes, count, told in (
        ("4", [3], 5, "nothing to pass"),
        ("4, 7", [], 5, "choose"),
        ("4, 7", [3], 1, "2 to"),
    ):
        with pytest.raises(UserError, match=told):
            passage(config, seeds, classes, count, config.sampling)


# ---- drawing ---------------------------------------------------------------------------------------------------------


PROCESSES = {"ddpm": DDPMConfig(steps=20), "flow": FlowConfig(), "edm": EDMConfig()}
SAMPLED = [(kind, name) for kind, process in PROCESSES.items() for name in process.samplers()]


def system_of(kind: str, sampler: str) -> System:
    model = perturb(udit.build("U-DiT-S", **TINY, learn_sigma=kind == "ddpm"), std=0.02)
    setting = SamplingConfig(sampler=sampler, steps=5, guidance=2.0)
    return System(SystemConfig(model=model.config, diffusion=PROCESSES[kind], sampling=setting), model)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sampler"), SAMPLED)
def test_a_drawing_ends_with_the_images_of_the_library(kind: str, sampler: str) -> None:
    """Step by step and over several batches, and so from an image as well."""
    system = system_of(kind, sampler)
    wanted = drawing.drawing(system.config, "0, 9", [1, 4], system.config.sampling)
    [whole] = system.generate(wanted.seeds, wanted.labels)
    with mock.patch.object(drawing, "BATCH_VALUES", 3 * 64):
        frames = list(draw(system, wanted))
    assert [frame.done for frame in frames] == list(range(1, frames[-1].total + 1))
    assert [frame.finished for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert {len(frame.images) for frame in frames} == {3, 4}
    assert int((torch.stack(frames[-1].images).int() - whole.int()).abs().max()) <= 1
    start = StartImages(whole[:1], ())
    again = list(draw(system, dataclasses.replace(wanted, start=start, strength=0.5)))
    assert again[-1].finished
    assert again[-1].total < frames[-1].total


def test_a_drawing_that_is_dropped_computes_no_further_step() -> None:
    system = system_of("flow", "flow-euler")
    network = type(system.backbone)
    with mock.patch.object(network, "leave", autospec=True, side_effect=network.leave) as leave:
        frames = draw(system, drawing.drawing(system.config, "0", [1], system.config.sampling))
        next(frames)
        next(frames)
        del frames
        gc.collect()
        assert leave.call_count == 2


def test_latents_are_shown_as_colours_until_they_are_decoded() -> None:
    shown = colours(torch.randn(2, 4, 8, 8) * 3)
    assert (shown.dtype, tuple(shown.shape)) == (torch.uint8, (2, 3, 8, 8))
    assert 100 < float(shown.float().mean()) < 155
    assert tuple(colours(torch.zeros(1, 2, 4, 4)).shape) == (1, 3, 4, 4)


# ---- the session -----------------------------------------------------------------------------------------------------


def test_a_drawing_shows_every_step_and_saves_images_with_their_settings(studio: Studio) -> None:
    wanted = Wanted(NEWEST, seeds="3, 5", classes=[1], changes={"steps": 4})
    shown = list(studio.draw(wanted))
    assert "Loading run, newest checkpoint" in shown[0].status
    assert sum(each.sheet is not None for each in shown) == 4
    assert "alt='dog · seed 3'" in (shown[1].sheet or "")
    end = shown[-1]
    assert end.grid is not None
    assert end.archive is not None
    system = studio.shelf.system(studio.place.choice(NEWEST))
    facts = read_settings(end.grid)
    assert facts is not None
    assert (facts["model"], facts["seed"], facts["label"]) == (system.fingerprint, [3, 5], [1, 1])
    assert facts["sampling"]["steps"] == 4
    with zipfile.ZipFile(end.archive) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "grid.png"]
        archive.extract("000001.png", studio.folder)
    own = read_settings(studio.folder / "000001.png")
    assert own == {**{key: facts[key] for key in ("udit", "model", "sampling")}, "seed": 5, "label": 1, "class": "dog"}
    [drawn] = system.generate([5], [1], sampling=SamplingConfig(**facts["sampling"]))
    saved = read_pixels(studio.folder / "000001.png")
    assert int((saved.int() - drawn[0].int()).abs().max()) <= 1


def test_the_command_draws_the_same_images(studio: Studio, tmp_path: Path) -> None:
    changes = {"steps": 3, "guidance": 1.5, "guidance_interval": (0.0, 0.8), "eta": 0.5, "guidance_kind": "apg"}
    end = last(studio.draw(Wanted("kept/model", seeds="3, 5", classes=[1, 0], changes=changes)))
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(end.command)[1:], "--out", str(tmp_path), "--no-progress"])
    assert ended.value.code == 0
    with zipfile.ZipFile(end.archive) as archive:  # type: ignore[arg-type]
        for name in ("000000.png", "000003.png"):
            archive.extract(name, tmp_path / "page")
            assert read_settings(tmp_path / "page" / name) == read_settings(tmp_path / name)
    assert "checkpoints/step-00000003 " in last(studio.draw(Wanted("run@3", seeds="0"))).command


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "run@4"}, "run@4 is no longer there; choose one from the list"),
        ({"seeds": "x"}, "seeds has"),
        ({"classes": [7]}, "label 7 is out of range"),
        ({"classes": "cow"}, "no class &#x27;cow&#x27;"),
        ({"weights": "best"}, "weights is"),
        ({"preset": "fast"}, "setting is"),
        ({"changes": {"sampler": "flow-euler"}}, "flow-euler does not fit"),
        ({"changes": {"steps": "many"}}, "steps"),
        ({"image": {"path": "/etc/passwd"}}, "no longer there"),
        ({"image": "text"}, "no longer there"),
    ],
)
def test_what_is_wrong_is_one_line_in_the_page(studio: Studio, changes: dict[str, Any], told: str) -> None:
    assert told in error_in(studio.draw(Wanted(**{"model": NEWEST, "seeds": "0", "classes": [0]} | changes)))


def test_an_error_that_is_nobodys_is_told_and_logged(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(session, "draw", side_effect=ZeroDivisionError("odd\n<b>")):
        assert error_in(studio.draw(Wanted(NEWEST))) == (
            "it failed (ZeroDivisionError: odd &lt;b&gt;); the terminal has more"
        )
    assert "a drawing failed" in caplog.text
    with mock.patch.object(session, "draw", side_effect=MemoryError("no room")):
        assert "draw fewer images" in error_in(studio.draw(Wanted(NEWEST)))


def test_an_image_of_any_size_is_cropped_and_a_file_that_is_none_is_one_line(studio: Studio) -> None:
    path = studio.folder / "photo.png"
    Image.new("RGB", (50, 20), "red").save(path)
    wanted = Wanted(NEWEST, seeds="0", classes=[0], image={"path": str(path)}, strength=0.6)
    end = last(studio.draw(wanted))
    assert end.grid is not None
    facts = read_settings(end.grid)
    assert facts is not None
    assert (facts["from_image"], facts["strength"]) == (["photo.png"], [0.6])
    assert end.command == ""
    path.write_bytes(b"no image")
    told = error_in(studio.draw(wanted))
    assert "photo.png" in told
    assert str(studio.folder) not in told
    Image.new("L", (1, 1)).save(path)
    assert last(studio.draw(wanted)).grid is not None


def test_two_checkpoints_are_compared_on_the_same_seeds(studio: Studio) -> None:
    wanted = [Wanted(key, seeds="0, 1") for key in ("run@6", "run@3")]
    shown = list(compare(studio, *wanted))
    assert sum(each.sheet is not None for each in shown) == 8
    assert (shown[-2].sheet or "").count("<img") == 8
    assert "4 pairs; a pixel differs by" in shown[-1].status
    assert shown[-1].grid is not None
    facts = read_settings(shown[-1].grid)
    assert facts is not None
    marks = [studio.shelf.system(studio.place.choice(key)).fingerprint for key in ("run@6", "run@3")]
    assert [each["model"] for each in facts["compared"]] == marks
    assert (facts["seeds"], facts["labels"]) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert "same weights" in error_in(compare(studio, wanted[0], wanted[0]))


def test_one_model_is_compared_under_two_settings(studio: Studio) -> None:
    one, other = (Wanted(NEWEST, seeds="0", classes=[1], changes={"steps": steps}) for steps in (2, 4))
    end = last(compare(studio, one, other))
    assert end.grid is not None
    facts = read_settings(end.grid)
    assert facts is not None
    assert [each["sampling"]["steps"] for each in facts["compared"]] == [2, 4]
    assert "newest checkpoint (steps 2 and 4). 1 pairs" in end.status


def test_a_weaker_checkpoint_is_what_guidance_compares_with(studio: Studio, place: Path, tmp_path: Path) -> None:
    """The images and the recorded facts are those of `udit sample --autoguide`."""
    wanted = Wanted("run@6", seeds="3", classes=[1], changes={"guidance": 2.0}, weaker="run@3")
    end = last(studio.draw(wanted))
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(end.command)[1:], "--out", str(tmp_path), "--no-progress"])
    assert ended.value.code == 0
    with zipfile.ZipFile(end.archive) as archive:  # type: ignore[arg-type]
        archive.extract("000000.png", tmp_path / "page")
    page, command = tmp_path / "page" / "000000.png", tmp_path / "000000.png"
    facts = read_settings(page)
    assert facts is not None
    assert facts == read_settings(command)
    weak = studio.shelf.system(studio.place.choice("run@3"))
    assert facts["autoguide"] == weak.fingerprint
    assert int((read_pixels(page).int() - read_pixels(command).int()).abs().max()) <= 1
    for changes, told in (
        ({"changes": {"guidance": 1.0}}, "guidance 1 compares with nothing"),
        ({"weaker": "run@6"}, "the same weights"),
        ({"weaker": "run@9"}, "no longer there"),
        ({"average": 0.05}, "guidance compares with one of them"),
        ({"weaker": "", "average": 0.05}, "posthoc"),
        ({"weaker": "", "average": "x"}, "it takes a length"),
    ):
        assert told in error_in(studio.draw(dataclasses.replace(wanted, **changes)))


def test_a_passage_is_shown_and_saved(studio: Studio) -> None:
    end = last(studio.pass_between(Wanted(NEWEST, seeds="0, 1", classes=[0, 1]), 3))
    assert end.grid is not None
    facts = read_settings(end.grid)
    assert facts is not None
    assert facts["seed"] == [0, None, 1]
    assert "images is None" in error_in(studio.pass_between(Wanted(NEWEST), None))


def test_old_files_are_removed(studio: Studio) -> None:
    with mock.patch.object(session, "KEPT_FILES", 3):
        made = [studio.room() for _ in range(5)]
        assert [path.is_dir() for path in made] == [False, False, True, True, True]
    with mock.patch.object(session, "KEPT_SECONDS", -1):
        studio.room()
    assert not any(path.is_dir() for path in made)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_texts_are_escaped_and_images_have_words() -> None:
    sheet = figures([torch.zeros(1, 8, 8, dtype=torch.uint8)], ["<i>'cat'", "dog"], columns=2)
    assert "<i>" not in sheet
    assert "alt='&lt;i&gt;&#x27;cat&#x27;'" in sheet
    assert sheet.count("<figure>") == 2
    assert sheet.count("class='hollow'") == 1
    assert "<b>" not in problem("<b>")


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_are_not() -> None:
    small, large = (figures([torch.zeros(3, size, size, dtype=torch.uint8)], ["a"]) for size in (SMALL, SMALL + 1))
    assert "image/png" in small
    assert "class='sheet'" in small
    assert "image/webp" in large
    assert "class='sheet large'" in large


def test_a_sample_grid_is_shown_as_it_is_or_reduced(tmp_path: Path) -> None:
    for width, kind in ((300, "png"), (5000, "webp")):
        Image.new("L", (width, 40)).save(tmp_path / "grid.png")
        assert f"image/{kind}" in sample_grid(tmp_path / "grid.png", 1000)
    (tmp_path / "grid.png").write_bytes(b"torn")
    assert "cannot be read" in sample_grid(tmp_path / "grid.png", 1000)


# ---- runs ------------------------------------------------------------------------------------------------------------


def lines(path: Path, steps: range, **more: Any) -> None:
    with path.open("a") as stream:
        for step in steps:
            stream.write(json.dumps({"step": step, "loss": 2 / step, "images_per_second": 50.0} | more) + "\n")


def test_a_log_is_read_as_it_grows_and_again_where_it_was_cut_back(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    assert not log.read()
    lines(log.path, range(1, 4))
    with log.path.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert log.read()
    assert log.steps == [1, 2, 3]
    with log.path.open("a") as stream:
        stream.write('ss": 0.5, "val_loss": 0.25}\n{"step": 5, "skipped_samples": ["a"]}\nno line\n')
    assert log.read()
    assert not log.read()
    assert (log.steps, log.held_out, log.recent[-1]["step"]) == ([1, 2, 3, 4], [(4, 0.25)], 5)
    log.path.rename(tmp_path / "old")
    lines(log.path, range(1, 3))
    assert log.read()
    assert log.steps == [1, 2]


def test_a_long_log_is_thinned(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    lines(log.path, range(1, 2002))
    log.read()
    curve = log.curve()
    assert len(curve) <= 400
    assert curve[0][0] == pytest.approx(3.5)


def test_a_run_is_told_of(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "training.steps=100")
    run.out.mkdir()
    write_run(run)
    watch = Watch(run.out)
    assert str(watch.progress()) == "not started: step 0 of 100"
    lines(run.out / "metrics.jsonl", range(1, 51), warning="the loss exploded")
    watch.log.read()
    progress = watch.progress()
    assert (progress.state, progress.step, progress.remaining) == ("training", 50, pytest.approx(50 * 6 / 50))
    assert "the loss exploded" in " ".join(map(str, watch.findings()))
    watch.log.changed -= 1000
    assert watch.progress().state == "stopped"
    lines(run.out / "metrics.jsonl", range(51, 101))
    watch.log.read()
    (run.out / "model").mkdir()
    assert watch.progress().state == "finished"
    (run.out / "samples").mkdir()
    for name in ("step-00000020.png", "step-00000010.png", "other.png"):
        (run.out / "samples" / name).touch()
    assert [step for step, _ in watch.grids()] == [10, 20]


def test_a_curve_is_drawn_with_round_numbers_and_words() -> None:
    chart = loss_chart([(float(step), 10.0 / step) for step in range(1, 1001)], [(500.0, 0.03), (1000.0, 0.02)])
    assert "aria-label='Training loss over 1,000 steps, now 0.01; held out 0.02'" in chart
    assert chart.count("<circle") == 2
    for label in (">0.01<", ">1<", ">200<", ">1000<"):
        assert label in chart
    assert loss_chart([]) == ""
    assert loss_chart([(1.0, -3.0)]) == ""
    assert "<svg" in loss_chart([(1.0, 0.5)])
    assert [round_length(length) for length in (0.013, 0.2, 3, 7)] == pytest.approx([0.02, 0.2, 5, 10])


def test_durations_have_one_or_two_units() -> None:
    assert [duration(seconds) for seconds in (5, 90, 3600, 9000, 500_000)] == [
        "5 s",
        "2 min",
        "1 h 0 min",
        "2 h 30 min",
        "5 days",
    ]


# ---- the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/", True),
        ("/config", True),
        ("/theme.css", True),
        ("/assets/index-abc.js", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/heartbeat/abc", True),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file=https://example.com/", False),
        ("/gradio_api/proxy=https://example.com/", False),
        ("/gradio_api/runs", False),
        ("/gradio_api/vibe-edit/", False),
        ("/gradio_api/stream/a", False),
        ("/gradio_api/file/etc/passwd", False),
        ("/gradio_api/component_server", False),
        ("/monitoring", False),
        ("/docs", False),
        ("/assets", False),
    ],
)
def test_only_what_the_page_uses_is_served(path: str, passes: bool, tmp_path: Path) -> None:
    assert Gate(mock.Mock(), tmp_path).passes(path) == passes


def test_files_of_this_server_alone_are_served(tmp_path: Path) -> None:
    gate = Gate(mock.Mock(), tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "link").symlink_to("/etc/passwd")
    assert gate.passes(f"/gradio_api/file={tmp_path}/ours/saved/a.png")
    for path in ("ours/../secret", "ours-not/a", "ours/link", "ours"):
        assert not gate.passes(f"/gradio_api/file={tmp_path}/{path}")


def test_a_place_without_anything_is_one_line(error_of: ErrorOf, tmp_path: Path) -> None:
    assert "holds no run and no model" in error_of("studio", str(tmp_path))
    assert "is not there" in error_of("studio", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert "is a file" in error_of("studio", str(tmp_path / "file"))


def test_an_unknown_model_on_the_hub_is_one_line(error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no folder 'nobody/nothing'" in error_of("studio", "nobody/nothing")


def test_a_port_in_use_is_one_line(error_of: ErrorOf, place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert error_of("studio", str(place), "--port", str(port)).startswith(f"port {port} is in use; ")
    assert "ports run from" in error_of("studio", str(place), "--port", "70000")


def test_a_missing_extra_is_one_line_and_nothing_stays(
    error_of: ErrorOf, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = dict(os.environ)
    assert error_of("studio", str(place)) == str(missing_extra("`udit studio`", "gradio", "studio"))
    assert not list(tmp_path.iterdir())
    assert dict(os.environ) == before
