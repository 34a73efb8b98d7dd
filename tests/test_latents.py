"""The latent cache: the same bytes however it is written, the same training as from images, every mismatch named."""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import udit
from conftest import ErrorOf, succeeds
from runs import RECIPE, SMALL, image_folder, metrics, small_run, state_hash, train
from udit import dist
from udit.data.batches import batches
from udit.data.cache_config import MANIFEST, PLAN, follow_cache
from udit.data.encode import plan_of, write_cache
from udit.data.latents import LatentCache, read_manifest
from udit.errors import RunError, UserError
from udit.files import seal, unseal
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.training.encoding import EncodedCache
from udit.training.trainer import Trainer
from vaes import tiny_vae

OneLine = Callable[[BaseException], str]
COUNT = 24
FOLDER = "data.kind=folder"
"""The data settings of a run that takes the rest from the cache; the recipe itself has the digits."""


class Cases:
    """Images, a VAE, and a cache of each codec, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = image_folder(root / "data", COUNT // 2)
        self.vae = tiny_vae(root / "vae")

    def words(self, kind: str) -> list[str]:
        source = [f"codec.source={self.vae}"] if kind == "vae" else []
        return [*self.data, f"codec.kind={kind}", *source]

    def run(self, kind: str, *more: str) -> Run:
        return small_run(self.root / "unused", *self.words(kind), *more)

    def cache(self, kind: str) -> Path:
        path = self.root / f"cache-{kind}"
        if not path.exists():
            encode(path, self.run(kind))
        return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("latents"))


def encode(path: Path, run: Run, world: dist.World | None = None, **choices: Any) -> None:
    source, codec = run.data.build(), run.codec.build()
    plan = plan_of(run.data, source, codec, **{"shard_size": 7, **choices})
    write_cache(path, plan, source, codec, world or dist.World(), batch_size=3)


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


KINDS = ("identity", "space-to-depth", "vae")


# -- what is in it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_cache_holds_what_the_codec_makes_of_each_image_and_its_mirror_image(cases: Cases, kind: str) -> None:
    run = cases.run(kind)
    source, codec, cache = run.data.build(), run.codec.build(), LatentCache(cases.cache(kind))
    cache.verify()
    assert len(cache) == len(source) == COUNT
    assert list(cache.names) == list(source.names)
    assert cache.labels.tolist() == source.labels.tolist()
    for i in range(COUNT):
        pixels = torch.from_numpy(source.image(i).copy())[None]
        for mirrored, turned in ((False, pixels), (True, pixels.flip(-1))):
            raw = codec.raw(turned)[0].numpy()
            wanted = raw.astype(np.float16) if kind == "vae" else raw
            assert cache.read(i, mirrored).tobytes() == wanted.tobytes()
    assert sorted(contents(cases.cache(kind))) == [
        "index.safetensors",
        "manifest.json",
        "plan.json",
        *(f"shard-{k:05d}.safetensors" for k in range(4)),
    ]


def test_pixels_are_never_decoded_from_a_cache(cases: Cases, tmp_path: Path) -> None:
    data = tmp_path / "data"
    words = [*image_folder(data), "codec=space-to-depth"]
    encode(tmp_path / "cache", small_run(tmp_path / "x", *words))
    shutil.rmtree(data)
    train(tmp_path / "run", "training.steps=2", FOLDER, f"latents={tmp_path / 'cache'}")
    assert metrics(tmp_path / "run")[-1]["val_loss"] > 0


def test_statistics_are_those_of_the_posteriors_draws(cases: Cases) -> None:
    manifest = read_manifest(cases.cache("vae"))
    raw = np.concatenate([load_file(cases.cache("vae") / f"shard-{k:05d}.safetensors")["raw"] for k in range(4)])
    mean, log_variance = np.split(raw.astype(np.float64), 2, axis=2)
    random_draws = mean + np.exp(0.5 * log_variance) * np.random.default_rng(0).standard_normal((200, *mean.shape))
    np.testing.assert_allclose(manifest.mean, random_draws.mean((0, 1, 2, 4, 5)), atol=0.01)
    np.testing.assert_allclose(manifest.std, random_draws.std((0, 1, 2, 4, 5)), rtol=0.01)


def test_measured_normalisation_travels_with_the_run(cases: Cases, tmp_path: Path) -> None:
    encode(tmp_path / "cache", cases.run("vae"), measured=True)
    manifest = read_manifest(tmp_path / "cache")
    run = small_run(tmp_path / "run", FOLDER, f"latents={tmp_path / 'cache'}")
    assert run.codec.shift == manifest.mean
    assert run.codec.scale == tuple(1 / std for std in manifest.std)
    cache, codec = run.source(), run.codec.build()
    x = codec.normalise(torch.from_numpy(np.stack([cache.read(i, m) for i in range(COUNT) for m in (False, True)])))
    assert x.mean((0, 2, 3)).abs().max() < 1e-3
    with pytest.raises(UserError, match="the identity codec has nothing to measure"):
        encode(tmp_path / "other", cases.run("identity"), measured=True)


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "space-to-depth"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_lossless_codec_are_those_of_the_images(cases: Cases, kind: str, workers: int) -> None:
    codec = cases.run(kind).codec.build()
    part = np.arange(COUNT)
    choices: Any = {"seed": 3, "start": 0, "stop": 8, "global_batch": 6, "flip": True, "workers": workers}
    cached = batches(LatentCache(cases.cache(kind)), part, **choices)
    uncached = batches(cases.run(kind).data.build(), part, **choices)
    for [one], [other] in zip(cached, uncached, strict=True):
        assert (one.ids, one.positions) == (other.ids, other.positions)
        assert torch.equal(codec.normalise(one.x), codec.normalise(codec.raw(other.x)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "space-to-depth"])
def test_training_from_the_cache_ends_at_the_bits_of_the_uncached_run(cases: Cases, tmp_path: Path, kind: str) -> None:
    words = [*cases.words(kind), "training.steps=5", "training.sample_every=5"]
    train(tmp_path / "pictures", *words)
    train(tmp_path / "cache", *words, f"latents={cases.cache(kind)}")
    assert state_hash(tmp_path / "cache") == state_hash(tmp_path / "pictures")
    assert metrics(tmp_path / "cache") == metrics(tmp_path / "pictures")


@pytest.mark.slow
def test_float32_moments_train_as_the_vae_itself_does(cases: Cases, tmp_path: Path) -> None:
    encode(tmp_path / "full", cases.run("vae"), dtype="float32")
    train(tmp_path / "pictures", *cases.words("vae"), "training.steps=5")
    train(tmp_path / "cache", *cases.words("vae"), "training.steps=5", f"latents={tmp_path / 'full'}")
    assert state_hash(tmp_path / "cache") == state_hash(tmp_path / "pictures")


def test_run_takes_data_and_codec_from_the_cache_and_the_cache_may_move(cases: Cases, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(cases.cache("vae"), one)
    run = small_run(tmp_path / "run", FOLDER, f"latents={one}")
    full = cases.run("vae")
    assert (run.codec, run.model, run.id2label, run.data) == (full.codec, full.model, full.id2label, full.data)
    train(tmp_path / "run", FOLDER, f"latents={one}", "training.steps=2")
    one.rename(other)
    train(tmp_path / "run", FOLDER, f"latents={other}", "training.steps=4")
    train(tmp_path / "whole", FOLDER, f"latents={other}", "training.steps=4")
    assert state_hash(tmp_path / "run") == state_hash(tmp_path / "whole")


def test_another_cache_is_refused_on_resuming(cases: Cases, tmp_path: Path, one_line: OneLine) -> None:
    train(tmp_path / "run", FOLDER, f"latents={cases.cache('vae')}", "training.steps=1")
    encode(tmp_path / "full", cases.run("vae"), dtype="float32")
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", FOLDER, f"latents={tmp_path / 'full'}", "training.steps=2")
    assert "the data is not what" in one_line(error.value)


# -- mismatches ----------------------------------------------------------------------------------------------------


def test_every_key_that_does_not_fit_the_cache_is_named(cases: Cases, tmp_path: Path, one_line: OneLine) -> None:
    cache, other = cases.cache("vae"), tiny_vae(tmp_path / "other", seed=1)
    image_folder(tmp_path / "elsewhere")
    misfits = {
        "codec.scale=0.18215": "codec.scale is 0.18215 and the latent cache",
        "codec.shift=0": "codec.shift is 0 and",
        "codec.channels=4": "codec.channels is 4 and",
        "codec.tiling=true": "codec.tiling is True and",
        "codec=identity": "codec.kind is 'identity' and",
        f"codec.source={other}": "decoding with another VAE gives noise",
        "data.size=16": "data.size is 16 and",
        "data.channels=3": "data.channels is 3 and",
        "data.kind=digits": "data.kind is 'digits' and",
        f"data.root={tmp_path / 'elsewhere'}": "data.root is",
        "model.in_channels=4": "model.in_channels is 4 and the data has 2",
        "model.input_size=8": "model.input_size is 8x8 and the data is 4x4",
        "latents=nowhere": "the latent cache 'nowhere' is not there; give the folder of one, or write one with",
        "latents=3": "latents is 3; give the folder",
    }
    for word, wanted in misfits.items():
        words = [f"latents={cache}", word]
        with pytest.raises(UserError) as error:
            load_with_data_left_out(words)
        assert wanted in one_line(error.value), word
    assert "leave codec.scale out" in one_line_of(
        lambda: load_with_data_left_out([f"latents={cache}", "codec.scale=1"])
    )


def test_recipe_gives_way_to_the_cache_and_the_command_line_does_not(
    cases: Cases, caplog: pytest.LogCaptureFixture, one_line: OneLine
) -> None:
    cache = cases.cache("space-to-depth")
    with caplog.at_level("INFO"):
        run = load_run("folder", [f"latents={cache}", "model.depths=[1]"])
    full = cases.run("space-to-depth")
    assert (run.data.size, run.data.channels, run.codec, run.id2label) == (8, 1, full.codec, full.id2label)
    assert f"data.size is 8, that of the latent cache {str(cache)!r}; the recipe's 32 gives way" in caplog.text
    assert run.model.num_classes == 2
    assert load_run("digits", [f"latents={cache}", "model.depths=[1]"]).data == run.data
    assert (
        load_run("fashion-mnist", [f"latents={cases.cache('identity')}", "model.depths=[1]"]).codec.kind == "identity"
    )
    for word, wanted in {
        "data.size=32": "data.size is 32 and the latent cache",
        "codec=identity": "codec.kind is 'identity' and the latent cache",
        "data={kind: folder, size: 32}": "data.size is 32 and the latent cache",
    }.items():
        with pytest.raises(UserError) as error:
            load_run("folder", [f"latents={cache}", word])
        assert wanted in one_line(error.value)


def test_recipe_that_names_its_own_cache_is_taken_at_its_word(cases: Cases, tmp_path: Path, one_line: OneLine) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"data: {{kind: folder, size: 32}}\nlatents: {cases.cache('identity')}\nmodel: U-DiT-tiny\n")
    with pytest.raises(UserError) as error:
        load_run(str(recipe))
    assert "data.size is 32 and the latent cache" in one_line(error.value)


def test_model_of_a_recipe_takes_size_and_classes_of_the_cache(
    cases: Cases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tmp_path / "own.yaml"
    boundary = "input_size: 16, in_channels: 3, num_classes: 7"
    recipe.write_text(f"data: {{kind: folder, size: 16}}\nmodel: {{name: U-DiT-tiny, depths: [1], {boundary}}}\n")
    with caplog.at_level("INFO"):
        run = load_run(str(recipe), [f"latents={cases.cache('identity')}"])
    assert (run.model.size, run.model.in_channels, run.model.num_classes) == ((8, 8), 1, 2)
    assert "model.num_classes is 2, that of the latent cache" in caplog.text
    unconditional = load_run(str(recipe), [f"latents={cases.cache('identity')}", "num_classes=0"])
    assert unconditional.model.num_classes == 0


def load_with_data_left_out(words: list[str]) -> Run:
    """The tiny run without its data section, so that only the overrides set the data."""
    from udit.run.recipes import parse_overrides, read_recipe
    from udit.run.resolve import resolve

    values = {key: value for key, value in read_recipe(RECIPE).items() if key != "data"}
    overrides = parse_overrides(words)
    codec = overrides.get("codec")
    overrides["model"] = values.pop("model") | {"depths": [1]} | overrides.get("model", {})
    return resolve(values | overrides | ({"codec": codec} if codec else {}))


def one_line_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    return str(error.value)


def test_mirroring_needs_mirrored_latents(cases: Cases, tmp_path: Path) -> None:
    encode(tmp_path / "plain", cases.run("identity", "data.flip=false"))
    assert read_manifest(tmp_path / "plain").plan.mirrored is False
    words = [*cases.words("identity"), f"latents={tmp_path / 'plain'}"]
    assert small_run(tmp_path / "x", *words).data.flip is False
    assert "data.flip is true and the cache" in one_line_of(lambda: small_run(tmp_path / "x", *words, "data.flip=true"))
    train(tmp_path / "one", *words, "data.flip=false", "training.steps=2")
    train(tmp_path / "two", *cases.words("identity"), "data.flip=false", "training.steps=2")
    assert state_hash(tmp_path / "one") == state_hash(tmp_path / "two")


def test_damage_to_a_cache_is_found_before_the_first_step(cases: Cases, tmp_path: Path, one_line: OneLine) -> None:
    whole, shard = cases.cache("identity"), "shard-00001.safetensors"

    def damaged(name: str, file: str, change: Callable[[bytes], bytes] | None) -> None:
        path = Path(shutil.copytree(whole, tmp_path / name)) / file
        path.write_bytes(change(path.read_bytes())) if change else path.unlink()

    def facts(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
        def apply(text: bytes) -> bytes:
            values = unseal(text.decode())
            change(values)
            return seal(values).encode()

        return apply

    cases_of_damage: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {
        "cut": (shard, lambda b: b[:-1], f"{shard} has"),
        "flipped": (shard, lambda b: b[:-1] + bytes([b[-1] ^ 1]), f"{shard} does not match its sha256"),
        "gone": (shard, None, f"{shard} of the latent cache cannot be read (No such file or directory)"),
        "index": ("index.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "index.safetensors does not match"),
        "no manifest": (MANIFEST, None, "is unfinished; run the same `udit encode` again"),
        "torn manifest": (MANIFEST, lambda b: b[:100], "manifest.json is damaged or altered"),
        "count": (MANIFEST, facts(lambda v: v["plan"].update(count=27)), "lists 24 images and the manifest 27"),
        "counts": (MANIFEST, facts(lambda v: v["plan"].update(count=99)), "shards are 4 and 99 images"),
        "shape": (MANIFEST, facts(lambda v: v["plan"].update(shape=[1, 4, 4])), "shape is (1, 4, 4) and the codec"),
        "type": (MANIFEST, facts(lambda v: v["plan"].update(dtype="float32")), "dtype is float32"),
        "flips": (
            MANIFEST,
            facts(lambda v: v["plan"].update(mirrored=False)),
            "and the manifest says U8 [7, 1, 1, 8, 8]",
        ),
        "format": (MANIFEST, facts(lambda v: v["plan"].update(format=2)), "format is 2"),
        "classes": (MANIFEST, facts(lambda v: v["plan"].update(id2label=["cat"])), "has labels outside 0 to 0"),
    }
    for name, (file, change, wanted) in cases_of_damage.items():
        damaged(name, file, change)
        with pytest.raises(UserError) as error:
            LatentCache(tmp_path / name).verify()
        assert wanted in one_line(error.value), name


def test_truncated_shard_is_refused_before_training_and_encoding_again_replaces_it(
    cases: Cases, tmp_path: Path, error_of: ErrorOf
) -> None:
    cache = Path(shutil.copytree(cases.cache("identity"), tmp_path / "cache"))
    wanted = contents(cache)
    (cache / "shard-00002.safetensors").write_bytes(wanted["shard-00002.safetensors"][:-9])
    words = ["train", RECIPE, *SMALL, *cases.words("identity"), f"latents={cache}", f"out={tmp_path / 'out'}"]
    assert "shard-00002.safetensors has" in error_of(*words)
    encode(cache, cases.run("identity"))
    assert contents(cache) == wanted


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["space-to-depth", "vae"])
def test_bytes_depend_on_neither_ranks_nor_batches(cases: Cases, tmp_path: Path, kind: str) -> None:
    run = cases.run(kind)
    source, codec = run.data.build(), run.codec.build()
    plan = plan_of(run.data, source, codec, shard_size=7)

    class Alone(dist.World):
        """One of several ranks, which waits for no other."""

        def sum(self, values: Any) -> list[float]:
            return list(values)

        def broadcast(self, tensors: Any) -> None: ...

    with pytest.raises(RunError, match=r"No such file"):  # the other rank's shards are not there yet
        write_cache(tmp_path / "ranks", plan, source, codec, Alone(rank=0, size=2), batch_size=5)
    with pytest.raises(UserError, match=r"manifest.json is damaged or altered"):  # which rank 0 has yet to write
        write_cache(tmp_path / "ranks", plan, source, codec, Alone(rank=1, size=2), batch_size=5)
    assert not (tmp_path / "ranks" / MANIFEST).exists()
    write_cache(tmp_path / "ranks", plan, source, codec, dist.World(), batch_size=5)
    written = contents(tmp_path / "ranks")
    whole = contents(cases.cache(kind))
    assert {k: v for k, v in written.items() if k.endswith("safetensors")} == {
        k: v for k, v in whole.items() if k.endswith("safetensors")
    }
    assert written == whole


def test_stopped_writer_goes_on_and_keeps_what_is_whole(cases: Cases, tmp_path: Path) -> None:
    run = cases.run("vae")
    source, codec = run.data.build(), run.codec.build()
    plan = plan_of(run.data, source, codec, shard_size=7)
    read = source.image

    def breaks_off(i: int) -> Any:
        if i == 17:
            raise UserError("picture 17 is broken")
        return read(i)

    source.image = breaks_off  # type: ignore[method-assign]
    with pytest.raises(UserError, match="picture 17 is broken"):
        write_cache(tmp_path / "cache", plan, source, codec, dist.World())
    kept = tmp_path / "cache" / "shard-00001.safetensors"
    before = kept.stat().st_mtime_ns
    (tmp_path / "cache" / ".tmp-shard-00002.safetensors-1").write_bytes(b"half")
    source.image = read  # type: ignore[method-assign]
    write_cache(tmp_path / "cache", plan, source, codec, dist.World())
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "cache") == contents(cases.cache("vae"))


def test_command_writes_goes_on_and_names_what_changed(
    cases: Cases, tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    plain = ["encode", RECIPE, *SMALL, *cases.words("vae"), "--no-progress", "--out", str(cache)]
    words = [*plain, "--shard-size", "7"]
    said = succeeds(capsys, *words)
    lost, wrote = said.splitlines(keepends=True)
    assert lost.startswith("2 held-out images, decoded: PSNR ")
    assert wrote.startswith(f"wrote {cache}: 24 images and their mirror images as float16 4x4x4 in 4 shards, ")
    assert said.endswith(f"next: udit train {RECIPE} latents={cache}\n")
    assert contents(cache) == contents(cases.cache("vae"))
    assert succeeds(capsys, *words) == said
    assert "another dtype: 'float16', and 'float32' now; take another --out" in error_of(*words, "--dtype", "float32")
    assert "another shard_size: 7, and 5 now" in error_of(*plain, "--shard-size", "5")
    assert "another codec.scale: 0.5, and 1.0 now" in error_of(*words, "codec.scale=1")
    assert "another codec.kind" in error_of(*words, "codec={kind: identity}")
    (cases.root / "data" / "cat" / "new.png").write_bytes((cases.root / "data" / "cat" / "0.png").read_bytes())
    try:
        assert "another fingerprint" in error_of(*words)
    finally:
        (cases.root / "data" / "cat" / "new.png").unlink()
    assert "is not empty and not a latent cache; take another --out" in error_of(*plain[:-1], str(cases.root / "data"))
    assert "--shard-size is 0" in error_of(*plain, "--shard-size", "0")
    assert "leave latents out" in error_of(*words, f"latents={cache}")


@pytest.mark.parametrize("kind", KINDS)
def test_python_writes_the_bytes_of_the_command_and_tells_what_it_wrote(
    cases: Cases, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    words = ["encode", RECIPE, *SMALL, *cases.words(kind), "--no-progress", "--out", str(tmp_path / "command")]
    succeeds(capsys, *words, "--shard-size", "7", "--batch-size", "5")
    for _ in range(2):  # the second finds all of it
        found = udit.encode(cases.run(kind), str(tmp_path / "python"), shard_size=7, batch_size=5, progress=False)
        assert contents(tmp_path / "python") == contents(tmp_path / "command")
    shape = (4, 4, 4) if kind != "identity" else (1, 8, 8)
    dtype = "float16" if kind == "vae" else "uint8"
    size = sum(path.stat().st_size for path in (tmp_path / "python").glob("shard-*"))
    wanted = EncodedCache(tmp_path / "python", COUNT, mirrored=True, shape=shape, dtype=dtype, shards=4, bytes=size)
    assert found == wanted


def test_python_refuses_what_the_command_refuses(cases: Cases, tmp_path: Path) -> None:
    run = cases.run("identity")
    for choice in ("shard_size", "batch_size"):
        with pytest.raises(UserError, match=f"{choice} is 0; it counts images"):
            udit.encode(run, tmp_path / "cache", **{choice: 0})
    with pytest.raises(UserError, match="leave latents out"):
        udit.encode(run.replace(latents=cases.cache("identity")), tmp_path / "cache")
    with pytest.raises(UserError, match="nothing to measure"):
        udit.encode(run, tmp_path / "cache", measure=True)
    with pytest.raises(UserError, match=r"^dtype is 'f'; it takes float16 or float32$"):
        udit.encode(run, tmp_path / "cache", dtype="f")  # type: ignore[arg-type]
    assert not (tmp_path / "cache").exists()


# -- untrusted files -----------------------------------------------------------------------------------------------


def mutations(text: str, count: int) -> Any:
    """Texts made of ``text`` by flips, cuts, copies, and by other values with a new digest."""
    chance = random.Random(0)
    odd = [
        None, True, -1, 0, 1, 2**63, 1e308, -0.5, "", "x", "../../etc/passwd", "a\x00b", [], {}, [[]], [1, 2],
        [0, 0, 0], {"kind": "vae"}, {"__class__": "os.system"}, "!!python/object:os.system", 10**400, "0" * 64,
        ["é"] * 9,
    ]  # fmt: skip
    for _ in range(count):
        kind = chance.randrange(3)
        if kind == 0:
            at = chance.randrange(len(text))
            yield text[:at] + chr(chance.randrange(32, 0x250)) + text[at + 1 :]
        elif kind == 1:
            yield text[: chance.randrange(len(text))]
        else:
            values = unseal(text)
            for _ in range(chance.randint(1, 3)):
                node = values
                while True:
                    key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
                    if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.7:
                        node = node[key]
                        continue
                    if isinstance(node, dict) and chance.random() < 0.2:
                        del node[key]
                    else:
                        node[key] = copy.deepcopy(chance.choice(odd))
                    break
                if not values:
                    break
            yield seal(values)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_thousand_mutated_manifests_get_an_answer_or_one_clear_line(cases: Cases, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(cases.cache("vae"), tmp_path / "cache"))
    path = cache / MANIFEST
    text = path.read_text()
    answers = refusals = 0
    slowest = 0.0
    for mutated in mutations(text, 10_000):
        path.write_text(mutated, encoding="utf-8")
        began = time.perf_counter()
        try:
            follow_cache({}, read_manifest(cache), cache)
            LatentCache(cache)
            answers += 1
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 2000
            refusals += 1
        slowest = max(slowest, time.perf_counter() - began)
    assert answers + refusals == 10_000
    assert refusals > 9_000
    assert slowest < 5


def test_shards_of_a_manifest_are_counted_without_a_list_of_them(cases: Cases, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(cases.cache("identity"), tmp_path / "cache"))
    values = unseal((cache / MANIFEST).read_text())
    values["plan"] |= {"count": 10**15, "shard_size": 1}
    (cache / MANIFEST).write_text(seal(values))
    with pytest.raises(UserError, match=r"1000000000000000 images at 1 per shard are 1000000000000000; encode again"):
        read_manifest(cache)


def test_manifest_without_end_is_refused_unread(cases: Cases, tmp_path: Path, one_line: OneLine) -> None:
    cache = Path(shutil.copytree(cases.cache("identity"), tmp_path / "cache"))
    for text, wanted in (("[" * 200_000, "damaged or altered"), (" " * 65_000_000, "more than any manifest")):
        (cache / MANIFEST).write_text(text)
        with pytest.raises(UserError) as error:
            LatentCache(cache)
        assert wanted in one_line(error.value)
    (cache / MANIFEST).write_text(json.dumps({"plan": 1}))
    with pytest.raises(UserError, match="does not match its own digest"):
        read_manifest(cache)
    assert (cache / PLAN).is_file()


def test_several_ranks_train_from_one_cache(cases: Cases, tmp_path: Path) -> None:
    words = [*cases.words("space-to-depth"), "training.steps=2", f"latents={cases.cache('space-to-depth')}"]
    source = small_run(tmp_path / "x", *words).source()
    part = np.arange(COUNT)
    whole = next(batches(source, part, seed=0, start=0, stop=1, global_batch=6, flip=True))[0]
    halves = [
        next(batches(source, part, seed=0, start=0, stop=1, global_batch=6, flip=True, rank=rank, world=2))[0]
        for rank in range(2)
    ]
    assert torch.equal(torch.cat([half.x for half in halves]), whole.x)
    assert Trainer(small_run(tmp_path / "run", *words), dist.World()).train(progress=False).step == 2


def test_papers_recipe_resolves_without_the_vae_or_a_network(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / f"n{i:08d}").mkdir()
        (tmp_path / f"n{i:08d}" / "0.png").touch()  # names are all that resolving reads
    run = load_run("imagenet256-latent", [f"data.root={tmp_path}"])
    assert (run.model.in_channels, run.model.size, run.model.num_classes) == (4, (32, 32), 1000)
    assert (run.model.out_channels, run.model.null_label, run.data.flip) == (8, 1000, True)
    training = run.training
    assert (training.batch_size, training.lr, training.weight_decay, training.ema_decay) == (256, 1e-4, 0, 0.9999)
    assert (training.label_dropout, training.betas, training.lr_warmup) == (0.1, (0.9, 0.999), 0)
    assert run.codec.scale == 0.18215
