"""Claims: how a measurement becomes a verdict, what is measured, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import udit
from udit.claims import attention, caching, drawing, growth, sizes, spectra
from udit.claims.claim import Interval, Judged, Measurement, markdown, slope
from udit.claims.comparisons import FASHION, TESTS, Ahead, Fraction, Little, Members, Scaling, gain, gain_in_seconds
from udit.claims.job import Results, _copy
from udit.claims.page import page
from udit.claims.spectra import gain as response
from udit.claims.spectra import low_share, low_share_of_white, power_of, radial
from udit.claims.table import CLAIMS, find
from udit.comparison.config import read_comparison
from udit.comparison.records import EvaluatorFacts, Member, Point, Score, Sized
from udit.errors import UserError
from udit.nn.specs import Downsampled, Full, KVDownsampled

ROOT = Path(__file__).parents[1]
FACTS = {"command": "c", "scale": "small", "machine": "m", "versions": "v", "date": "2026-01-01"}
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "cannot be tested at this scale", "not yet measured"


def exact(value: float, half: float = 0.0) -> Interval:
    """An interval around a value."""
    return Interval(value=value, low=value - half, high=value + half)


# ---- small parts -----------------------------------------------------------------------------------------------------


def test_a_power_law_has_its_exponent() -> None:
    """3 x^1.5 at four sizes."""
    assert slope([(x, 3 * x**1.5) for x in (256, 1024, 4096, 16384)]) == pytest.approx(1.5)


def test_an_interval_is_of_the_mean() -> None:
    """1, 2, 3: standard error 1 / sqrt(3)."""
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - 2 == pytest.approx(1.96 / math.sqrt(3))


def test_numbers_are_set_to_the_right() -> None:
    """A column with a word in it is not."""
    assert markdown(["a", "b"], [["x", "1"], ["y", "-2"]])[1] == "| --- | ---: |"


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 1}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    """It names the file."""
    path = tmp_path / "growth.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"growth\.json") as error:
        Measurement.read(path)
    assert "\n" not in str(error.value)


# ---- attention and sizes ---------------------------------------------------------------------------------------------


def test_the_macs_of_a_layer_are_split_into_comparing_and_others() -> None:
    """16 tokens of 8 channels: 2 * 16 * 16 * 8 for comparing, 4 * 16 * 8 * 8 for four matrices; a quarter in grids."""
    full = attention._macs(Full().build(8, 2), 4, 8)
    assert full == (2 * 16 * 16 * 8, 4 * 16 * 8 * 8)
    grids = attention._macs(Downsampled(shortcut=False).build(8, 2), 4, 8)
    assert grids == (full[0] // 4, full[1] + 16 * 8 * 25)
    coarse, _ = attention._macs(KVDownsampled(shortcut=False).build(8, 2), 4, 8)
    assert coarse == full[0] // 4


@pytest.mark.parametrize(("share", "verdict"), [(25, HOLDS), (30, FAILS)])
def test_attention_holds_where_comparing_costs_a_quarter(share: int, verdict: str) -> None:
    """Whatever the matrices around it cost."""
    layers = tuple(
        attention.LayerCost(
            model=model,
            side=8,
            width=8,
            kind=kind,
            comparing=share if kind == "downsampled" else 100,
            others=900,
            seconds=1.0,
        )
        for model in attention.MODELS
        for kind in attention.KINDS
    )
    networks = tuple(
        attention.NetworkCost(model=model, kind=kind, macs=1000)
        for model in attention.MODELS
        for kind in attention.KINDS
    )
    record = attention.AttentionCosts(**FACTS, layers=layers, networks=networks)
    assert attention.judge("attention-costs-a-quarter", record).verdict == verdict


def test_printed_sizes_hold_where_all_are_close() -> None:
    """The survey's are not those of the papers."""
    counted = tuple(
        sizes.Size(name=name, parameters=round(one.parameters), macs=round(1.005 * one.macs))
        for name, one in sizes.PAPERS.items()
    )
    record = sizes.Sizes(**FACTS, sizes=counted)
    assert sizes.judge("sizes-of-the-papers", record).verdict == HOLDS
    found = sizes.judge("sizes-of-the-survey", record)
    assert found.verdict == FAILS
    assert "0 of 5" in found.measured


# ---- growth ----------------------------------------------------------------------------------------------------------


def grown(subject: str, times: Sequence[float], memory: float) -> growth.Growth:
    """One subject whose rounds have these exponents of time."""
    tokens = (256, 1024, 4096, 16384)
    costs = tuple(
        growth.Cost(tokens=n, seconds=tuple(n**p / 1e6 for p in times), memory=round(1000 * n**memory)) for n in tokens
    )
    return growth.Growth(subject=subject, costs=costs)


@pytest.mark.parametrize(
    ("times", "memory", "verdict"),
    [
        ((1.0, 1.02), 1.0, HOLDS),
        ((1.9, 1.92), 1.0, FAILS),
        ((1.0, 1.02), 2.0, FAILS),
        ((0.9, 1.3), 1.0, OPEN),
    ],
)
def test_linear_is_an_exponent_of_at_most_a_tenth_more(times: Sequence[float], memory: float, verdict: str) -> None:
    """Of time, in all rounds, and of memory."""
    others = tuple(grown(name, (2.0, 2.0), 1.0) for name in ("DiT", "U-DiT"))
    record = growth.Growths(
        **FACTS, growths=(*others, grown(growth.WHOLE, times, memory), grown(growth.SCANS, (1, 1.0), 1))
    )
    assert growth.judge("mamba-is-linear", record).verdict == verdict
    assert growth.judge("scans-are-linear", record).verdict == HOLDS


# ---- spectra ---------------------------------------------------------------------------------------------------------


def wave(side: int, cycles: int) -> torch.Tensor:
    """A wave along columns over a mean of 5, [1, H, W, 1]."""
    along = torch.cos(2 * math.pi * cycles * torch.arange(side) / side)
    return (5 + along).expand(side, side)[None, :, :, None]


@pytest.mark.parametrize(("cycles", "share"), [(1, 1.0), (4, 1.0), (5, 0.0), (8, 0.0)])
def test_a_wave_is_low_up_to_half_of_the_nyquist_frequency(cycles: int, share: float) -> None:
    """Of 16 pixels that is 4 cycles; the mean does not count."""
    assert low_share(power_of(wave(16, cycles))).item() == pytest.approx(share, abs=1e-12)


def test_equal_power_has_the_low_share_of_white_noise() -> None:
    """A single pixel has the same power at every frequency."""
    pixel = torch.zeros(1, 8, 8, 1)
    pixel[0, 3, 2] = 1
    power = power_of(pixel)
    assert low_share(power).item() == pytest.approx(low_share_of_white(8))
    assert radial(power) == pytest.approx([1 / 63] * 4)


def test_a_filter_has_its_frequency_response() -> None:
    """1 2 1 over 4 along both axes passes (1 + cos w) / 2; the shortcut's kernel passes everything."""
    along = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    smooth = (along[:, None] * along)[None, None]
    expected = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    assert response(smooth) == pytest.approx(expected, abs=1e-12)
    kernel = torch.zeros(2, 1, 5, 5)
    kernel[:, 0, 2, 2] = 1
    assert response(kernel) == pytest.approx([1.0] * 5)


@pytest.mark.parametrize(
    ("name", "places", "filters"),
    [
        ("U-DiT-tiny", ["x_t", "encoder 8x8", "bottleneck 4x4", "decoder 8x8"], 6),
        ("DiT-tiny", ["x_t", "block 1", "block 2", "block 3", "block 4"], 0),
    ],
)
def test_features_are_read_where_a_stage_ends(name: str, places: list[str], filters: int) -> None:
    """Of a fused network, whose hooks are gone afterwards; of x_t itself the spectrum is that of what went in."""
    from udit.assemble import System
    from udit.run.system import SystemConfig

    network = udit.fuse(udit.build(name))
    system = System(SystemConfig(model=network.config, diffusion={"kind": "flow"}), network)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = {0.5: (x, torch.full((3,), 0.5), torch.zeros(3, dtype=torch.long))}
    found, low_passes = spectra.spectra_of(system, name, inputs)
    assert [one.place for one in found] == places
    assert len(low_passes) == filters
    assert found[0].mean == pytest.approx(low_share(power_of(x.permute(0, 2, 3, 1))).mean().item())
    assert not any(module._forward_hooks for module in network.modules())


def place(network: str, low: float) -> spectra.Place:
    """A place with this low share."""
    moment = spectra.Moment(time=0.5, low=exact(low), spectrum=(0.1,))
    return spectra.Place(network=network, place="decoder 8x8", side=8, white=0.19, moments=(moment,))


def low_pass(change: float, half: float) -> spectra.Filter:
    """A filter that raises the low share by this."""
    return spectra.Filter(
        network="U-DiT",
        place="a",
        side=8,
        before=0.5,
        after=0.5 + change,
        change=exact(change, half),
        gain=(1, 1, 1, 1, 1),
    )


@pytest.mark.parametrize(
    ("shares", "changes", "verdicts"),
    [
        ((0.6, 0.9), ((0.1, 0.01), (0.2, 0.01)), (HOLDS, HOLDS)),
        ((0.4, 0.9), ((0.1, 0.01), (-0.2, 0.01)), (FAILS, FAILS)),
        ((0.6, 0.6), ((0.1, 0.01), (0.1, 0.2)), (HOLDS, OPEN)),
    ],
)
def test_low_frequencies_dominate_with_half_of_the_power_everywhere(
    shares: Sequence[float], changes: Sequence[tuple[float, float]], verdicts: tuple[str, str]
) -> None:
    """Of U-DiT's places; a filter is a low-pass where it raises the share. DiT's places decide nothing."""
    places = (*(place("U-DiT, digits", share) for share in shares), place("DiT/1, digits", 0.1))
    record = spectra.Spectra(**FACTS, places=places, filters=tuple(low_pass(*one) for one in changes))
    assert spectra.judge("low-frequencies", record).verdict == verdicts[0]
    assert spectra.judge("low-pass", record).verdict == verdicts[1]


# ---- caching ---------------------------------------------------------------------------------------------------------


def cached(name: str, change: float, ratio: float, half: float) -> caching.Model:
    """A model whose features change by this from step to step and whose distance grows by this."""
    changes = tuple(
        caching.Change(time=t, relative=exact(change, half), cosine=exact(0.9), prediction=exact(0.1))
        for t in (1.0, 0.5)
    )
    scored = tuple(
        caching.Cached(
            interval=n, distance=1.0, agreement=0.9, ratio=exact(1.0 if n == 1 else ratio, half), seconds=1.0
        )
        for n in (1, 2, 4)
    )
    return caching.Model(name=name, skips=name != "DiT", macs=10, deep=0.5, changes=changes, cached=scored)


@pytest.mark.parametrize(
    ("ours", "half", "verdicts"),
    [
        ((0.1, 1.1), 0.01, (HOLDS, HOLDS)),
        ((0.5, 2.5), 0.01, (FAILS, FAILS)),
        ((0.1, 2.5), 0.01, (HOLDS, FAILS)),
        ((0.1, 1.1), 3.0, (OPEN, OPEN)),
    ],
)
def test_caching_is_judged_against_the_network_without_skips(
    ours: tuple[float, float], half: float, verdicts: tuple[str, str]
) -> None:
    """At most of the steps and intervals, by intervals that do not meet; DiT changes by 0.3 and loses 1.8."""
    models = (cached("U-DiT", *ours, half), cached("DiT", 0.3, 1.8, half), cached("Skip-DiT", *ours, half))
    record = caching.Caching(**FACTS, judge="j", models=models)
    assert caching.judge("cached-features-change-less", record).verdict == verdicts[0]
    assert caching.judge("caching-hurts-less", record).verdict == verdicts[1]


# ---- comparisons -----------------------------------------------------------------------------------------------------


def trained(system: str, amount: float, values: Sequence[float], seed: int = 0) -> Member:
    """A member with these distances at the fractions of its training."""
    size = Sized(
        system=system,
        budget="macs",
        amount=amount,
        model={},
        measured=amount,
        macs=round(amount),
        parameters=1,
        changed="w",
    )
    points = tuple(
        Point(
            fraction=(i + 1) / len(values),
            step=i + 1,
            macs=1.0,
            seconds=60.0,
            val_loss=None,
            weights="w",
            scores={"distance": Score(value=value, low=value, high=value)},
        )
        for i, value in enumerate(values)
    )
    facts = EvaluatorFacts(name="judge", sha256="0", reference_sha256="1", real={})
    return Member(
        comparison="c",
        system=system,
        seed=seed,
        size=size,
        lr=1e-3,
        rate=None,
        steps=9,
        batch_size=4,
        step_seconds=1.0,
        clock="processor",
        points=points,
        sample_ids_sha256=f"ids {seed}",
        noise_sha256=f"noise {seed}",
        evaluator=facts,
        protocol={"data": "these"},
        machine="m",
        versions="v",
        date="2026-01-01",
        model_folder="models/x",
        images="",
    )


def members(*rows: tuple[str, float, Sequence[float]]) -> Members:
    """Three seeds of each (system, budget, distances), which are shared by what the seed adds, 0, 5 and 10."""
    return Members(
        {
            FASHION: [
                trained(s, a, [v + 5 * seed + 0.1 * (seed == 1) for v in vs], seed)
                for s, a, vs in rows
                for seed in range(3)
            ]
        }
    )


@pytest.mark.parametrize(
    ("own", "verdict"), [([8, 8], HOLDS), ([12, 12], FAILS), ([8, 10], OPEN), ([8, 12], FAILS)], ids=str
)
def test_a_system_is_ahead_where_all_differences_leave_out_zero(own: Sequence[float], verdict: str) -> None:
    """Of each fraction, where that is asked; seeds vary by far more than systems differ. 10 against 10 is open."""
    test = Ahead("a", "b", (FASHION,), throughout=True)
    found = members(("a", 2e7, own), ("b", 2e7, [10.05, 10.05]))
    other = Members({FASHION: [one if one.system == "a" else shifted(one) for one in found.found[FASHION]]})
    assert test.judge(other).verdict == verdict


def shifted(member: Member) -> Member:
    """The same member with a little noise of its own."""
    noise = (0.1, -0.2, 0.1)[member.seed]
    points = tuple(
        point.replace(scores={"distance": score.replace(value=score.value + noise)})
        for point, score in ((point, point.scores["distance"]) for point in member.points)
    )
    return member.replace(points=points)


def test_a_claim_of_several_sizes_is_not_judged_at_one() -> None:
    """What is there is told."""
    test = Ahead("a", "b", (FASHION,), budgets=2)
    one = test.judge(members(("a", 2e7, [8]), ("b", 2e7, [10])))
    assert one.verdict == MISSING
    assert one.measured.startswith("so far at 1 budget of 2 or more: a gains over b: +13%")
    assert test.judge(members(("a", 2e7, [8]), ("b", 2e7, [10]), ("a", 8e7, [4]), ("b", 8e7, [5]))).verdict == HOLDS


def test_what_is_ahead_at_equal_macs_may_be_behind_in_equal_seconds() -> None:
    """a takes twice b's time: when b ends with 11, a is at its first score, 20."""
    pace = {"a": 120.0, "b": 60.0}
    rows = [
        one.replace(points=tuple(p.replace(seconds=p.step * pace[one.system]) for p in one.points))
        for one in members(("a", 2e7, [20, 10]), ("b", 2e7, [22, 11])).found[FASHION]
    ]
    of = [{one.seed: one for one in rows if one.system == system} for system in "ab"]
    found = gain_in_seconds(*of)
    assert found is not None
    assert found[0] == 120
    mean_of_b = 11 + 5 + 0.1 / 3  # over the seeds
    assert found[1].value == pytest.approx(-9 / mean_of_b)
    judged = Ahead("a", "b", (FASHION,)).judge(Members({FASHION: rows}))
    assert "in equal seconds: -56% (-56% to -56%, 3 seeds) at 20 M MACs after 120 s" in judged.measured
    assert gain_in_seconds({seed: one.replace(points=one.points[1:]) for seed, one in of[0].items()}, of[1]) is None


def test_without_two_common_seeds_nothing_is_said() -> None:
    """One seed tells nothing of how trainings differ."""
    one = Members({FASHION: [trained("a", 1e6, [1.0]), trained("b", 1e6, [2.0])]})
    assert Ahead("a", "b", (FASHION,)).judge(one) == Judged(MISSING, "")
    assert gain({0: trained("a", 1e6, [1.0])}, {1: trained("b", 1e6, [2.0])}) is None


def test_members_of_another_protocol_are_left_out() -> None:
    """Their judge or their noise is another one."""
    found = members(("a", 1e6, [1.0]), ("b", 1e6, [2.0])).found[FASHION]
    mixed = Members(
        {FASHION: [one if one.system == "a" else one.replace(protocol={"data": "others"}) for one in found]}
    )
    assert Ahead("a", "b", (FASHION,)).judge(mixed).verdict == MISSING


@pytest.mark.parametrize(("own", "verdict"), [(9.9, HOLDS), (12.0, HOLDS), (5.0, FAILS)])
def test_a_little_gain_is_at_most_a_tenth(own: float, verdict: str) -> None:
    """A loss is no gain at all; 5 of 15 on average is a third."""
    found = members(("a", 1e6, [own]), ("b", 1e6, [10.0]))
    assert Little("a", "b", (FASHION,)).judge(found).verdict == verdict


@pytest.mark.parametrize(("own", "verdict"), [(10.0, HOLDS), (10.5, HOLDS), (13.0, FAILS)])
def test_a_sixth_is_the_largest_that_is_small_enough(own: float, verdict: str) -> None:
    """13.3 M against 80 M, within 5 % of 15 on average; the 20 M are no sixth, and 40 M have no sixth."""
    rows = [("U", 13.3e6, [own]), ("U", 20e6, [0.0]), ("D", 80e6, [10.0]), ("D", 40e6, [0.0])]
    found = Fraction("U", "D", (FASHION,)).judge(members(*rows))
    assert found.verdict == verdict
    assert "13.3 M MACs against 80 M MACs" in found.measured
    assert "40 M" not in found.measured


@pytest.mark.parametrize(("power", "verdict"), [(-0.5, HOLDS), (0.3, FAILS)])
def test_scaling_is_a_negative_exponent(power: float, verdict: str) -> None:
    """Of each seed that has all budgets."""
    rows = [
        trained(system, amount, [(1 + seed) * amount**power], seed)
        for system in ("D", "U")
        for amount in (1e6, 4e6, 16e6)
        for seed in range(3)
    ]
    found = Scaling("D", "U", (FASHION,)).judge(Members({FASHION: rows}))
    assert found.verdict == verdict
    assert f"D {power:.2f}" in found.measured


def test_every_claim_about_systems_names_members_that_a_file_trains() -> None:
    """Each file is a comparison whose protocol its companions share."""
    assert set(TESTS) == {claim.name for claim in CLAIMS if claim.kind == "comparisons"}
    for name, test in TESTS.items():
        files = [read_comparison(ROOT / "benchmarks" / f"comparison-{one}.yaml") for one in test.comparisons]
        assert set(test.systems) <= {system.name for file in files for system in file.systems}, name
        first = files[0]
        for file in files:
            assert (file.base, file.overrides, file.rates, file.decay) == (
                first.base,
                first.overrides,
                first.rates,
                first.decay,
            )
            assert (file.fractions, file.rate_share, file.seeds[0]) == (
                first.fractions,
                first.rate_share,
                first.seeds[0],
            )


@pytest.mark.slow
def test_images_are_drawn_of_all_members(tmp_path: Path) -> None:
    """Of systems with two seeds or more."""
    found = members(("a", 1e6, [1.0]), ("b", 1e6, [2.0]), ("b", 4e6, [1.0]))
    assert {system: list(curve) for system, curve in found.curves((FASHION,)).items()} == {"a": [1e6], "b": [1e6, 4e6]}
    drawing.trained(found, tmp_path / "trained.png")
    assert (tmp_path / "trained.png").read_bytes()[:4] == b"\x89PNG"


# ---- the page and the command ----------------------------------------------------------------------------------------


def test_the_page_is_that_of_the_records() -> None:
    """`udit claims --page` writes it."""
    assert page(Results(ROOT / "docs" / "results")) == (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")


def test_a_claim_without_records_says_what_measures_it(tmp_path: Path) -> None:
    """And every claim has a verdict or that."""
    rows = Results(tmp_path).rows()
    assert {row.judged.verdict for row in rows} == {MISSING}
    assert f"`udit claims {rows[0].claim.name}`" in page(Results(tmp_path))


def test_an_unknown_claim_is_answered_by_the_nearest() -> None:
    """Before anything is measured."""
    with pytest.raises(UserError, match="did you mean 'low-pass'"):
        find("low-passes")


def test_finished_members_are_copied_both_ways_and_never_over_others(tmp_path: Path) -> None:
    """What is committed is where training goes on, and what is finished comes back; work in progress does not."""
    kept, work = tmp_path / "kept", tmp_path / "work"
    for folder, name in (
        (kept, "records/a.json"),
        (work, "records/b.json"),
        (work, "work/c.json"),
        (work, "rates/a.json"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    (work / "records/a.json").write_text("another", encoding="utf-8")
    _copy(kept, work)
    _copy(work, kept)
    assert (work / "records/a.json").read_text(encoding="utf-8") == "another"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*.json")) == [
        "rates/a.json",
        "records/a.json",
        "records/b.json",
    ]
