"""Pixels are restored from what the network sees, and a VAE's latents are stored with their scale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import udit
from conftest import ErrorOf, same_bits, succeeds
from runs import RECIPE, SMALL, image_folder, metrics, small_run, state_hash, train
from udit.data.codec import Codec, Identity, LatentVAE, SpaceToDepth, encode
from udit.data.codec_config import IdentityCodec, SpaceToDepthCodec, VAECodec, codec_from
from udit.data.config import DataInfo
from udit.data.vae import complete
from udit.errors import UserError
from udit.run.recipes import load_run
from udit.run.system import SystemConfig
from vaes import tiny_dc, tiny_flux2, tiny_taesd, tiny_vae

OneLine = Callable[[BaseException], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE for grey images."""
    return tiny_vae(tmp_path_factory.mktemp("vae") / "grey")


@pytest.fixture(scope="module")
def vae(folder: Path) -> LatentVAE:
    return complete(VAECodec(source=str(folder))).build()


def some_pixels(count: int = 3, channels: int = 1, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


# -- pixels --------------------------------------------------------------------------------------------------------


def test_every_pixel_value_comes_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = encode(Identity(), pixels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(Identity().decode(x), pixels)


def test_decode_clamps_and_rounds_to_the_nearest() -> None:
    x = torch.tensor([-7.0, 7.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]).view(1, 1, 2, 2)
    assert Identity().decode(x).flatten().tolist() == [0, 255, 10, 11]


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_space_to_depth_is_undone_exactly(factor: int, channels: int, height: int, width: int) -> None:
    shape = (2, channels, height * factor, width * factor)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(factor))
    x = encode(SpaceToDepth(factor), pixels)
    assert x.shape == (2, channels * factor**2, height, width)
    assert torch.equal(SpaceToDepth(factor).decode(x), pixels)
    info = DataInfo(channels=channels, height=shape[2], width=shape[3], id2label=())
    seen = SpaceToDepthCodec(factor=factor).seen(info)
    assert (seen.channels, seen.height, seen.width) == x.shape[1:]


def test_space_to_depth_puts_row_i_column_j_of_a_square_into_channel_i_j() -> None:
    pixels = torch.arange(32 * 32).remainder(251).to(torch.uint8).view(1, 1, 32, 32)
    raw = SpaceToDepth(2).raw(pixels)
    assert raw.shape == (1, 4, 16, 16)
    for i in range(2):
        for j in range(2):
            assert torch.equal(raw[0, 2 * i + j], pixels[0, 0, i::2, j::2])


@pytest.mark.parametrize("codec", [Identity(), SpaceToDepth(2)])
def test_codecs_without_a_posterior_draw_nothing(codec: Codec) -> None:
    raw = codec.raw(some_pixels())
    assert torch.equal(codec.normalise(raw), codec.normalise(raw, [(0, i) for i in range(3)]))


# -- the VAE -------------------------------------------------------------------------------------------------------


def test_vae_writes_down_what_its_own_config_says(folder: Path, vae: LatentVAE) -> None:
    config = vae.config
    assert (config.channels, config.factor, config.scale, config.shift) == (2, 2, 0.5, 0.25)
    assert config.source == str(folder.resolve())
    assert config.sha256 is not None
    seen = config.seen(DataInfo(channels=1, height=8, width=12, id2label=("a",)))
    assert (seen.channels, seen.height, seen.width, seen.id2label) == (2, 4, 6, ("a",))


def test_means_and_deviations_of_a_vae_become_shift_and_scale_of_each_channel(tmp_path: Path) -> None:
    source = tiny_vae(tmp_path / "v", latents_mean=(1.0, -1.0), latents_std=(2.0, 4.0), shift_factor=None)
    config = complete(VAECodec(source=str(source)))
    assert (config.scale, config.shift) == ((0.25, 0.125), (1.0, -1.0))
    codec = config.build()
    z = codec.raw(some_pixels())[:, :2]
    wanted = (z - torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)) * torch.tensor([0.25, 0.125]).view(1, 2, 1, 1)
    assert torch.equal(encode(codec, some_pixels()), wanted)


def test_normalised_latents_are_those_of_diffusers_shifted_and_scaled(vae: LatentVAE) -> None:
    pixels = some_pixels()
    with torch.no_grad():
        posterior = vae.vae.encode(pixels / 127.5 - 1).latent_dist
        wanted = (posterior.mean - 0.25) * 0.5
        decoded = vae.vae.decode(wanted / 0.5 + 0.25).sample
    assert torch.equal(encode(vae, pixels), wanted)
    assert torch.equal(vae.decode(wanted), Identity().decode(decoded))


def test_an_image_has_the_same_latents_and_a_latent_the_same_image_in_any_batch(vae: LatentVAE) -> None:
    pixels = some_pixels(5)
    raw = vae.raw(pixels)
    x = vae.normalise(raw)
    for i in range(5):
        assert torch.equal(vae.raw(pixels[i : i + 1])[0], raw[i])
        assert torch.equal(vae.decode(x[i : i + 1])[0], vae.decode(x)[i])


def test_posterior_is_drawn_by_seed_and_place_alone_and_has_its_moments(vae: LatentVAE) -> None:
    raw = vae.raw(some_pixels(2))
    one = vae.normalise(raw, [(0, 7), (0, 8)])
    torch.testing.assert_close(vae.normalise(raw.flip(0), [(0, 8), (0, 7)]).flip(0), one)
    assert not torch.allclose(vae.normalise(raw, [(0, 7), (0, 9)])[1], one[1], atol=1e-2)
    assert not torch.allclose(vae.normalise(raw, [(1, 7), (0, 8)])[0], one[0], atol=1e-2)
    drawn = torch.cat([vae.normalise(raw[:1], [(0, place)]) for place in range(4000)]) / 0.5 + 0.25
    mean, log_variance = raw[:1].chunk(2, dim=1)
    std = (0.5 * log_variance).exp()[0]
    assert float(((drawn.mean(0) - mean[0]) / std).abs().max()) < 5 / 4000**0.5
    assert float((drawn.std(0) / std - 1).abs().max()) < 0.06


def test_mode_ignores_the_keys(folder: Path) -> None:
    codec = complete(VAECodec(source=str(folder), posterior="mode")).build()
    raw = codec.raw(some_pixels(1))
    assert torch.equal(codec.normalise(raw, [(0, 7)]), codec.normalise(raw))


def test_tiles_cover_large_images(folder: Path) -> None:
    codec = complete(VAECodec(source=str(folder), tiling=True)).build()
    pixels = some_pixels(1, size=32)
    x = encode(codec, pixels)
    assert x.shape == (1, 2, 16, 16)
    assert codec.decode(x).shape == pixels.shape


# -- diffusers' other autoencoders -------------------------------------------------------------------------------------


def test_flux2_latents_are_patches_normalised_as_its_pipeline_does(tmp_path: Path) -> None:
    config = complete(VAECodec(source=str(tiny_flux2(tmp_path / "v"))))
    assert (config.network, config.channels, config.factor) == ("AutoencoderKLFlux2", 8, 4)
    codec, pixels = config.build(), some_pixels(2, channels=3, size=16)
    x = encode(codec, pixels)
    with torch.no_grad():
        z = codec.vae.encode(pixels / 127.5 - 1).latent_dist.mean  # [2, 2, 8, 8]
        patches = z.view(2, 2, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 8, 4, 4)
        statistics = codec.vae.bn.eval()
        torch.testing.assert_close(x, statistics(patches))
        decoded = codec.vae.decode(z).sample
    assert int((codec.decode(x).int() - Identity().decode(decoded).int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("make", "network", "channels", "factor", "scale"),
    [(tiny_dc, "AutoencoderDC", 8, 4, 0.4), (tiny_taesd, "AutoencoderTiny", 4, 2, 1.0)],
)
def test_autoencoders_without_a_posterior_give_one_latent_for_an_image(
    tmp_path: Path, make: Callable[[Path], Path], network: str, channels: int, factor: int, scale: float
) -> None:
    config = complete(VAECodec(source=str(make(tmp_path / "v"))))
    assert (config.network, config.channels, config.factor, config.scale) == (network, channels, factor, scale)
    codec, pixels = config.build(), some_pixels(2, channels=3, size=16)
    raw = codec.raw(pixels)
    assert raw.shape == (2, channels, 16 // factor, 16 // factor)
    x = codec.normalise(raw, [(0, 7), (0, 8)])
    assert torch.equal(x, codec.normalise(raw))
    with torch.no_grad():
        z = codec.vae.encode(pixels / 127.5 - 1)[0]
        decoded = codec.vae.decode(z).sample
    assert torch.equal(x, z * scale)
    assert int((codec.decode(x).int() - Identity().decode(decoded).int()).abs().max()) <= 1
    assert torch.equal(codec.raw(pixels[1:])[0], raw[1])


def test_cache_of_latents_without_a_posterior_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = ("codec.kind=vae", f"codec.source={tiny_taesd(tmp_path / 'v')}")
    images = (*image_folder(tmp_path / "images", 4), "data.channels=3")
    cache = tmp_path / "cache"
    succeeds(capsys, "encode", RECIPE, *images, *vae, "--measure", "--out", str(cache), "--dtype", "float32")
    manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["plan"]["shape"] == [4, 4, 4]
    raw = load_file(cache / "shard-00000.safetensors")["raw"].double()
    assert torch.allclose(torch.tensor(manifest["mean"], dtype=torch.float64), raw.mean((0, 1, 3, 4)))
    assert torch.allclose(torch.tensor(manifest["std"], dtype=torch.float64), raw.std((0, 1, 3, 4), correction=0))
    train(tmp_path / "run", *images, f"latents={cache}", "training.steps=1")
    assert udit.load(tmp_path / "run").config.codec.network == "AutoencoderTiny"


# -- refusals ------------------------------------------------------------------------------------------------------


def test_another_vae_is_refused_by_name(folder: Path, vae: LatentVAE, tmp_path: Path, one_line: OneLine) -> None:
    other = tiny_vae(tmp_path / "other", seed=1)
    config = vae.config.replace(source=str(other))
    for attempt in (config.build, lambda: complete(config)):
        with pytest.raises(UserError) as error:
            attempt()
        assert str(vae.config.sha256)[:12] in one_line(error.value)
        assert "decoding with another VAE gives noise" in one_line(error.value)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"channels": 4}, "codec.channels is 4 and the VAE at"),
        ({"factor": 8}, "codec.factor is 8 and the VAE at"),
        ({"scale": (1.0, 2.0, 3.0)}, "codec.scale has 3 numbers and the latents have 2 channels"),
        ({"shift": (0.0,)}, "codec.shift has 1 numbers"),
        ({"sha256": "0" * 64}, "has weights"),
        ({"source": "nowhere"}, "codec.source is 'nowhere', no folder; give that of a VAE, or a hub id (owner/name)"),
    ],
)
def test_numbers_that_are_not_the_vaes_are_named(
    folder: Path, change: dict[str, object], wanted: str, one_line: OneLine
) -> None:
    with pytest.raises(UserError) as error:
        complete(VAECodec(source=str(folder)).replace(**change)).build()
    assert wanted in one_line(error.value)


def test_broken_vae_folders_are_one_line_errors(folder: Path, tmp_path: Path, one_line: OneLine) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    (broken("no config") / "config.json").unlink()
    (broken("no JSON") / "config.json").write_text("{")
    (broken("no VAE") / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (broken("no weights") / "diffusion_pytorch_model.safetensors").unlink()
    (broken("torn") / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    facts = json.loads((folder / "config.json").read_text())
    (broken("other sizes") / "config.json").write_text(json.dumps({**facts, "block_out_channels": [8, 24]}))
    (broken("fewer layers") / "config.json").write_text(json.dumps({**facts, "layers_per_block": 2}))
    wanted = {
        "no config": "config.json cannot be read",
        "no JSON": "config.json cannot be read",
        "no VAE": "says _class_name 'UNet2DModel'; the vae codec takes diffusers' AutoencoderKL, ",
        "no weights": "diffusion_pytorch_model.safetensors' cannot be read (No such file or directory)",
        "torn": "cannot be loaded",
        "other sizes": "cannot be loaded",
        "fewer layers": "is damaged: config.json and weights disagree on",
    }
    for name, text in wanted.items():
        with pytest.raises(UserError) as error:
            complete(VAECodec(source=str(tmp_path / name))).build()
        assert text in one_line(error.value), name


def test_vae_for_colour_refuses_grey_images(tmp_path: Path, one_line: OneLine) -> None:
    codec = complete(VAECodec(source=str(tiny_vae(tmp_path / "v", channels=3)))).build()
    with pytest.raises(UserError, match="the images have 1 channels and the VAE at"):
        codec.raw(some_pixels())


def test_unreachable_hub_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    full = VAECodec(source="owner/name", channels=4, factor=8, scale=0.18215, shift=0.0)
    assert complete(full) == full
    for attempt in (lambda: complete(VAECodec(source="owner/name")), full.build):
        with pytest.raises(UserError) as error:
            attempt()
        assert "the VAE at 'owner/name' is no folder, and the hub gave none" in one_line(error.value)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["codec=space-to-deph"], "codec.kind is 'space-to-deph'; did you mean 'space-to-depth'?"),
        (["codec=space-to-depth", "codec.factor=3"], "images of 8x8 do not split into squares of 3"),
        (["codec=space-to-depth", "codec.fator=2"], "unknown key 'codec.fator'; did you mean 'factor'?"),
        (["codec=7"], "codec.kind is 7"),
        (["codec=vae"], "codec.source is missing"),
        (["codec=identity", "codec.factor=2"], "unknown key 'codec.factor'"),
        (["codec=space-to-depth", "model.in_channels=1"], "model.in_channels is 1 and the data has 4"),
    ],
)
def test_mistakes_in_the_codec_are_refused(words: list[str], wanted: str, one_line: OneLine) -> None:
    with pytest.raises(UserError) as error:
        load_run(RECIPE, words)
    assert wanted in one_line(error.value)


# -- runs ----------------------------------------------------------------------------------------------------------


def test_model_follows_data_and_codec(folder: Path) -> None:
    run = load_run(RECIPE, ["codec=space-to-depth", "model.depths=[1]"])
    assert (run.model.in_channels, run.model.size) == (4, (4, 4))
    run = load_run(RECIPE, ["codec=vae", f"codec.source={folder}", "model.depths=[1]"])
    assert (run.model.in_channels, run.model.size, run.codec.scale) == (2, (4, 4), 0.5)
    assert load_run(RECIPE).codec == IdentityCodec()


def test_old_name_of_the_codec_still_reads() -> None:
    assert codec_from("identity") == IdentityCodec()
    model = {"family": "U-DiT", "input_size": 8}
    assert SystemConfig(model=model, codec="identity").codec == IdentityCodec()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["space-to-depth", "vae"])
def test_run_in_latents_trains_resumes_and_samples_pixels(tmp_path: Path, folder: Path, kind: str) -> None:
    words = [*image_folder(tmp_path / "data"), "training.sample_every=2", f"codec.kind={kind}"]
    words += [f"codec.source={folder}"] if kind == "vae" else []
    train(tmp_path / "whole", "training.steps=4", *words)
    train(tmp_path / "cut", "training.steps=2", *words)
    train(tmp_path / "cut", "training.steps=4", *words)
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")
    assert metrics(tmp_path / "whole")[-1]["val_loss"] > 0
    one, other = udit.load(tmp_path / "whole"), udit.load(tmp_path / "whole" / "model")
    assert one.config.codec == other.config.codec == small_run(tmp_path / "x", *words).codec
    images = next(other.generate(seeds=[0, 1], labels=[0, 1]))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 8, 8)
    assert torch.equal(images[1:], next(one.generate(seeds=[1], labels=[1])))


def test_model_folder_finds_its_vae_where_it_says_or_beside_itself(
    tmp_path: Path, folder: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "vae"))
    words = [*image_folder(tmp_path / "data"), "codec.kind=vae", f"codec.source={moved}", "training.steps=1"]
    train(tmp_path / "run", *words)
    model = tmp_path / "run" / "model"
    before = next(udit.load(model).generate([3], [1]))
    shutil.move(moved, model / "vae")
    assert torch.equal(next(udit.load(model).generate([3], [1])), before)
    succeeds(capsys, "sample", str(model), "--n", "1", "--output", "npz", "--out", str(tmp_path / "s"), "--no-progress")
    assert np.load(tmp_path / "s" / "samples.npz")["arr_0"].shape == (1, 8, 8, 1)
    shutil.rmtree(model / "vae")
    tiny_vae(model / "vae", seed=1)
    assert "decoding with another VAE gives noise" in error_of(
        "sample", str(model), "--n", "1", "--out", str(tmp_path / "t")
    )
    shutil.rmtree(model / "vae")
    assert "is no folder" in error_of("sample", str(model), "--n", "1", "--out", str(tmp_path / "t"))


def test_changed_codec_is_named_on_resuming(tmp_path: Path, error_of: ErrorOf) -> None:
    words = ["train", RECIPE, *SMALL, *image_folder(tmp_path / "data"), f"out={tmp_path / 'out'}", "--no-progress"]
    train(tmp_path / "out", *image_folder(tmp_path / "again"), "training.steps=1", "codec=space-to-depth")
    assert "codec.kind was 'space-to-depth'" in error_of(*words, "training.steps=1", f"data.root={tmp_path / 'again'}")


def test_released_latents_name_their_vae(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    sizes = {"width": 16, "heads": 2, "depths": (1, 1, 1), "input_size": 8}
    named = ["--model", "U-DiT-S", "width=16", "heads=2", "depths=[1,1,1]", "input_size=8"]
    model = udit.build("U-DiT-S", **sizes)
    save_file(udit.export_published(model), tmp_path / "w.safetensors")
    succeeds(capsys, "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "model"), *named)
    codec = udit.load(tmp_path / "model").config.codec
    assert (codec.source, codec.scale, codec.factor) == ("stabilityai/sd-vae-ft-ema", 0.18215, 8)
    own = tiny_vae(
        tmp_path / "v",
        channels=3,
        latent_channels=4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    succeeds(capsys, "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "own"), *named, "--vae", str(own))
    system = udit.load(tmp_path / "own")
    assert same_bits(system.backbone.state_dict(), model.state_dict())
    assert next(system.generate([0], [1], sampling=system.config.sampling.replace(steps=1))).shape == (1, 3, 64, 64)
