"""Guidance wraps a denoiser: u + w (c - u), where and when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import batch, perturb
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided, guide
from udit.diffusion.sample import sample
from udit.errors import UserError

SCHEDULE = DDPM.linear(1000)


class Counting:
    """A backbone whose prediction is its label plus the channel, and whose variance is ten times that."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        label = torch.full((len(x),), 9.0) if y is None else y.to(x.dtype)
        prediction = label.view(-1, 1, 1, 1) + 0.1 * torch.arange(4.0).view(1, 4, 1, 1) + 0 * x
        return torch.cat([prediction, 10 * prediction], dim=1)


def guided(backbone: Counting | nn.Module | None = None, guidance: float = 3.0, **options: object) -> Guided:
    denoiser = Denoiser(backbone or Counting(), SCHEDULE, learn_sigma=True, null_label=9, num_classes=9)
    return Guided(denoiser, guidance, **options)  # type: ignore[arg-type]


X, T, Y = torch.zeros(2, 4, 2, 2), torch.tensor([100, 900]), torch.tensor([1, 4])


def test_guided_output_leaves_the_null_towards_the_label() -> None:
    eps = guided()(X, T, Y).eps
    for i, label in enumerate((1, 4)):
        expected = 9 + 3 * (label - 9) + 0.1 * torch.arange(4.0)
        torch.testing.assert_close(eps[i, :, 0, 0], expected)


def test_only_the_first_channels_are_guided_when_asked() -> None:
    """The published DiT and U-DiT protocol guides three of four."""
    eps = guided(channels=3)(X, T, Y).eps
    torch.testing.assert_close(eps[0, :, 0, 0], torch.tensor([9 - 24.0, 9 - 24 + 0.1, 9 - 24 + 0.2, 1.3]))


def test_variance_is_the_conditional_one() -> None:
    variance = guided()(X, T, Y).variance
    torch.testing.assert_close(variance[:, 0, 0, 0], torch.tensor([10.0, 40.0]))


def test_guided_x0_and_eps_belong_together() -> None:
    x = torch.randn(2, 4, 2, 2)
    prediction = guided()(x, T, Y)
    alpha, sigma = SCHEDULE.alpha_sigma(T, x)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x, atol=1e-5, rtol=1e-5)


def test_one_is_no_guidance_and_costs_one_pass() -> None:
    backbone = Counting()
    prediction = guided(backbone, guidance=1.0)(X, T, Y)
    assert backbone.batches == [2]
    assert torch.equal(prediction.eps, guided().denoiser(X, T, Y).eps)


def test_zero_is_the_null_class() -> None:
    torch.testing.assert_close(guided(guidance=0.0)(X, T, Y).eps, guided().denoiser(X, T, None).eps)


def test_no_labels_need_no_guidance() -> None:
    backbone = Counting()
    assert torch.equal(guided(backbone)(X, T, None).eps, guided().denoiser(X, T, None).eps)
    assert backbone.batches == [2]


def test_guidance_acts_within_its_interval_ends_included() -> None:
    times = torch.tensor([0, 333, 666, 999])
    x, y = torch.zeros(4, 4, 2, 2), torch.tensor([1, 1, 1, 1])
    for interval, acting in (
        ((0.0, 1.0), [True, True, True, True]),
        ((333 / 999, 666 / 999), [False, True, True, False]),
        ((0.5, 1.0), [False, False, True, True]),
        ((0.0, 0.0), [True, False, False, False]),
    ):
        eps = guided(interval=interval)(x, times, y).eps[:, 0, 0, 0]
        assert eps.tolist() == pytest.approx([-15.0 if act else 1.0 for act in acting]), interval


def test_outside_the_interval_costs_one_pass() -> None:
    backbone = Counting()
    wrapped = guided(backbone, interval=(0.5, 0.8))
    wrapped(X, torch.tensor([100, 400]), Y)
    wrapped(X, torch.tensor([600, 700]), Y)
    assert backbone.batches == [2, 4]


def test_interval_counts_training_time_under_respacing() -> None:
    wrapped = guided(interval=(0.5, 1.0)).respaced(10)
    eps = wrapped(torch.zeros(2, 4, 2, 2), torch.tensor([4, 5]), torch.tensor([1, 1])).eps[:, 0, 0, 0]
    assert eps.tolist() == pytest.approx([1.0, -15.0])  # steps 444 and 555 of 999


def test_interval_counts_the_flow_path_too() -> None:
    denoiser = Denoiser(lambda x, t, y: y.view(-1, 1, 1, 1) + 0 * x, Flow(), "flow", null_label=9, num_classes=9)
    wrapped = Guided(denoiser, 3.0, interval=(0.25, 0.75))
    x, t = torch.zeros(3, 1, 2, 2), torch.tensor([0.2, 0.25, 0.8])
    prediction = wrapped(x, t, torch.tensor([1, 1, 1]))
    assert (prediction.eps - prediction.x0)[:, 0, 0, 0].tolist() == pytest.approx([1, -15, 1])


def test_guide_mixes_as_written() -> None:
    c, u = torch.randn(2, 2, 5, 3, 3)
    torch.testing.assert_close(guide(c, u, 4.0), u + 4 * (c - u))
    assert torch.equal(guide(c, u, 4.0, channels=2)[:, 2:], c[:, 2:])
    assert torch.equal(guide(c, u, 4.0, channels=2)[:, :2], guide(c, u, 4.0)[:, :2])


def test_network_is_guided_by_its_own_null_label(tiny: nn.Module) -> None:
    x, t, y = batch(tiny)
    denoiser = Denoiser(tiny, SCHEDULE, learn_sigma=True, null_label=5, num_classes=5)
    with torch.no_grad():
        cond, null = (denoiser(x, t, labels).eps for labels in (y, None))
        torch.testing.assert_close(Guided(denoiser, 2.5)(x, t, y).eps, null + 2.5 * (cond - null), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_model_without_a_null_label_cannot_be_guided(guidance: float, one_line: Callable) -> None:
    with pytest.raises(UserError, match="needs a null label") as caught:
        Guided(Denoiser(Counting(), SCHEDULE), guidance)
    assert f"guidance {guidance:g}" in one_line(caught.value)


# ---- a condition of vectors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["U-ViT-tiny", "U-DiT-tiny"])
@torch.no_grad()
def test_text_model_is_guided_by_the_null_condition_it_is_handed(name: str) -> None:
    """The text encoder's output for the empty text."""
    network = perturb(udit.build(name, num_classes=0, context={"tokens": 3, "width": 6}, learn_sigma=False))
    denoiser = Denoiser(network, SCHEDULE)
    x, t, _ = batch(network)
    text, empty = torch.randn(3, 3, 6), torch.randn(3, 6)
    cond, null = denoiser(x, t, text).eps, denoiser(x, t, empty.expand(3, 3, 6)).eps
    assert not torch.allclose(cond, null, atol=1e-3)
    wrapped = Guided(denoiser, 2.5, null=empty)
    torch.testing.assert_close(wrapped(x, t, text).eps, null + 2.5 * (cond - null), atol=1e-4, rtol=1e-4)
    *_, step = sample(wrapped, x, sampler="ddim", steps=2, y=text)
    assert step.x.isfinite().all()


def test_null_conditions_that_do_not_fit_are_refused(one_line: Callable) -> None:
    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x

    text = Denoiser(backbone, SCHEDULE)
    with pytest.raises(
        UserError, match=r"the null condition is \[2, 6\] and an image's is \[3, 6\]; the shapes must match"
    ) as caught:
        Guided(text, 2.0, null=torch.zeros(2, 6))(X, T, torch.zeros(2, 3, 6))
    one_line(caught.value)
    with pytest.raises(UserError, match="has a null label and was handed a null condition too") as caught:
        guided(null=torch.zeros(3, 6))
    one_line(caught.value)
    with pytest.raises(UserError, match="needs a null label") as caught:
        Guided(text, 2.0)
    one_line(caught.value)
