"""Images of any shape: not square, and of several shapes, a step's images all of one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import noise
from runs import small_run, state_hash, train
from udit.data import order
from udit.data.batches import batches, order_of
from udit.data.buckets import Buckets, assigned, buckets_of, of_first_shape
from udit.data.config import FolderData
from udit.data.decode import centre_crop
from udit.data.folder import records
from udit.data.order import BucketOrder
from udit.data.sources import parts_of
from udit.errors import UserError
from udit.training.encoding import encode

SHAPES = ((16, 16), (8, 24), (24, 8))
WORDS = ["data.kind=folder", "data.size=16", "data.channels=1", "data.buckets=[[8,24],[24,8]]"]


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty nearly square images, twelve wide ones and ten tall ones, in two classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = [(20, 22)] * 20 + [(10, 29)] * 12 + [(40, 14)] * 10
    for i, (height, width) in enumerate(sizes):
        path = tmp_path / "mixed" / ("ab"[i % 2]) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(height, width, seed=i).save(path)
    return tmp_path / "mixed"


def test_crop_is_the_centre_of_any_shape() -> None:
    pixels = np.asarray(noise(8, 12))
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), (4, 12))), pixels[2:6])
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), (8, 6))), pixels[:, 3:9])
    halved = Image.fromarray(pixels).resize((6, 4), Image.Resampling.BOX)
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), (4, 4))), np.asarray(halved)[:, 1:5])


def test_model_of_images_that_are_no_squares_is_built_and_trained(mixed: Path, tmp_path: Path) -> None:
    words = [*WORDS[:1], f"data.root={mixed}", "data.size=[8,24]", "data.channels=1"]
    run = small_run(tmp_path / "out", *words)
    assert run.model.size == (8, 24)
    assert run.data.build().image(0).shape == (1, 8, 24)
    assert train(tmp_path / "out", "training.steps=1", *words).finished


def test_image_takes_the_shape_whose_proportions_are_its_own(mixed: Path) -> None:
    data = FolderData(root=mixed, size=16, buckets=SHAPES[1:])
    source = data.build()
    found = buckets_of(source)
    assert found is not None
    for i, name in enumerate(source.names):
        number = int(name[2:4])
        wanted = 0 if number < 20 else 1 if number < 32 else 2
        assert found.of[i] == wanted
        assert source.image(i).shape == (3, *SHAPES[wanted])
    before = [source.image(i).copy() for i in range(len(source))]
    source.verify()  # decoded images are kept one after another
    assert all(np.array_equal(source.image(i), before[i]) for i in range(len(source)))
    assert buckets_of(data.scored().build()) is None


def test_sideways_image_takes_the_shape_it_has_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    noise(10, 29).save(tmp_path / "a" / "x.jpg", exif=exif)
    assert assigned(records(FolderData(root=tmp_path)), SHAPES).of.tolist() == [2]


@pytest.mark.parametrize("counts", [(20, 12, 10), (97, 3), (5, 5), (1, 40)])
def test_steps_are_of_one_bucket_and_images_come_in_their_share(counts: tuple[int, ...]) -> None:
    members = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    drawn, batch = BucketOrder(members, 7, 4), 4
    of = np.repeat(np.arange(len(counts)), counts)
    steps, seen = 3 * sum(counts), Counter[int]()
    for step in range(steps):
        ids = [drawn[step * batch + k] for k in range(batch)]
        assert len({int(of[i]) for i in ids}) == 1
        seen.update(ids)
    assert set(seen.values()) == {3 * batch}


def test_shares_of_many_images_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "MAX_CYCLE", 10)
    found = order.BucketOrder([np.arange(70), np.arange(70, 99), np.array([99])], 0, 4)
    assert Counter(found.bucket(step)[0] for step in range(11)) == {0: 7, 1: 3, 2: 1}


def test_one_shape_can_be_asked_for(mixed: Path) -> None:
    source = FolderData(root=mixed, size=16, buckets=SHAPES[1:]).build()
    part = of_first_shape(source, np.arange(42))
    assert len(part) == 20
    assert {source.image(int(i)).shape[1:] for i in part} == {SHAPES[0]}


def test_order_is_a_function_of_seed_and_position() -> None:
    members = [np.arange(30), np.arange(30, 41)]
    forward, seed = BucketOrder(members, 3, 5), BucketOrder(members, 4, 5)
    there = [forward[position] for position in range(400)]
    assert [BucketOrder(members, 3, 5)[position] for position in reversed(range(400))] == there[::-1]
    assert [seed[position] for position in range(400)] != there


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_all_ranks_and_parts_of_a_step_have_one_shape(mixed: Path, world: int, accumulation: int) -> None:
    data = FolderData(root=mixed, size=16, buckets=SHAPES[1:])
    source = data.build()
    part = np.arange(len(source))
    for rank in range(world):
        stream = batches(
            source, part, seed=0, start=0, stop=6, global_batch=6, rank=rank, world=world, accumulation=accumulation
        )
        drawn = order_of(source, part, 0, 6)
        assert isinstance(drawn, BucketOrder)
        for step, micro in enumerate(stream):
            number, _ = drawn.bucket(step)
            for batch in micro:
                assert batch.x.shape[2:] == SHAPES[number]
                assert batch.ids == [drawn[position] for position in batch.positions]


@pytest.mark.slow
def test_training_on_buckets_resumes_to_the_same_bits_from_images_and_from_latents(mixed: Path, tmp_path: Path) -> None:
    words = [*WORDS, f"data.root={mixed}", "data.flip=true"]
    encode(small_run(tmp_path / "out", *words), tmp_path / "latents", progress=False, shard_size=7)
    cached = [*words, f"latents={tmp_path / 'latents'}"]
    for out, given, stops in (("whole", words, (5,)), ("parts", words, (2, 5)), ("latents", cached, (2, 5))):
        for last in stops:
            train(tmp_path / out, f"training.steps={last}", *given)
    assert state_hash(tmp_path / "whole") == state_hash(tmp_path / "parts") == state_hash(tmp_path / "latents")


def test_latents_are_kept_for_each_bucket(mixed: Path, tmp_path: Path) -> None:
    words = [*WORDS, f"data.root={mixed}", "codec.kind=space-to-depth", "model.depths=[1]"]
    run = small_run(tmp_path / "out", *words)
    kept = encode(run, tmp_path / "latents", progress=False, shard_size=7)
    assert (kept.images, kept.shape, kept.shards) == (42, (4, 8, 8), 3 + 2 + 2)
    cached = small_run(tmp_path / "out", *words, f"latents={tmp_path / 'latents'}").source()
    cached.verify()
    source, codec = run.data.build(), run.codec.build()
    import torch

    for i in range(len(source)):
        wanted = codec.raw(torch.from_numpy(source.image(i).copy())[None])[0].numpy()
        assert np.array_equal(cached.image(i), wanted)
    found, ours = buckets_of(cached), buckets_of(source)
    assert isinstance(found, Buckets)
    assert isinstance(ours, Buckets)
    assert np.array_equal(found.of, ours.of)
    assert parts_of(cached, run.data).test.tolist() == parts_of(source, run.data).test.tolist()
    before = {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()}
    (tmp_path / "latents" / "shard-00004.safetensors").unlink()
    encode(run, tmp_path / "latents", progress=False, shard_size=7)
    assert {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()} == before


def test_shapes_that_do_not_fit_are_one_line_each(mixed: Path, tmp_path: Path) -> None:
    for words, wanted in (
        (["data.buckets=[[16,16]]"], "buckets hold 16x16, which is there already"),
        (["data.buckets=[[8,22]]", "model.depths=[1,1,1]"], "data.buckets gives 8x22"),
        (
            ["data.buckets=[[8,24]]", "model={family: U-ViT, width: 16, depth: 4, heads: 2}", "sampling.guidance=1"],
            "takes one size",
        ),
        (["data.buckets=[[9,24]]", "codec.kind=space-to-depth"], "do not split into squares of 2"),
        (["data.size=[16,16,16]"], "data.size"),
    ):
        with pytest.raises(UserError, match=r".*") as caught:
            small_run(tmp_path / "out", *WORDS[:1], f"data.root={mixed}", *WORDS[1:3], *words)
        assert wanted in str(caught.value)
        assert "\n" not in str(caught.value)


def test_crops_lie_at_both_ends_and_in_the_centre(mixed: Path) -> None:
    data = FolderData(root=mixed, size=8, crops=3)
    source, plain = data.build(), FolderData(root=mixed, size=8).build()
    for i in (0, 30, 41):
        whole = Image.open(mixed / source.names[i])
        crops = [np.asarray(centre_crop(whole, 8, at)).transpose(2, 0, 1) for at in (0, 0.5, 1)]
        assert all(np.array_equal(source.crop(i, k), crops[k]) for k in range(3))
        assert np.array_equal(source.image(i), plain.image(i))
    assert not np.array_equal(source.crop(30, 0), source.crop(30, 2))
    before = source.crop(30, 2).copy()
    source.verify()  # all are kept
    assert np.array_equal(source.crop(30, 2), before)


def test_training_draws_crops_by_seed_and_position_from_images_and_from_latents(mixed: Path, tmp_path: Path) -> None:
    words = ["data.kind=folder", f"data.root={mixed}", "data.size=8", "data.channels=1", "data.crops=3"]
    encode(small_run(tmp_path / "out", *words), tmp_path / "latents", progress=False, shard_size=7)
    cached = [*words, f"latents={tmp_path / 'latents'}"]
    runs = [small_run(tmp_path / "out", *given) for given in (words, cached)]
    seen = []
    for run in runs:
        source = run.source()
        stream = batches(source, np.arange(42), seed=0, start=3, stop=6, global_batch=6, flip=True)
        seen.append([batch.x.numpy() for (batch,) in stream])
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))
    one = small_run(tmp_path / "out", *words[:4]).source()
    (batch,) = next(batches(one, np.arange(42), seed=0, start=3, stop=6, global_batch=6, flip=True))
    assert not np.array_equal(batch.x.numpy(), seen[0][0])
    with pytest.raises(UserError, match="crops is 2; an odd number has the centre among them"):
        small_run(tmp_path / "out", *words[:4], "data.crops=2")
