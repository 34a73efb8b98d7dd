"""MPDiT: numbers of the official program, levels, embeddings of time and label, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.mpdit.network import FREQUENCIES, POINTS, SpectralLayer
from udit.parity import check_file
from udit.parity.network import systems

TINY = {"width": 16, "heads": 2, "depths": (1, 1), "label_tokens": 3, "in_channels": 2, "num_classes": 5}
TINY |= {"input_size": 8}
WORDS = {"width": 16, "heads": 2, "depths": [1, 1], "patches": [4, 2], "label_tokens": 3, "time_embedding": "fno"}
WORDS |= {"skips": True, "input_size": 8, "in_channels": 2, "classes": 5, "null_label": 5, "learn_sigma": False}
WORDS |= {"time": "unit", "noise_at": 1}


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "mpdit.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "loss", "lossB", "grad_norms", "grad_normsB", "skipped_keys", "no_grad_params"} <= compared


def test_its_weights_are_those_of_a_flow_that_ends_at_noise() -> None:
    config = find("MPDiT-XL").config
    assert config.native_diffusion == {"kind": "flow"}
    assert not config.reversed_flow
    assert config.out_channels == config.in_channels == 4


@pytest.mark.parametrize("time_embedding", ["fno", "mlp"])
def test_initial_output_is_zero(time_embedding: str) -> None:
    model = udit.build("MPDiT-B", **TINY, time_embedding=time_embedding)
    assert not model(*batch(model)).any()
    assert model.label.weight.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_a_label_is_tokens_and_modulates_nothing() -> None:
    model = perturb(udit.build("MPDiT-B", **TINY))
    x, _, y = batch(model)
    t = torch.tensor([0.1, 0.5, 0.9])
    cond, other = model.condition(t, y), model.condition(t, (y + 1) % 5)
    assert cond.labels.shape == (3, 3, 16)
    assert not torch.equal(cond.labels, other.labels)
    assert all(
        torch.equal(a, b) for one, two in zip(cond.mods, other.mods, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))
    assert not torch.equal(model(x, t), model(x, t, y))


@torch.no_grad()
@pytest.mark.parametrize("time_embedding", ["fno", "mlp"])
@pytest.mark.parametrize("depths", [(2, 1), (1, 2, 1)], ids=str)
def test_two_and_three_levels_go_out_and_in_under_the_releases_keys(
    depths: tuple[int, ...], time_embedding: str
) -> None:
    overrides = {**TINY, "depths": depths, "time_embedding": time_embedding, "input_size": 16}
    model = perturb(udit.build("MPDiT-B", **overrides))
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))
    assert again(*batch(again)).shape == (3, 2, 16, 16)


@torch.no_grad()
def test_four_levels_are_ours(one_line: Callable[[BaseException], str]) -> None:
    model = perturb(udit.build("MPDiT-B", **{**TINY, "depths": (1, 1, 1, 1), "patch": 1}))
    assert model.config.patches == (8, 4, 2, 1)
    assert model(*batch(model)).shape == (3, 2, 8, 8)
    with pytest.raises(UserError, match="this one is ours") as caught:
        udit.export_published(model)
    one_line(caught.value)


@torch.no_grad()
def test_a_rectangle_is_no_square_of_as_many_patches() -> None:
    model = perturb(udit.build("MPDiT-B", **TINY))
    _, t, y = batch(model)
    x = torch.randn(3, 2, 4, 16, generator=torch.Generator().manual_seed(2))
    out = model(x, t, y)
    assert out.shape == x.shape
    assert not torch.allclose(out, model(x.reshape(3, 2, 8, 8), t, y).reshape(x.shape), atol=1e-3)


def transformed(layer: SpectralLayer, x: Tensor) -> Tensor:
    """The layer's definition, by fast Fourier transforms."""
    modes = torch.fft.rfft(x, dim=1)
    kept = torch.einsum("bki,iok->bko", modes[:, :FREQUENCIES], torch.complex(layer.real, layer.imag))
    modes = torch.cat([kept, torch.zeros_like(modes[:, FREQUENCIES:])], dim=1)
    return torch.fft.irfft(modes, n=POINTS, dim=1) + layer.mix(x)


@torch.no_grad()
def test_a_spectral_layer_is_a_product_with_each_frequency() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = SpectralLayer().double()
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, POINTS, 32, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), transformed(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"heads": 3}, "does not split over 3 heads"),
        ({"depths": (2,)}, "depths"),
        ({"input_size": 10}, "4x4 patches; H and W must be multiples of 4"),
        ({"time_embedding": "sine"}, "time_embedding"),
        ({"depth": 2}, "did you mean 'depths'"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("MPDiT-B", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_words_of_a_reference_file() -> None:
    config = systems()["mpdit"](dict(WORDS), (8, 8)).config
    assert (config.patches, config.label_tokens, config.time_embedding) == ((4, 2), 3, "fno")
    three = {"depths": [1, 1, 1], "patches": [8, 4, 2], "time_embedding": "mlp"}
    assert systems()["mpdit"](WORDS | three, (8, 8)).config.patches == (8, 4, 2)


@pytest.mark.parametrize(
    ("changes", "words"), [({"skips": False}, "the file's has none"), ({"patches": [8, 2]}, "halves the patches' side")]
)
def test_what_is_not_built_is_a_one_line_error(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        systems()["mpdit"](WORDS | changes, (8, 8))
    one_line(caught.value)
