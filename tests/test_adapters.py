"""Low-rank adapters: against peft's own computation, exact resuming, and what reads a run that has trained one.

peft comes with the extra ``adapters``; what needs it is slow.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import udit
from conftest import TINY, ErrorOf, perturb, succeeds
from peers import STEEP
from runs import finish, finished_at, launch, metrics, newest, small_run, state_hash, train
from test_optim import cut_and_resumed
from udit import adapters, ops
from udit.adapters import Adapter, chosen, layers, with_adapter
from udit.assemble import System
from udit.dist import World
from udit.errors import UserError
from udit.images import read_pixels
from udit.models.build import fuse
from udit.models.catalog import CATALOG
from udit.optim.groups import choices_of, matrices, trained
from udit.run.adapter_config import AdapterConfig
from udit.run.recipes import load_run
from udit.run.system import SystemConfig
from udit.training.learner import Learner

OneLine = Callable[[BaseException], str]
ADAPTER = "training.adapter={rank: 2, alpha: 4}"
ROWS = [name for name in CATALOG if name.endswith("-tiny")]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A model folder of the small run's network with other weights."""
    run = small_run(tmp_path / "unused")
    network = perturb(udit.build(run.model))
    return udit.save(System(SystemConfig.of(run), network), tmp_path / "origin")


def folders(out: Path) -> list[str]:
    return [f"init_from={out}", ADAPTER]


def largest(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


# ---- without peft ----------------------------------------------------------------------------------------------------


def test_frozen_weights_are_no_optimiser_s() -> None:
    model = udit.build("U-DiT-tiny")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attention.qkv" in name)
    names = {name for name, _ in model.named_parameters() if "attention.qkv" in name}
    assert set(trained(model)) == set(choices_of(model)) == names
    assert set(matrices(model)) == {name for name in names if name.endswith("weight")}


@pytest.mark.parametrize("rows", [1, 4096])
def test_layers_in_the_place_of_a_chain_of_two_are_called(rows: int) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    first, second, x = nn.Linear(6, 4), nn.Linear(4, 6), torch.randn(rows, 6)
    doubled = Doubled(6, 4)
    doubled.load_state_dict(first.state_dict())
    torch.testing.assert_close(ops.apply_chain(doubled, second, x), second(2 * first(x)))
    torch.testing.assert_close(ops.apply_chain(first, second, x), second(first(x)))


def test_targets_are_layers_that_are_called_and_a_wrong_one_names_the_nearest(one_line: OneLine) -> None:
    model = udit.build("U-DiT-tiny")
    assert all(part.groups == 1 for part in layers(model).values() if isinstance(part, nn.Conv2d))
    assert chosen(model, ("*.attention.qkv", "stem")) == [
        name for name in layers(model) if name == "stem" or name.endswith("attention.qkv")
    ]
    with pytest.raises(UserError, match=r"training\.adapter\.targets: no layer is called 'sten'.*'stem'") as error:
        chosen(model, ("sten",))
    one_line(error.value)


@pytest.mark.slow
def test_rank_that_no_weight_has_is_one_line(one_line: OneLine) -> None:
    model = udit.build("U-DiT-tiny")
    stem = cast(nn.Conv2d, layers(model)["stem"])
    most = min(stem.weight.flatten(1).shape)
    Adapter(model, AdapterConfig(rank=most, targets=("stem",)), 0)
    with pytest.raises(UserError, match=rf"rank is {most + 1} and no adapted weight has a rank above {most}") as error:
        Adapter(udit.build("U-DiT-tiny"), AdapterConfig(rank=most + 1, targets=("stem",)), 0)
    one_line(error.value)


@pytest.mark.slow
def test_adapter_of_no_weights_is_refused_by_a_dry_run_too(tmp_path: Path, error_of: ErrorOf) -> None:
    words = ["training.adapter={}", f"out={tmp_path / 'x'}"]
    for dry in ([], ["--dry-run"]):
        assert "say which, e.g. init_from=demo:digits" in error_of("train", "digits", *words, *dry)


def test_adapter_without_peft_or_with_posthoc_averages_is_one_line(
    monkeypatch: pytest.MonkeyPatch, origin: Path, tmp_path: Path, one_line: OneLine
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    with pytest.raises(UserError, match=r"training\.posthoc_ema averages all weights") as error:
        small_run(tmp_path / "a", *folders(origin), "training.posthoc_ema={}")
    one_line(error.value)
    monkeypatch.setattr(adapters, "importlib", SimpleNamespace(import_module=absent))
    with pytest.raises(UserError) as error:
        train(tmp_path / "b", *folders(origin))
    assert "pip install 'udit[adapters]'" in one_line(error.value)


def test_folder_that_holds_no_adapter_is_one_line(origin: Path, tmp_path: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"holds no adapter_config\.json; give the folder of an adapter") as error:
        udit.load(origin, adapter=tmp_path)
    one_line(error.value)


# ---- with peft -------------------------------------------------------------------------------------------------------


def adapted(name: str, folder: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A network all of whose layers are adapted, the adapter merged by us, and by peft from its folder."""
    plain = perturb(udit.build(name), STEEP.get(name, 0.1))
    trained, again = udit.build(name), udit.build(name)
    for each in (trained, again):
        each.load_state_dict(plain.state_dict())
    adapter = Adapter(trained, AdapterConfig(rank=2, alpha=4, targets=("*",)), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapter.parameters.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    adapter.save(folder, adapter.parameters, "here")
    trained.double()
    return trained.eval(), adapter.plain(), with_adapter(again, folder).double()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_network_calls_every_layer_that_can_be_adapted(name: str, tmp_path: Path) -> None:
    """In float64, so that a layer whose adapter is passed by would show."""
    unmerged, merged, by_peft = adapted(name, tmp_path)
    config = unmerged.config  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *config.input_shape(), generator=generator).double()
    t = torch.full((2,), {"index": 300.0, "unit": 0.5, "sigma": 1.0}[config.time]).double()
    shape = config.condition_shape
    y = torch.randn(2, *shape, generator=generator).double() if shape else torch.tensor([1, 2])
    out = unmerged(x, t, y)
    with torch.no_grad():
        assert largest(merged(x, t, y), out) < 1e-9
        assert largest(by_peft(x, t, y), out) < 1e-4  # merged in float32, before it became double
    out.square().mean().backward()
    unused = [n for n, p in unmerged.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    apart = ("projectors", "blocks.3.text.heads.q")  # REPA's are of its loss; nothing reads MMDiT's last text queries
    assert not [name for name in unused if not any(part in name for part in apart)]


@pytest.mark.slow
def test_first_weights_change_nothing_and_depend_on_seed_and_name_alone() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(len(made))
        model = perturb(udit.build("U-DiT-S", **TINY))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        made.append(Adapter(model, AdapterConfig(), seed=5))
        assert torch.equal(torch.get_rng_state(), state)
        assert made[-1].merged(made[-1].parameters).keys() == before.keys()
        for name, value in made[-1].merged(made[-1].parameters).items():
            assert torch.equal(value, before[name])
    for name, value in made[0].parameters.items():
        assert torch.equal(value, made[1].parameters[name])
        assert bool(value.any()) == (".lora_A." in name)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedule-free"])
def test_run_with_an_adapter_resumes_to_the_bit(origin: Path, tmp_path: Path, optimizer: str) -> None:
    cut_and_resumed(tmp_path, [*folders(origin), f"training.optimizer={optimizer}"])
    files = [load_file(newest(tmp_path / out) / "adapter.safetensors") for out in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_run_with_an_adapter_goes_on_without_its_origin(origin: Path, tmp_path: Path) -> None:
    small = ["model.depths=[1]", "training.save_every=5", "training.steps=60", *folders(origin)]
    [(code, errors)] = finish(launch(tmp_path / "whole", *small))
    assert code == 0, errors
    [process] = launch(tmp_path / "cut", *small)
    while not list((tmp_path / "cut").glob("checkpoints/step-????????/manifest.json")):
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    origin.rename(origin.with_name("gone"))
    [(code, errors)] = finish(launch(tmp_path / "cut", *small))
    assert code == 0, errors
    assert "resuming from step" in errors
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")


@pytest.mark.slow
def test_run_with_an_adapter_samples_scores_exports_and_forks(origin: Path, tmp_path: Path) -> None:
    out, seeds, labels = tmp_path / "out", range(6), [0, 1, 2, 3, 4, 5]
    assert train(out, "training.steps=6", "training.lr=0.1", *folders(origin)) == finished_at(out, 6)
    assert all("loss" in line for line in metrics(out))
    run, model = udit.load(out), udit.load(out / "model")
    assert run.fingerprint == model.fingerprint != udit.load(origin).fingerprint
    assert list(run.backbone.state_dict()) == list(udit.load(origin).backbone.state_dict())

    unmerged = udit.load(origin, adapter=out / "adapter", merge=False)
    merged = udit.load(origin, adapter=out / "adapter")
    first = next(iter(run.generate(seeds, labels)))
    for system in (unmerged, merged, model.fused(), unmerged.fused()):
        image = next(iter(system.generate(seeds, labels)))
        assert int((image.int() - first.int()).abs().max()) <= 1  # equal to rounding: one grey level at most
    assert not torch.equal(first, next(iter(udit.load(origin).generate(seeds, labels))))
    x, t, y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([9.0, 500.0]), None
    with torch.no_grad():
        assert largest(unmerged.backbone(x, t, y), merged.backbone(x, t, y)) < 1e-5
        assert largest(fuse(merged.backbone)(x, t, y), merged.backbone(x, t, y)) < 1e-5

    from peft import PeftModel

    by_peft = PeftModel.from_pretrained(udit.load(origin).backbone, str(out / "adapter")).merge_and_unload()
    with torch.no_grad():
        assert largest(by_peft.eval()(x, t, y), merged.backbone(x, t, y)) < 1e-5

    udit.export(out, "diffusers", tmp_path / "exported")
    assert udit.load(tmp_path / "exported").num_parameters == model.fused().num_parameters
    udit.fork(out, tmp_path / "fork", ["training.steps=8"])
    assert udit.train(load_run(str(tmp_path / "fork" / "run.yaml")), progress=False).step == 8
    report = udit.evaluate(out, num_samples=20)
    assert report


@pytest.mark.slow
def test_an_adapter_is_applied_when_sampling(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    """The images are those of the run that trained it; a run that has it already is refused, as is what is loaded."""
    out = tmp_path / "run"
    train(out, "training.lr=0.1", *folders(origin))
    words = ("--n", "2", "--labels", "3", "--no-progress", "--out")
    adapter = ("--adapter", str(out / "adapter"))
    succeeds(capsys, "sample", str(origin), *adapter, *words, str(tmp_path / "a"))
    succeeds(capsys, "sample", str(out), *words, str(tmp_path / "b"))
    for name in ("000000.png", "000001.png"):
        a, b = (read_pixels(tmp_path / folder / name).int() for folder in "ab")
        assert int((a - b).abs().max()) <= 1
    for model in (out, newest(out)):
        told = error_of("sample", str(model), *adapter, *words, str(tmp_path / "c"))
        assert "whose weights have it already; leave it out" in told
    with pytest.raises(UserError, match=r"udit\.load takes the adapter"):
        udit.generate(udit.load(origin), [0], adapter=out / "adapter")


@pytest.mark.slow
def test_adapter_that_would_leave_weights_untrained_is_refused(origin: Path, tmp_path: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"training\.adapter leaves all other weights as they are") as error:
        train(tmp_path / "a", *folders(origin), "num_classes=12")
    one_line(error.value)
    with pytest.raises(UserError, match=r"training\.adapter changes trained weights by little; say which") as error:
        train(tmp_path / "b", ADAPTER)
    one_line(error.value)


@pytest.mark.slow
def test_adapter_of_another_model_is_refused(origin: Path, tmp_path: Path, one_line: OneLine) -> None:
    model = udit.build("U-DiT-S", **TINY)
    adapter = Adapter(model, AdapterConfig(), seed=0)
    adapter.save(tmp_path / "other", adapter.parameters, "another")
    with pytest.raises(UserError, match=r"does not fit the model|lacks weights") as error:
        udit.load(origin, adapter=tmp_path / "other")
    one_line(error.value)


@pytest.mark.slow
def test_learner_counts_what_it_will_write(origin: Path, tmp_path: Path) -> None:
    learner = Learner(small_run(tmp_path, *folders(origin)), World())
    assert learner.adapter is not None
    assert set(learner.optimizer.named) == set(trained(learner.model))
    assert len(learner.optimizer.named) == len(learner.adapter.parameters)
    assert sum(p.numel() for p in trained(learner.model).values()) < 0.3 * sum(
        value.numel() for value in learner.adapter.frozen().values()
    )
