"""Image to image: sampling starts from a noised image, with any sampler and any codec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import udit
from conftest import TINY, perturb, succeeds
from gaussian import Gaussian
from udit.assemble import System
from udit.data.codec import encode
from udit.data.codec_config import CodecConfig, IdentityCodec, SpaceToDepthCodec, VAECodec
from udit.data.decode import decode
from udit.data.vae import complete
from udit.diffusion.cache import StepCache
from udit.diffusion.config import DDPMConfig, FlowConfig, SamplingConfig
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import EDM
from udit.diffusion.flow import Flow
from udit.diffusion.origin import Origin
from udit.diffusion.sample import SeededNoise, Step, make_sampler, sample
from udit.diffusion.schedule import Schedule
from udit.errors import UserError
from udit.images import read_pixels, read_settings
from udit.inputs import start_images
from udit.run.system import SystemConfig
from vaes import tiny_vae

OneLine = Callable[[BaseException], str]
SCHEDULES: dict[str, Schedule] = {
    "ddpm": DDPM.linear(1000),
    "flow": Flow(),
    "gvp": Flow("gvp"),
    "edm": EDM(),
}
EACH = [(kind, name) for kind, schedule in SCHEDULES.items() for name in schedule.process.samplers()]
ONE_STEP = [(kind, name) for kind, name in EACH if name not in ("dpmpp", "unipc")]
EXACT = [pair for pair in EACH if pair[1] != "flow-sde" and pair not in (("gvp", "flow-euler"), ("gvp", "flow-heun"))]
"""Whose error is 0 where x0 does not change: neither of a step of the SDE, nor along the bent path."""
SHAPE = (2, 1, 4, 4)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def told(schedule: Schedule, asked: list[float]) -> Denoiser:
    """The best denoiser of Gaussian pixels, which notes when it is asked."""
    inner = Gaussian().denoiser(schedule, schedule.target)

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        asked.append(float(t[0]))
        return inner.backbone(x, t, y)

    return Denoiser(backbone, schedule, schedule.target, time=schedule.time)


def run(denoiser: Denoiser, name: str, steps: int, x: Tensor, origin: Origin | None, skip: int = 0) -> list[Step]:
    noise = SeededNoise([1, 2], SHAPE[1:])
    return list(sample(denoiser, x, sampler=name, steps=steps, noise=lambda k: noise(k + skip), origin=origin))


@pytest.mark.parametrize(("kind", "name"), EACH)
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_times_above_the_strength_are_left_out(kind: str, name: str, strength: float) -> None:
    schedule, asked = SCHEDULES[kind], []
    denoiser = told(schedule, asked)
    whole = make_sampler(name).times(denoiser, 9)
    run(denoiser, name, 9, normal(0), Origin(normal(1), strength))
    times = make_sampler(name).times(denoiser, 9, strength)
    assert asked == pytest.approx(times.tolist())
    assert times.tolist() == whole[len(whole) - len(times) :].tolist()
    fractions = [float(schedule.fraction(torch.tensor([time]))) if kind != "ddpm" else time / 999 for time in asked]
    assert max(fractions) <= strength + 1e-6
    if strength == 1:
        assert len(times) == len(whole)


@pytest.mark.parametrize(("kind", "name"), ONE_STEP)
def test_a_noised_image_goes_the_way_of_the_whole_run(kind: str, name: str) -> None:
    """From an image and noise that make the x_t of a whole run, with the noise of its steps, its samples come."""
    schedule = SCHEDULES[kind]
    denoiser = told(schedule, [])
    steps = run(denoiser, name, 9, normal(0), None)
    times, rest = (make_sampler(name).times(denoiser, 9, strength) for strength in (1.0, 0.6))
    skip = len(times) - len(rest)
    assert 0 < skip < len(times)
    x_t, time = steps[skip - 1].x, rest[:1]
    t = (time * 9 / 999).round().long() if kind == "ddpm" else time
    at = schedule if kind != "ddpm" else schedule.respaced(9)
    t = torch.tensor([8 - skip]) if kind == "ddpm" else t
    alpha, sigma = at.alpha_sigma(t, x_t)
    x0 = normal(5)
    *_, last = run(denoiser, name, 9, (x_t - alpha * x0) / sigma, Origin(x0, 0.6), skip)
    torch.testing.assert_close(last.x, steps[-1].x, rtol=1e-4, atol=1e-4)
    assert (last.index, last.total) == (len(rest), len(rest))


@pytest.mark.parametrize(("kind", "name"), EXACT)
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_the_known_image_comes_back(kind: str, name: str, strength: float) -> None:
    """Of a data set of one image these samplers, from any strength, end at that image."""
    schedule, x0 = SCHEDULES[kind], normal(4)

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x0

    denoiser = Denoiser(backbone, schedule, "x0", time=schedule.time)
    last = run(denoiser, name, 15, normal(0), Origin(x0, strength))[-1]
    torch.testing.assert_close(last.x, x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["flow-euler", "flow-heun"])
def test_full_strength_is_sampling_from_noise(name: str) -> None:
    denoiser = told(Flow(), [])
    assert torch.equal(
        run(denoiser, name, 5, normal(0), Origin(normal(1), 1.0))[-1].x, run(denoiser, name, 5, normal(0), None)[-1].x
    )


@pytest.mark.parametrize(
    ("strength", "rule"),
    [(0.0, "above 0"), (1.2, "above 0"), (0.05, r"the cleanest of 9 steps starts at 0.111; give a higher strength")],
)
def test_strengths_that_leave_nothing_are_refused(strength: float, rule: str, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=rule) as caught:
        run(told(Flow(), []), "flow-euler", 9, normal(0), Origin(normal(1), strength))
    assert f"strength is {strength:g}" in one_line(caught.value)


# ---- systems ---------------------------------------------------------------------------------------------------------


PIXELS = IdentityCodec()


def system(codec: CodecConfig = PIXELS, **how: object) -> System:
    channels, size = {"identity": (1, 8), "space-to-depth": (4, 4), "vae": (2, 4)}[codec.kind]
    overrides = TINY | {"in_channels": channels, "input_size": size, "learn_sigma": False}
    network = perturb(udit.build("U-DiT-S", **overrides), 0.05).eval()
    sampling = SamplingConfig(sampler="flow-euler", steps=6, guidance=1.5).replace(**how)
    config = SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=sampling, codec=codec)
    return System(config, network)


def pictures(count: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8)


def drawn(system: System, images: Tensor, strength: float, batch_size: int = 64) -> Tensor:
    seeds, labels = range(len(images)), [i % 5 for i in range(len(images))]
    batches = system.generate(seeds, labels, from_image=images, strength=strength, batch_size=batch_size)
    return torch.cat(list(batches)).int()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "space-to-depth", "vae"])
def test_images_are_encoded_as_for_training_and_the_same_in_any_batch(kind: str, tmp_path: Path) -> None:
    codecs: dict[str, Callable[[], CodecConfig]] = {
        "identity": IdentityCodec,
        "space-to-depth": lambda: SpaceToDepthCodec(factor=2),
        "vae": lambda: complete(VAECodec(source=str(tiny_vae(tmp_path / "vae")))),
    }
    model = system(codecs[kind]())
    assert model.image_shape == (1, 8, 8)
    images = pictures()
    together = drawn(model, images, 0.5)
    alone = torch.cat([drawn(model, images, 0.5, batch_size=1)])
    assert (together - alone).abs().max() <= 1
    x0 = encode(model.codec, images)
    noise = SeededNoise(range(3), x0.shape[1:])
    guided = model.guided(model.config.sampling)
    *_, step = sample(
        guided, noise(0), sampler="flow-euler", steps=6, y=torch.tensor([0, 1, 2]), origin=Origin(x0, 0.5)
    )
    assert (model.codec.decode(step.x).int() - together).abs().max() <= 1


def test_less_strength_stays_closer_to_the_image() -> None:
    model, images = system(), pictures()
    far = [float((drawn(model, images, strength) - images.int()).abs().float().mean()) for strength in (0.2, 0.5, 1.0)]
    assert far[0] < far[1] < far[2]


def test_named_evaluations_are_counted_from_the_whole_run() -> None:
    """A step cache that was tuned for whole runs recomputes the same evaluations of a part of one."""
    model, deep = system(), []
    network = model.backbone
    inner = network.deep

    def counted(x: Tensor, cond: object) -> Tensor:
        deep.append(len(x))
        return inner(x, cond)

    network.deep = counted  # type: ignore[assignment]
    x, x0 = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    policy = StepCache(refresh=(0, 4, 5))
    options = {"sampler": "flow-euler", "steps": 6, "y": torch.tensor([1])}
    list(sample(model.denoiser, x, cache=policy, origin=Origin(x0, 0.7), **options))  # evaluations 2 to 5
    assert len(deep) == 3, "the first, which has nothing kept, and those of numbers 4 and 5"


def test_images_of_another_shape_are_refused_with_their_size(one_line: OneLine) -> None:
    for images, rule in (
        (pictures(2, 12), "1 channels of 12x12 pixels and the model draws 1 channels of 8x8"),
        (pictures(3)[:2].float(), r"from_image is float32 \[2, 1, 8, 8\]"),
        (pictures(3), r"uint8 \[3, 1, 8, 8\] for 2 seeds"),
    ):
        with pytest.raises(UserError, match=rule) as caught:
            system().generate([0, 1], [1, 2], from_image=images)
        one_line(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide picture in colour, and a tall grey one in a folder below."""
    root = tmp_path / "mine"
    (root / "more").mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(root / "wide.png")
    Image.fromarray(values[:, :11, 0]).save(root / "more" / "tall.png")
    return root


def test_files_are_cropped_to_the_centre_as_for_training(folder: Path) -> None:
    found = start_images(folder, system())
    assert found.names == ["more/tall.png", "wide.png"]
    for pixels, name in zip(found.pixels, found.names, strict=True):
        assert np.array_equal(pixels.numpy(), decode(folder / name, 8, 1))
    alone = start_images(folder / "wide.png", system())
    assert torch.equal(alone.pixels, found.pixels[1:])
    assert alone.names == ["wide.png"]


def test_images_of_another_size_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "udit")
    start_images(folder / "wide.png", system())
    start_images(folder, system())
    Image.new("L", (8, 8)).save(folder / "square.png")
    start_images(folder / "square.png", system())
    one, several = caplog.messages
    assert one.startswith("'wide.png' with 40x20 pixels: the model draws 8x8, ")
    assert several.startswith("2 of 2 images, e.g. 'more/tall.png' with 11x20 pixels: ")


def test_each_image_of_a_folder_is_started_from_in_turn(folder: Path, tmp_path: Path) -> None:
    model = system()
    assert len(udit.generate(model, from_image=folder)) == 2
    assert len(udit.generate(model, from_image=folder / "wide.png")) == 16
    images = udit.generate(model, range(3), from_image=folder, strength=0.4, batch_size=2)
    images.save_pngs(tmp_path / "out")
    settings = [read_settings(tmp_path / "out" / f"00000{i}.png") for i in range(3)]
    assert [one["from_image"] for one in settings if one] == ["more/tall.png", "wide.png", "more/tall.png"]
    assert [one["strength"] for one in settings if one] == [0.4] * 3
    again = udit.generate(model, from_image=tmp_path / "out")
    assert len(again) == 3, "without the grid"


def test_command_starts_from_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    udit.save(system(), tmp_path / "model")
    words = [
        "sample",
        str(tmp_path / "model"),
        "--from-image",
        str(folder / "wide.png"),
        "--strength",
        "0.4",
        "--n",
        "2",
    ]
    succeeds(capsys, *words, "--labels", "3", "--out", str(tmp_path / "out"), "--no-progress")
    pixels = torch.from_numpy(decode(folder / "wide.png", 8, 1))[None].repeat(2, 1, 1, 1)
    wanted = next(system().generate([0, 1], [3, 3], from_image=pixels, strength=0.4)).int()
    found = torch.stack([read_pixels(tmp_path / "out" / f"00000{i}.png") for i in (0, 1)]).int()
    assert (found - wanted).abs().max() <= 1


def test_what_cannot_be_started_from_is_one_line(folder: Path, tmp_path: Path, one_line: OneLine) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    model = system()
    for source, rule in (
        (tmp_path / "empty", "holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC to start from"),
        (tmp_path / "text.png", r"text.png' cannot be read \(not a PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC\)"),
        (tmp_path / "absent.png", "absent.png' is not there; check the path"),
    ):
        with pytest.raises(UserError, match=rule) as caught:
            udit.generate(model, from_image=source)
        one_line(caught.value)
    with pytest.raises(UserError, match=r"strength is 0.5 and there is no image to start") as caught:
        udit.generate(model, strength=0.5)
    one_line(caught.value)
    with pytest.raises(UserError, match="strength is 0; it is a fraction") as caught:
        udit.generate(model, from_image=folder, strength=0.0).images()
    one_line(caught.value)
    two = perturb(udit.build("U-DiT-S", **TINY | {"learn_sigma": False}), 0.05)
    other = System(SystemConfig(model=two.config, diffusion=DDPMConfig()), two)
    with pytest.raises(UserError, match="draws 8x8 images of 2 channels and files become squares of 1 or 3") as caught:
        udit.generate(other, from_image=folder)
    one_line(caught.value)
