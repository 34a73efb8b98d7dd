"""Clips from data to files: moving digits, folders, codecs, batches, drawing, GIF and MP4, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udit
from conftest import perturb, same_bits, snapshot, succeeds
from udit.assemble import System
from udit.clips import film, has_settings, read_gif, save_gif
from udit.data.batches import batches
from udit.data.check import Contents, check
from udit.data.codec import SpaceToDepth
from udit.data.config import ClipFolderData, MovingDigitsData
from udit.data.describe import describe
from udit.data.moving import PAIRS, SIDE, MovingDigits
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.run.recipes import load_run
from udit.run.system import SystemConfig

OneLine = Callable[[BaseException], str]
TINY: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "in_channels": 1, "num_classes": 3, "input_size": 8}
TINY |= {"frames": 3, "learn_sigma": False}


def ramp(frames: int, size: int = 12, start: int = 0) -> torch.Tensor:
    """Grey frames, each brighter than the one before: uint8 [1, F, size, size]."""
    values = start + 10 * torch.arange(frames, dtype=torch.uint8)
    return values[None, :, None, None].expand(1, frames, size, size).contiguous()


def frames_in(folder: Path, count: int, size: tuple[int, int] = (12, 12)) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", size, 10 * i).save(folder / f"frame-{i}.png")


def system(**overrides: Any) -> System:
    model = perturb(udit.build("Latte-S/2", **{**TINY, **overrides}))
    sampling = SamplingConfig(sampler="flow-euler", steps=2)
    return System(SystemConfig(model=model.config, diffusion=FlowConfig(), sampling=sampling), model)


# ---- moving digits ---------------------------------------------------------------------------------------------------


def test_digits_bounce_and_are_apart_at_both_ends() -> None:
    data = MovingDigitsData(clips=60, frames=12)
    source = MovingDigits(data)
    for i in range(0, 60, 7):
        places, chosen = source.ways(i)
        clip = source.image(i)
        assert clip.shape == (1, 12, 24, 24)
        assert places.min() >= 0
        assert places.max() <= 24 - SIDE
        steps = np.abs(np.diff(places, axis=1)).max(axis=(1, 2))
        assert (steps <= 4).all()
        for at in (0, -1):
            assert (np.abs(places[0, at] - places[1, at]) >= SIDE).any()
            for (row, column), digit in zip(places[:, at], chosen, strict=True):
                seen = clip[0, at, row : row + SIDE, column : column + SIDE]
                assert (seen >= source.digits[digit]).all()
        labels = tuple(int(np.flatnonzero([digit in members for members in source.of_class])[0]) for digit in chosen)
        assert labels == PAIRS[source.labels[i]]


def test_moving_digits_are_a_function_of_seed_and_index() -> None:
    one, same, other = (MovingDigits(MovingDigitsData(seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.image(3), same.image(3))
    assert not np.array_equal(one.image(3), other.image(3))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    info = describe(MovingDigitsData())
    assert (info.frames, info.channels, info.height, len(info.id2label)) == (8, 1, 24, 55)
    assert info.id2label[13] == "1 and 4"


# ---- folders of clips ------------------------------------------------------------------------------------------------


def test_gif_and_numbered_frames_are_clips_of_their_class(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    save_gif(ramp(5), tmp_path / "up" / "one.gif")
    frames_in(tmp_path / "down" / "walk", 11)
    data = ClipFolderData(root=tmp_path, frames=4, size=12, channels=1)
    source = data.build()
    assert source.names == ["down/walk", "up/one.gif"]
    assert source.labels.tolist() == [0, 1]
    assert describe(data).id2label == ("down", "up")
    assert source.image(1)[0, :, 0, 0].tolist() == [0, 10, 20, 30]
    source.verify()
    every = data.replace(every=3).build()  # frames 0, 3, 6 and 9, in the order of numbers: 10 comes last
    assert every.image(0)[0, :, 0, 0].tolist() == [0, 30, 60, 90]
    with pytest.raises(UserError, match=r"one\.gif has 2 frames \(every 3 of them\) and data\.frames asks for 4"):
        every.image(1)


def test_clips_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    save_gif(ramp(4), tmp_path / "one.gif")
    frames_in(tmp_path / "two", 4)
    data = ClipFolderData(root=tmp_path, frames=4, size=12)
    assert (describe(data).labelled, len(data.build())) == (False, 2)
    assert data.build().image(1).shape == (3, 4, 12, 12)


def test_a_gif_gives_equal_frames_back(tmp_path: Path) -> None:
    clip = ramp(6)
    clip[:, 3] = clip[:, 2]
    save_gif(clip, tmp_path / "still.gif")
    frames = [np.asarray(frame)[0, 0, 0] for frame in read_gif(tmp_path / "still.gif")]
    assert frames == [0, 10, 20, 20, 40, 50]


def test_the_fingerprint_follows_files_and_choice_of_frames(tmp_path: Path) -> None:
    save_gif(ramp(4), tmp_path / "one.gif")
    data = ClipFolderData(root=tmp_path, frames=2, size=12)
    found = {data.build().fingerprint, data.replace(frames=3).build().fingerprint}
    frames_in(tmp_path / "two", 4)
    found.add(data.build().fingerprint)
    assert len(found) == 3


def test_a_clip_that_is_short_is_a_one_line_error(tmp_path: Path, one_line: OneLine) -> None:
    save_gif(ramp(3), tmp_path / "short.gif")
    with pytest.raises(UserError, match=r"short\.gif has 3 frames and data\.frames asks for 5; lower it") as caught:
        ClipFolderData(root=tmp_path, frames=5, size=12).build().verify()
    one_line(caught.value)


def test_a_check_names_every_bad_clip_and_fields_are_checked_as_a_whole(tmp_path: Path) -> None:
    for name, frames in (("up/1.gif", 3), ("up/2.gif", 4), ("down/1.gif", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_gif(ramp(frames), tmp_path / name)
    contents = Contents()
    said = list(check(tmp_path, 8, contents, keys={"kind": "clips", "frames": 4}))
    assert [line.partition(" has ")[0].rpartition("/")[2] for line in said] == ["1.gif", "1.gif"]
    assert contents.classes == {"down": (1, 1), "up": (2, 1)}
    fields = np.zeros((3, 1, 4, 4), np.float32)
    fields[2, 0, 1, 3] = np.nan
    np.savez(tmp_path / "f.npz", fields=fields)
    (line,) = check(tmp_path / "f.npz", 8, Contents())
    assert "holds nan in field 2, channel 0, row 1, column 3" in line


def test_frames_of_two_sizes_are_a_one_line_error(tmp_path: Path, one_line: OneLine) -> None:
    frames_in(tmp_path / "walk", 2)
    Image.new("L", (12, 16)).save(tmp_path / "walk" / "frame-2.png")
    with pytest.raises(UserError, match="walk has frames of 12x12 and 12x16") as caught:
        ClipFolderData(root=tmp_path, frames=3, size=12).build().verify()
    one_line(caught.value)


def test_a_damaged_file_and_a_folder_without_clips_are_one_line_errors(tmp_path: Path, one_line: OneLine) -> None:
    (tmp_path / "broken.gif").write_bytes(b"GIF89a nothing")
    with pytest.raises(UserError, match=r"broken\.gif cannot be decoded") as caught:
        ClipFolderData(root=tmp_path, frames=1, size=12).build().verify()
    one_line(caught.value)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no clips") as caught:
        describe(ClipFolderData(root=tmp_path / "empty", frames=1, size=12))
    one_line(caught.value)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_model_follows_its_clips() -> None:
    run = load_run("moving-digits", ["data.frames=5"])
    assert run.model.input_shape() == (9, 5, 8, 8)
    assert run.model.num_classes == 55


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("moving-digits", ["model=DiT-tiny"], "the data are clips of 8 frames and DiT takes images"),
        ("digits", ["model=Latte-tiny"], "the data are images and Latte takes clips"),
        ("moving-digits", ["model.frames=4"], "model.frames is 4 and the data's clips have 8"),
    ],
)
def test_clips_and_images_do_not_mix(recipe: str, changes: list[str], words: str, one_line: OneLine) -> None:
    with pytest.raises(UserError) as caught:
        load_run(recipe, changes)
    assert words in one_line(caught.value)


def test_a_mirrored_clip_is_mirrored_left_to_right(tmp_path: Path) -> None:
    clip = ramp(2)
    clip[..., :2] = 200
    save_gif(clip, tmp_path / "one.gif")
    source = ClipFolderData(root=tmp_path, frames=2, size=12, channels=1).build()
    stream = batches(source, np.zeros(1, np.int64), seed=0, start=0, stop=1, global_batch=8, flip=True)
    x = next(stream)[0].x
    left = x[..., 0].reshape(8, -1).amax(1) > 100
    assert 0 < left.sum() < 8
    assert torch.equal(x[~left].flip(-1)[:1], x[left][:1])


def test_space_to_depth_is_of_each_frame() -> None:
    x = torch.randint(256, (2, 1, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codec = SpaceToDepth(3)
    raw = codec.raw(x)
    assert raw.shape == (2, 9, 3, 2, 2)
    assert torch.equal(raw[:, :, 1], codec.raw(x[:, :, 1]))
    assert torch.equal(codec.decode(codec.normalise(raw)), x)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_a_clip_is_decided_by_its_own_seed() -> None:
    drawn = system()
    together = torch.cat(list(drawn.generate([3, 4, 5], [0, 1, 2])))
    assert together.shape == (3, 1, 3, 8, 8)
    assert torch.equal(torch.cat(list(drawn.generate([4], [1]))), together[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Latte-tiny", "U-DiT-video-tiny", "Wan-tiny"])
def test_every_network_of_clips_trains_and_is_written_as_gif(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["moving-digits", f"out={tmp_path / 'run'}", f"model={name}", "data.frames=2", "data.clips=110"]
    small = ["training.steps=2", "training.batch_size=2", "training.sample_every=2", "sampling.steps=1"]
    succeeds(capsys, "train", *run, *small, "training.lr_warmup=0")
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    out = tmp_path / "out"
    succeeds(capsys, "sample", str(tmp_path / "run"), "--n", "2", f"--out={out}")
    assert sorted(path.name for path in out.iterdir()) == ["000000.gif", "000001.gif", "grid.png"]
    assert len(list(read_gif(out / "000000.gif"))) in (1, 2)  # equal frames are one, which lasts as long as it likes
    assert has_settings(out / "000001.gif")
    succeeds(capsys, "sample", str(tmp_path / "run"), "--n", "1", f"--out={out}", "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["000000.gif", "grid.png"]


def test_clips_go_into_one_npz(tmp_path: Path) -> None:
    generation = udit.generate(system(), [0, 1], [1, 2])
    assert generation.save_npz(tmp_path / "clips.npz") == (2, 3, 8, 8, 1)
    with np.load(tmp_path / "clips.npz") as file:
        assert np.array_equal(file["arr_0"], generation.images().movedim(1, -1).numpy())
        assert file["arr_1"].tolist() == [1, 2]


def test_a_film_has_a_row_for_each_clip() -> None:
    clips = torch.arange(12, dtype=torch.uint8).view(2, 1, 3, 1, 2)
    assert film(clips)[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda each, out: udit.generate(each, [0]).save_pngs(out), "take gif, mp4 or npz"),
        (lambda each, out: udit.export(each, "onnx", out), "a graph for onnx is for images and Latte draws clips"),
        (lambda each, out: udit.export(each, "diffusers", out), "a pipeline of diffusers is for images"),
        (lambda each, out: udit.generate(each, [0], from_image=torch.zeros(1, 1, 8, 8)), "from_image is for images"),
    ],
    ids=["png", "onnx", "diffusers", "from image"],
)
def test_what_is_for_images_says_so(call: Callable[..., object], words: str, tmp_path: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=words) as caught:
        call(system(), tmp_path / "out")
    one_line(caught.value)


@torch.no_grad()
def test_before_training_u_dit_on_clips_is_u_dit_on_each_frame() -> None:
    model = udit.build("U-DiT-video-tiny")
    images = perturb(udit.build("U-DiT-tiny", learn_sigma=False))
    model.images.load_state_dict(images.state_dict())
    before = snapshot(images)
    x = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([100, 700]), torch.tensor([3, 5])
    out = model(x, t, y)
    for i in range(4):
        torch.testing.assert_close(out[:, :, i], images(x[:, :, i], t, y), atol=1e-5, rtol=1e-4)
    assert same_bits(before, snapshot(images))
    perturb(model)
    other = x.clone()
    other[:, :, 3] += 1
    assert not torch.allclose(model(other, t, y)[:, :, 0], model(x, t, y)[:, :, 0], atol=1e-4)


@pytest.mark.slow
def test_mp4_is_written_and_read(tmp_path: Path) -> None:
    from udit.clips import read_mp4, save_mp4

    save_mp4(ramp(6, size=17), tmp_path / "one.mp4", {"seed": 3})
    frames = [np.asarray(frame) for frame in read_mp4(tmp_path / "one.mp4")]
    assert [frame.shape for frame in frames] == [(18, 18, 3)] * 6
    assert np.abs(np.array([frame[4, 4, 0] for frame in frames], int) - 10 * np.arange(6)).max() <= 4
    assert has_settings(tmp_path / "one.mp4")
    data = ClipFolderData(root=tmp_path, frames=4, size=16, channels=1)
    assert data.build().image(0).shape == (1, 4, 16, 16)


def test_mp4_without_pyav_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    from udit.clips import save_mp4

    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'udit\[video\]'") as caught:
        save_mp4(ramp(2), tmp_path / "one.mp4")
    one_line(caught.value)
    (tmp_path / "one.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="an MP4 needs av, which is not installed"):
        ClipFolderData(root=tmp_path).build()
