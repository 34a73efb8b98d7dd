"""The contract of backbones, run on every row of the catalogue.

A family's tiny row (``NAME-tiny``) runs; every row is built at full size on the meta device, and counted.
"""

from __future__ import annotations

import copy
import functools
import json
import re

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import perturb, quick, same_bits, snapshot
from peers import KEY_LISTS, STEEP, assert_bijection, key_list, learns
from udit.analysis import Cost, cost, recorded
from udit.diffusion.cache import StepCache
from udit.diffusion.conditions import gather
from udit.models.build import checkpoint_activations, compile_blocks
from udit.models.catalog import CATALOG, families
from udit.models.config import ModelConfig
from udit.run.config import model_from

TINY = [name for name in CATALOG if name.endswith("-tiny")]
FULL = [name for name in CATALOG if name not in TINY]
TIMES = {"index": [3, 500, 999], "unit": [0.003, 0.5, 0.999], "sigma": [0.1, 1.0, 20.0]}

APART = {"REPA-tiny": "projectors.", "MMDiT-tiny": "blocks.3.text.heads.q"}
"""Parameters on which the output does not depend: REPA's are of other outputs, which the family's file tests; the
queries of MMDiT's text in its last block are of a stream that ends there."""

Inputs = tuple[Tensor, Tensor, Tensor | None]


@pytest.fixture(params=quick(TINY, ("U-DiT-tiny", "DiT-tiny", "HDiT-tiny", "MMDiT-tiny")))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return perturb(udit.build(request.param), STEEP.get(request.param, 0.1))


def inputs(config: ModelConfig, size: tuple[int, int] | None = None) -> Inputs:
    """Three of x, t and y as the config says."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *config.input_shape(size), generator=generator)
    shape, y = config.condition_shape, None
    if shape is not None:
        last = config.num_classes - 1
        y = torch.randn(3, *shape, generator=generator) if shape else torch.tensor([0, last, last // 2])
    return x, torch.tensor(TIMES[config.time]), y


def rows(given: Inputs, which: slice) -> Inputs:
    x, t, y = given
    return x[which], t[which], None if y is None else y[which]


def assert_near(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# ---- tiny rows -------------------------------------------------------------------------------------------------------


def test_every_family_has_a_tiny_row() -> None:
    assert {CATALOG[name].config.family for name in TINY} == set(families())
    for name, config in families().items():
        assert config().family == name


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_a_network_on_the_meta_device_takes_all_it_needs_by_assignment(name: str) -> None:
    """Parameters and buffers are in the state; tables are computed when they are used."""
    model = perturb(udit.build(name)).eval()
    with torch.device("meta"):
        empty = udit.build(name).eval()
    assert all(x.is_meta for x in [*empty.parameters(), *empty.buffers()])
    empty.load_state_dict(model.state_dict(), assign=True)
    given = inputs(model.config)
    assert torch.equal(empty(*given), model(*given))


@pytest.mark.parametrize("name", TINY)
def test_training_lowers_the_loss_through_every_parameter(name: str) -> None:
    model = udit.build(name)
    _, t, y = inputs(model.config)
    before, after = learns(model, y, t, steps=6, apart=APART.get(name))
    assert after < before


@torch.no_grad()
def test_modes_and_fusing_leave_weights_alone_and_outputs_the_same(model: nn.Module) -> None:
    given = inputs(model.config)
    before, out = snapshot(model), model.train()(*given)
    assert out.shape == (3, model.config.out_channels, *given[0].shape[2:])
    assert torch.equal(model.eval()(*given), out)
    fused = udit.fuse(model)
    assert_near(fused(*given), out)
    assert torch.equal(udit.fuse(fused)(*given), fused(*given))
    assert same_bits(before, snapshot(model))
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in model.parameters()}


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model: nn.Module) -> None:
    given = inputs(model.config)
    alone = torch.cat([model(*rows(given, slice(i, i + 1))) for i in range(3)])
    assert_near(alone, model(*given))


@torch.no_grad()
def test_half_precision_is_close(model: nn.Module) -> None:
    x, t, y = inputs(model.config)
    exact = model(x, t, y)
    vectors = y is not None and y.is_floating_point()
    half = copy.deepcopy(model).bfloat16()(x.bfloat16(), t, y.bfloat16() if vectors else y).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x, t, y).float()
    for near in (half, mixed):
        assert (near - exact).norm() < 0.1 * exact.norm()


def test_recomputed_activations_give_the_same_gradients(model: nn.Module) -> None:
    def gradients(recompute: bool) -> list[Tensor]:
        model.zero_grad()
        checkpoint_activations(model, recompute)
        model.train()(*inputs(model.config)).square().mean().backward()
        return [p.grad.clone() for name, p in model.named_parameters() if not apart or not name.startswith(apart)]

    apart = APART.get(f"{model.config.family}-tiny")
    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


@torch.no_grad()
def test_cached_steps_see_the_present_input(model: nn.Module) -> None:
    x, t, y = inputs(model.config)
    cached = StepCache(2, final_time=0.0).attach(model.eval())
    first = cached(x, t, y)
    assert torch.equal(first, model(x, t, y))
    second = cached(1.1 * x, t, y)
    assert not torch.equal(second, model(1.1 * x, t, y))  # the deep part is the first step's
    assert not torch.equal(second, model(x, t, y))
    assert torch.equal(cached(x, t, y), model(x, t, y))


@torch.no_grad()
def test_conditions_of_some_rows_are_rows_of_the_conditions(model: nn.Module) -> None:
    """Sampling computes them once for all times and labels."""
    x, t, y = inputs(model.config)
    wanted = torch.tensor([2, 0, 0])
    cond = gather(model.condition(t, y), wanted)
    entered, skips = model.enter(x[wanted], cond)
    assert_near(model.leave(model.deep(entered, cond), skips, cond), model(x, t, y)[wanted])


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_takes_any_batch(model: nn.Module) -> None:
    given = inputs(model.config)
    batch = torch.export.Dim("batch", min=2)
    dynamic = tuple(None if part is None else {0: batch} for part in given)
    program = torch.export.export(model.eval(), given, dynamic_shapes=dynamic)
    two = rows(given, slice(2))
    torch.testing.assert_close(program.module()(*two), model(*two))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["infers", "trains"])
def test_blocks_compile_without_a_graph_break(model: nn.Module, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    # tracing alone finds breaks, and is a tenth of compiling
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    model = udit.fuse(model) if form == "infers" else model.train()
    given = inputs(model.config)
    with torch.set_grad_enabled(form == "trains"):
        expected = model(*given)
        torch._dynamo.reset()
        counters.clear()
        out = compile_blocks(model)(*given)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (9, 8), (7, 7)], ids=str)
@torch.no_grad()
def test_other_sizes_run_or_are_one_line_errors(model: nn.Module, size: tuple[int, int]) -> None:
    x, t, y = inputs(model.config, size)
    try:
        out = model(x, t, y)
    except ValueError as error:
        assert "\n" not in str(error)
        assert f"{size[0]}x{size[1]}" in str(error)
    else:
        assert out.shape == (3, model.config.out_channels, *x.shape[2:])
        assert out.isfinite().all()


def test_a_label_without_classes_is_a_one_line_error(model: nn.Module) -> None:
    config = model.config
    if not config.num_classes:
        pytest.skip("takes no labels")
    without = config.replace(
        num_classes=0, **{"null_class": False} if "null_class" in type(config).model_fields else {}
    )
    x, t, y = inputs(config)
    with pytest.raises(ValueError, match=r"^the model is unconditional \(num_classes 0\) and takes no labels[^\n]*$"):
        udit.build(without)(x, t, y)


# ---- rows at full size -----------------------------------------------------------------------------------------------

PUBLISHED: dict[str, tuple[int, str, str]] = {
    "U-DiT-S": (52_045_240, "6.0208", "udit-s"),
    "U-DiT-B": (204_425_064, "22.1793", "udit-b"),
    "U-DiT-L": (810_188_488, "84.9093", "udit-l"),
    "U-DiT-S-vanilla": (51_465_992, "5.893", ""),
    "U-DiT-B-vanilla": (203_266_568, "21.924", ""),
    "U-DiT-L-vanilla": (807_871_496, "84.398", ""),
    "DiT-S/2": (32_963_360, "6.0557", "dit/s-2"),
    "DiT-S/4": (32_945_024, "1.4126", ""),
    "DiT-S/8": (33_148_160, "0.3580", ""),
    "DiT-B/2": (130_512_416, "23.0051", "dit/b-2"),
    "DiT-B/4": (130_475_648, "5.5652", "dit/b-4"),
    "DiT-B/8": (130_881_536, "1.4175", ""),
    "DiT-L/2": (458_102_816, "80.6976", "dit/l-2"),
    "DiT-L/4": (458_053_760, "19.6957", ""),
    "DiT-L/8": (458_594_816, "5.0114", ""),
    "DiT-XL/2": (675_129_632, "118.6214", "dit/xl-2"),
    "DiT-XL/4": (675_074_432, "29.0437", ""),
    "DiT-XL/8": (675_683_072, "7.3924", ""),
    "DiT-XL/2-512": (676_014_368, "524.5383", "dit/xl-2-512"),
    "SiT-S/2": (32_963_360, "6.0557", "sit/s-2"),
    "SiT-B/2": (130_512_416, "23.0051", "sit/b-2"),
    "SiT-L/2": (458_102_816, "80.6976", "sit/l-2"),
    "SiT-XL/2": (675_129_632, "118.6214", "sit/xl-2"),
    "Skip-DiT-XL/2": (712_369_184, "128.1341", "skipdit/xl-2"),
    "LightningDiT-B/1": (130_556_192, "23.0082", "lightningdit/b-1"),
    "LightningDiT-XL/1": (675_256_736, "118.6261", "lightningdit/xl-1"),
    "REPA-B/2": (137_845_008, "24.881", "repa/b-2"),
    "REPA-L/2": (465_955_600, "82.707", "repa/l-2"),
    "REPA-XL/2": (683_242_512, "120.697", "repa/xl-2"),
    "FiT-XL/2": (823_599_392, "156.6721", "fit/xl-2"),
    "FiTv2-XL/2": (671_045_776, "152.3082", "fit/v2-xl-2"),
    "FiTv2-3B/2": (2_971_928_080, "664.8166", "fit/v2-3b-2"),
    "MPDiT-B": (104_852_912, "16.165", "mpdit/b"),
    "MPDiT-L": (331_770_032, "40.641", "mpdit/l"),
    "MPDiT-XL": (481_207_856, "56.429", "mpdit/xl"),
    "MPDiTv2-B": (108_606_128, "8.352", "mpdit/v2-b"),
    "MPDiTv2-L": (338_347_184, "27.145", "mpdit/v2-l"),
    "MPDiTv2-XL": (489_491_888, "45.834", "mpdit/v2-xl"),
    "MMDiT-SD3-medium": (2_028_328_000, "4218.68", "mmdit/sd3-medium"),
    "MMDiT-SD3.5-medium": (2_243_171_520, "5391.30", "mmdit/sd35-medium"),
    "MMDiT-SD3.5-large": (8_056_627_520, "14798.38", "mmdit/sd35-large"),
    "Latte-S/2": (32_624_288, "", "latte/s-2-ucf101"),
    "Latte-B/2": (129_834_272, "", "latte/b-2-ucf101"),
    "Latte-L/2": (457_198_624, "", "latte/l-2-ucf101"),
    "Latte-XL/2": (674_112_416, "", "latte/xl-2-ucf101"),
    "Latte-XL/2-uncond": (673_994_912, "", "latte/xl-2-uncond"),
    "Wan2.1-1.3B": (1_418_996_800, "141501", "wan/1.3b"),
    "Wan2.1-14B": (14_288_491_584, "839185", ""),
    "U-ViT-S/2": (44_255_328, "12.2008", "uvit/cifar10-s2"),
    "U-ViT-S/4": (44_292_228, "12.2105", "uvit/celeba64-s4"),
    "U-ViT-M/4": (130_940_292, "35.2358", "uvit/imagenet64-m4"),
    "U-ViT-L/4": (286_827_652, "76.4732", "uvit/imagenet64-l4"),
    "U-ViT-L/2": (286_763_172, "76.4562", "uvit/imagenet256-l2"),
    "U-ViT-H/2": (500_832_016, "133.1967", "uvit/imagenet256-h2"),
    "U-ViT-L/4-512": (286_861_524, "76.4819", "uvit/imagenet512-l4"),
    "U-ViT-H/4-512": (500_942_656, "133.2251", "uvit/imagenet512-h4"),
    "U-ViT-S/2-text": (44_692_644, "16.2297", "uvit/mscoco-s2"),
    "U-ViT-S/2-text-deep": (58_345_636, "21.2396", "uvit/mscoco-s2-deep"),
    "DiC-S": (32_835_752, "5.8659", "dic/s"),
    "DiC-B": (129_529_160, "23.4421", "dic/b"),
    "DiC-XL": (702_266_120, "116.0983", "dic/xl"),
    "DiC-H": (1_034_516_744, "204.3244", "dic/h"),
    "DiCo-S": (33_137_672, "4.2365", "dico/s"),
    "DiCo-B": (129_992_712, "16.8558", "dico/b"),
    "DiCo-L": (463_897_992, "60.1688", "dico/l"),
    "DiCo-XL": (701_151_368, "87.2210", "dico/xl"),
    "DiCo-H": (1_037_408_328, "194.0294", "dico/h"),
    "PDE-Transformer-S": (33_190_328, "19.79", "pde/s"),
    "PDE-Transformer-B": (130_591_568, "76.90", "pde/b"),
    "PDE-Transformer-L": (518_128_256, "303.05", "pde/l"),
    "ADM-64": (295_904_454, "109.678", "adm/64"),
    "ADM-128": (421_529_606, "306.93", "adm/128"),
    "ADM-256": (553_838_086, "1119.83", "adm/256"),
    "ADM-256-uncond": (552_814_086, "1119.83", "adm/256-uncond"),
    "ADM-512": (558_997_638, "1982.33", "adm/512"),
    "DiMSUM-B/2": (198_547_216, "", ""),
    "DiMSUM-L/2": (459_916_304, "", "dimsum/l-2-imagenet256"),
    "DiMSUM-L/2-celeba": (458_892_304, "", "dimsum/l-2-celeba256"),
    "DiMSUM-XL/2": (854_831_248, "", ""),
    "HDiT-mnist": (9_187_360, "0.3466", "hdit/mnist-transformer"),
    "HDiT-cifar10": (20_981_809, "1.9674", "hdit/cifar10-transformer"),
    "HDiT-oxford-flowers": (22_361_274, "", "hdit/oxford-flowers"),
    "HDiT-oxford-flowers-shifted-window": (22_361_274, "11.73", "hdit/oxford-flowers-shifted-window"),
}
"""Of the official programs: parameters of the fused network, position tables included; billions of MACs; key lists.

DiMSUM's and Latte's MACs are in their own files: the official counts include products that are not computed here.
"""
TRAINING_FORM = {"U-DiT-S": 58_896_568, "U-DiT-B": 231_251_304, "U-DiT-L": 916_335_304}
"""Parameters, where they are others."""
SLOW = (
    "DiT-L/4",
    "DiT-L/8",
    "DiT-XL/4",
    "DiT-XL/8",
    "DiT-XL/2-512",
    "SiT-L/2",
    "SiT-XL/2",
    "DiC-H",
    "ADM-256",
    "ADM-512",
)
SLOW += ("DiMSUM-B/2", "DiMSUM-L/2", "DiMSUM-L/2-celeba", "DiMSUM-XL/2")  # test_dimsum counts the first two
SLOW += ("DiT-L/2", "SiT-B/2", "DiC-B", "ADM-128", "HDiT-oxford-flowers", "U-ViT-L/2")
SLOW += ("PDE-Transformer-B", "PDE-Transformer-L")
SLOW += ("FiTv2-XL/2", "FiTv2-3B/2", "REPA-L/2", "REPA-XL/2", "MPDiT-L", "MPDiT-XL", "MPDiTv2-L", "MPDiTv2-XL")
SLOW += ("Latte-L/2", "Latte-XL/2", "Latte-XL/2-uncond", "MMDiT-SD3.5-medium", "Wan2.1-14B")
SLOW += ("DiCo-B", "DiCo-L", "DiCo-XL", "DiCo-H")
SLOW += ("U-DiT-L", "U-DiT-L-vanilla", "U-DiT-B-vanilla", "U-ViT-L/4", "U-ViT-L/4-512", "U-ViT-H/4-512", "DiT-B/8")
SLOW += ("MMDiT-SD3.5-large", "MMDiT-SD3-medium", "Wan2.1-1.3B", "PDE-Transformer-S", "U-DiT-S-vanilla", "ADM-64")
SLOW += ("Skip-DiT-XL/2", "FiT-XL/2", "LightningDiT-XL/1", "DiC-S", "DiCo-S")
SLOW += (
    "U-DiT-B",
    "DiT-XL/2",
    "DiT-B/2",
    "DiT-B/4",
    "U-ViT-M/4",
    "U-ViT-H/2",
    "DiC-XL",
    "ADM-256-uncond",
    "U-ViT-S/2-text-deep",
)
"""Rows like another one that runs faster."""


@functools.cache
def counted(name: str) -> Cost:
    return cost(CATALOG[name].config)


@pytest.mark.parametrize("name", quick(PUBLISHED, set(PUBLISHED) - set(SLOW)))
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    parameters, macs, _ = PUBLISHED[name]
    here = counted(name)
    assert (here.parameters, here.inference_parameters) == (TRAINING_FORM.get(name, parameters), parameters)
    if macs:
        assert f"{here.macs / 1e9:.{len(macs.partition('.')[2])}f}" == macs


COUNTED_ANYWAY = [name for name in PUBLISHED if name not in SLOW]


@pytest.mark.parametrize("name", quick(CATALOG, COUNTED_ANYWAY))
def test_recorded_counts_are_those_of_the_networks(name: str) -> None:
    assert recorded(CATALOG[name].config) == counted(name), "`python benchmarks/costs.py` counts anew"


def test_a_changed_row_has_no_recorded_count() -> None:
    config = CATALOG["U-DiT-tiny"].config
    assert recorded(config.replace(num_classes=11)) is None
    assert recorded(config) is not None


def test_every_row_is_published_or_says_that_it_is_ours() -> None:
    ours = [name for name in FULL if name not in PUBLISHED]
    assert not [name for name in ours if "sizes are ours" not in CATALOG[name].about.exact]
    assert not [name for name in ours if CATALOG[name].weights != "-"]


def test_every_published_key_list_belongs_to_a_row() -> None:
    assert sorted(where for _, _, lists in PUBLISHED.values() for where in lists.split()) == sorted(KEY_LISTS)


@pytest.mark.parametrize(
    ("name", "where"), [(name, where) for name, (_, _, lists) in PUBLISHED.items() for where in lists.split()]
)
def test_published_keys_and_shapes_in_order(name: str, where: str) -> None:
    assert_bijection(CATALOG[name].config, key_list(where))


@pytest.mark.parametrize("name", CATALOG)
def test_config_survives_json_and_folding_twice_is_folding(name: str) -> None:
    config = CATALOG[name].config
    for form in (config, config.folded()):
        assert model_from(json.loads(json.dumps(form.model_dump(mode="json")))) == form
        assert form.folded() == config.folded()


@pytest.mark.parametrize("name", CATALOG)
def test_every_row_says_where_it_comes_from(name: str) -> None:
    entry = CATALOG[name]
    assert re.fullmatch(r"\d{4}\.\d{5}", entry.about.paper)
    assert entry.weights == "-" or "(" in entry.weights, "the licence stands in brackets"
    assert not entry.unverified or entry.weights != "-"
