"""Features come from torch-fidelity's own networks, and every number is torch-fidelity's own on the same features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from udit.convert.states import read_published
from udit.errors import UserError
from udit.evaluation import metrics
from udit.evaluation.fidelity import Features, Fidelity, InceptionScore, fold_norms, kernel_distance
from udit.evaluation.frechet import Statistics, distance

pytest.importorskip("torch_fidelity")


def random_inception() -> dict[str, Tensor]:
    """Weights of torch-fidelity's Inception, drawn at random: the published file cannot be had offline."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with mock.patch("torch.load", return_value={}), mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    generator = torch.Generator().manual_seed(0)
    return {
        name: value
        if "running" in name or "num_batches" in name
        else torch.randn(value.shape, generator=generator) * (2 / max(1, value[0].numel())) ** 0.5
        if value.ndim > 1
        else value
        for name, value in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights_file: Path) -> Fidelity:
    return Fidelity("inception", read_published(weights_file).taken.tensors)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 24, 24), np.uint8)


@pytest.fixture(scope="module")
def seen(inception: Fidelity, images: np.ndarray) -> Features:
    return inception(images)


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    found = InceptionScore(len(logits))
    found.add(logits)
    return found.value()


def pair(n: int = 400, m: int = 300, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(1)
    return g.standard_normal((n, width)) + 0.3, g.standard_normal((m, width)) * 1.2


def theirs(weights_file: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    honest = torch.load(weights_file, weights_only=True)
    with mock.patch("torch.load", return_value=honest):
        return FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(weights_file),
        )


@pytest.mark.slow
def test_inception_sees_what_torch_fidelity_sees(
    weights_file: Path, inception: Fidelity, images: np.ndarray, seen: Features
) -> None:
    """With norms in convolutions it is the same function in float64, and as near to that in float32 as theirs is."""
    pixels = torch.from_numpy(images)
    exact = theirs(weights_file).double()
    exact.feature_extractor_internal_dtype = torch.float64  # which 0.4.0 makes float32 of the word "float64"
    pool, logits = exact(pixels)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in inception.module.modules())
    for ours, wanted in zip(fold_norms(copy.deepcopy(exact))(pixels), (pool, logits), strict=True):
        assert ours.double().numpy().reshape(wanted.shape) == pytest.approx(wanted.double().numpy(), rel=1e-6)
    assert seen.logits is not None
    rounded = theirs(weights_file)(pixels)
    for ours, single, wanted in zip((seen.pool, seen.logits), rounded, (pool, logits), strict=True):
        error = np.abs(single.double().numpy() - wanted.double().numpy()).max()
        assert np.abs(ours - wanted.double().numpy()).max() <= 4 * max(error, float(np.spacing(np.float32(ours.max()))))
    assert seen.pool.shape == (3, 2048)
    assert seen.pool.std(0).max() > 0


@pytest.mark.slow
def test_spatial_features_are_seven_channels_of_mixed_6_at_289_places(
    inception: Fidelity, images: np.ndarray, seen: Features
) -> None:
    maps: list[Tensor] = []
    hook = inception.module.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: maps.append(out))
    inception(images[:1])
    hook.remove()
    assert seen.spatial is not None
    assert seen.spatial.shape == (3, 2023)
    rows = maps[0][0, :7].permute(1, 2, 0)  # [17, 17, 7]: TensorFlow's order, which mu_s and sigma_s of ADM are in
    assert seen.spatial[0] == pytest.approx(rows.flatten().double().numpy(), rel=1e-4, abs=1e-6)


def test_features_do_not_depend_on_the_batch(inception: Fidelity, images: np.ndarray, seen: Features) -> None:
    again = inception(images[1:], batch_size=1)
    assert again.pool == pytest.approx(seen.pool[1:], rel=1e-4, abs=1e-6)


def test_grey_images_are_three_equal_channels(inception: Fidelity, images: np.ndarray) -> None:
    grey = images[:1, :1]
    assert np.array_equal(inception(grey).pool, inception(grey.repeat(3, axis=1)).pool)


def test_clip_of_a_weight_file_sees_images(images: np.ndarray) -> None:
    """A CLIP of OpenAI's key names with two narrow blocks."""
    generator, width = torch.Generator().manual_seed(0), 64

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw(50, width),
        "visual.proj": draw(width, 16),
        "text_projection": draw(width, 16),
        "visual.conv1.weight": draw(width, 3, 32, 32),
    }
    norms = ["visual.ln_pre", "visual.ln_post"]
    for i in range(2):
        block = f"visual.transformer.resblocks.{i}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        layers = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in layers.items():
            state |= {f"{block}.{name}.weight": draw(*shape), f"{block}.{name}.bias": draw(shape[0])}
        state |= {f"{block}.attn.in_proj_weight": draw(3 * width, width), f"{block}.attn.in_proj_bias": draw(3 * width)}
    for norm in norms:
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    clip = Fidelity("clip", state)
    seen = clip(images)
    assert seen.pool.shape == (3, 16)
    assert seen.pool.std(0).min() > 0
    assert seen.logits is None
    assert seen.spatial is None
    assert "clip" in clip.name


def test_weights_are_named_by_their_hash(inception: Fidelity) -> None:
    assert len(inception.sha256) == 64
    assert "inception-v3-compat" in inception.name


def test_weights_of_something_else_are_refused(weights_file: Path) -> None:
    with pytest.raises(UserError, match="the weights do not fit"):
        Fidelity("inception", {"w": torch.zeros(3)})
    with pytest.raises(UserError, match=r"takes DINOv2 from torch\.hub alone"):
        Fidelity("dinov2", {"w": torch.zeros(3)})


def test_weight_file_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"w": Trap()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="beside tensors and is not opened"):
        read_published(tmp_path / "weights.pt")
    assert not (tmp_path / "sprung").exists()


def test_missing_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.registry", None)
    with pytest.raises(UserError, match=r"pip install 'udit\[metrics\]'"):
        Fidelity("inception", {})


# -- the numbers ---------------------------------------------------------------------------------------------------


def test_fid_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = pair()
    wanted = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), False)
    found = distance(Statistics.of(a), Statistics.of(b))
    assert found == pytest.approx(wanted["frechet_inception_distance"], abs=1e-6)


def test_inception_score_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32) * 3
    wanted = isc_features_to_metric(torch.from_numpy(logits))
    assert inception_score(logits.astype(np.float64)) == pytest.approx(tuple(wanted.values()), abs=1e-6)
    in_parts = InceptionScore(200)
    for part in np.array_split(logits.astype(np.float64), 7):
        in_parts.add(part)
    assert in_parts.value() == pytest.approx(inception_score(logits.astype(np.float64)), rel=1e-12)


def test_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    logits = 60.0 * np.eye(10)[np.random.default_rng(0).permutation(np.arange(5000) % 10)]
    assert inception_score(logits)[0] == pytest.approx(10, rel=0.02)
    assert inception_score(np.zeros((100, 10)))[0] == pytest.approx(1)


def test_kid_is_torch_fidelitys_and_zero_for_one_distribution() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = pair(90, 80)
    wanted = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=100, kid_subset_size=80, verbose=False
    )
    assert kernel_distance(samples=a, reference=b) == pytest.approx(tuple(wanted.values()), abs=1e-6)
    g = np.random.default_rng(0)
    same, deviation = kernel_distance(samples=g.standard_normal((200, 4)), reference=g.standard_normal((200, 4)))
    assert abs(same) < 0.2
    assert deviation < 0.2


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = pair()
    wanted = prc_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), prc_neighborhood=3, prc_batch_size=10000, verbose=False
    )
    found = metrics.precision_recall(samples=a, reference=b)
    assert found.precision == pytest.approx(wanted["precision"], abs=1e-6)
    assert found.recall == pytest.approx(wanted["recall"], abs=1e-6)
    assert found.precision != found.recall


def test_mode_collapse_costs_recall_and_noise_costs_precision() -> None:
    g = np.random.default_rng(0)
    reference = np.concatenate([g.standard_normal((300, 4)), g.standard_normal((300, 4)) + 20])
    collapsed = metrics.precision_recall(samples=g.standard_normal((300, 4)), reference=reference)
    assert collapsed.precision > 0.8
    assert collapsed.recall < 0.55  # the other half is never drawn
    noisy = np.concatenate([reference + 0.05 * g.standard_normal(reference.shape), 100 * g.standard_normal((600, 4))])
    scattered = metrics.precision_recall(samples=noisy, reference=reference)
    assert scattered.precision < 0.6
    assert scattered.recall > 0.8


def test_density_and_coverage_are_of_the_references_balls() -> None:
    """On a line: each of 0, 1, ..., 9 has its fifth neighbour at most 5 away, at least 3."""
    reference = np.arange(10.0)[:, None]
    found = metrics.precision_recall(samples=np.array([[4.6], [4.6], [4.6], [90.0]]), reference=reference)
    radii = np.array([sorted(abs(x - reference[:, 0]))[5] for x in reference[:, 0]])
    balls = int((abs(reference[:, 0] - 4.6) <= radii).sum())
    assert found.density == pytest.approx(3 * balls / (5 * 4))
    assert found.coverage == pytest.approx(balls / 10)
    g = np.random.default_rng(0)
    same = metrics.precision_recall(samples=g.standard_normal((500, 3)), reference=g.standard_normal((500, 3)))
    assert same.density == pytest.approx(1, abs=0.1)
    assert same.coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # of equal sets: (Naeem et al. 2020, Sec. 3.2)


def test_too_few_for_precision_are_refused() -> None:
    with pytest.raises(UserError, match="3 samples and 9 reference images need more than 3 of both"):
        metrics.precision_recall(samples=np.zeros((3, 2)), reference=np.zeros((9, 2)))


def test_precision_and_recall_cannot_be_swapped_by_order() -> None:
    a, b = pair()
    with pytest.raises(TypeError):
        metrics.precision_recall(a, b)  # type: ignore[misc]
    with pytest.raises(TypeError):
        kernel_distance(a, b)  # type: ignore[misc]
