"""Configs report what is wrong in one line, before torch is imported."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_files import folder, garments
from udit.data.config import DigitsData
from udit.data.describe import describe
from udit.diffusion.config import DDPMConfig, SamplingConfig
from udit.errors import UserError, nearest
from udit.models.catalog import CATALOG
from udit.models.udit.config import UDiTConfig
from udit.nn.specs import Downsampled, Mlp, RepConv
from udit.run.config import Run, changed_keys
from udit.run.recipes import list_recipes, load_run, parse_yaml, read_recipe, to_yaml
from udit.run.resolve import resolve
from udit.spec.base import Spec

Path_ = tuple[str, ...]


def paths(values: dict[str, Any], above: Path_ = ()) -> Iterator[Path_]:
    """Every key of nested dicts, as a path."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def edited(values: dict[str, Any], path: Path_, *, key: str | None = None, value: Any = None) -> dict[str, Any]:
    """A copy with the key at ``path`` renamed, or its value replaced."""
    values = copy.deepcopy(values)
    node = values
    for step in path[:-1]:
        node = node[step]
    if key is None:
        node[path[-1]] = value
    else:
        node[key] = node.pop(path[-1])
    return values


def misspellings(word: str) -> set[str]:
    """Every deletion and swap of letters, and an insertion at every place."""
    words = {word[:i] + word[i + 1 :] for i in range(len(word))}
    words |= {word[:i] + "x" + word[i:] for i in range(len(word) + 1)}
    words |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return words - {word, ""}


RECIPE = read_recipe("digits")
COMPLETE = load_run("digits").plain()


@pytest.mark.slow
@pytest.mark.parametrize("values", [RECIPE, COMPLETE], ids=["recipe", "complete run"])
def test_every_misspelt_key_is_refused_and_the_right_one_named(values: dict[str, Any], one_line: Callable) -> None:
    named = total = 0
    for path in paths(values):
        for word in misspellings(path[-1]):
            with pytest.raises(UserError) as caught:
                resolve(edited(values, path, key=word))
            text = one_line(caught.value)
            total += 1
            named += f"did you mean {path[-1]!r}?" in text or f"{path[-1]} is " in text.removeprefix("model.")
    assert total > 350
    assert named >= 0.98 * total


BAD_VALUES = [
    ("training.lr=abc", "training.lr is 'abc'; it takes a number"),
    ("training.lr=true", "training.lr is true; it takes a number"),
    ('training.steps="10"', "training.steps is '10'; it takes a whole number"),
    ("training.steps=10.5", "training.steps is 10.5"),
    ("training.steps=0", "training.steps is 0; it must be greater than 0"),
    ("training.steps=", "training.steps is empty; give a whole number"),
    ("training.compile=1", "training.compile is 1; it takes true, false or 'auto'"),
    ("training.compile=yes", "training.compile is 'yes'; it takes true, false or 'auto'"),
    ("training.checkpoint_activations=selectve", "'selectve'; it takes true, false or 'selective'"),
    ("training.betas=[0.9, true]", "training.betas.1 is true; it takes a number"),
    ("training.betas=[0.9]", "training.betas has too few entries; it takes a list, e.g. [0.9, 0.999]"),
    ("training.betas=[0.9, 1.0]", "training.betas.1 is 1.0"),
    ("training.betas=0.9", "training.betas is 0.9; it takes a list, e.g. [0.9, 0.999]"),
    ("training.ema_decay=1", "training.ema_decay is 1; it must be less than 1"),
    ("training.precision=fp16", "'float32' or 'bfloat16'"),
    ("training.accumulation=7", "training.batch_size 32 does not split into 7"),
    ("training.keep=1", "training.keep is 1"),
    ("seed=-1", "seed is -1"),
    ("seed=9223372036854775808", "seed is 9223372036854775808"),
    ("name=3", "name is 3"),
    ("data=digits", "data is 'digits'; it is a section"),
    ("data.kind=digit", "did you mean 'digits'?"),
    ("data.kind=[1]", "data.kind is [1]"),
    ("data.kind=folder", "data.root is missing"),
    ("data.judge_share=0.9", "leave nothing to train on"),
    ("data.judge_share=1", "data.judge_share is 1"),
    ("model=3", "model is 3; name one"),
    ("model.name=U-DiT-X", "did you mean 'U-DiT-"),
    ("model.family=U-DIT", "model.family is 'U-DIT' and U-DiT-tiny is a U-DiT; leave family out"),
    ("model={family: U-DIT}", "did you mean 'U-DiT'?"),
    ("model={family: {a: 1}}", "model.family is {a: 1}"),
    ("model.width=-16", "model.width is -16"),
    ("model.width=18", "width 18 over 2 heads leaves 9 channels per head; RoPE needs a multiple of 4, e.g. width 16"),
    ("model.heads=3", "width 16 does not split over 3 heads"),
    ("model.depths=[1, 1]", "depths has 2 entries; a U needs an odd number"),
    ("model.depths=[1, 0, 1]", "model.depths.1 is 0"),
    ("model.depths=[]", "model.depths is []"),
    ("model.depths=[1, 1, 1, 1, 1, 1, 1]", "an input of 8x8 cannot pass 4 levels; H and W must be multiples of 16"),
    ("model.input_size=16", "model.input_size is 16x16 and the data is 8x8"),
    ("model.input_size=[8, 8, 8]", "model.input_size is [8, 8, 8]"),
    ("model.in_channels=3", "model.in_channels is 3 and the data has 1"),
    ("model.num_classes=5", "model.num_classes is 5 and the data has 10 classes"),
    ("model.num_classes=0", "sampling.guidance is 2 and the model has no null label"),
    (
        "model={name: U-ViT-M/4, patch: 2} + sampling.guidance=1 + training.label_dropout=0.2",
        "training.label_dropout is 0.2 and the model has no null label",
    ),
    ("model.attention=5", "model.attention is 5; it is a section"),
    ("model.attention.kernel=4", "kernel is 4; a centred filter needs an odd side"),
    ("model.attention.kernel=0", "set shortcut to false"),
    ("model.ffn=mlp", "model.ffn is 'mlp'; it is a section"),
    ("model.ffn.kind=mpl", "did you mean 'mlp'?"),
    ("model.ffn.branches=[3, 5]", "largest first"),
    ("model.ffn.ratio=0.01", "leaves no hidden channel"),
    ("sampling.sampler=ddim", "a flow model takes flow-euler"),
    (
        "diffusion.kind=ddpm + sampling.sampler=ddim + diffusion.steps=10",
        "sampling.steps is 15 and the schedule has 10",
    ),
    ("diffusion.kind=ddpm + sampling.sampler=flow-euler", "a ddpm model takes ddim, ddpm"),
    ("sampling.sampler=dim", "'ddim'"),
    ("sampling.guidance=-1", "sampling.guidance is -1"),
    ("sampling.guidance_channels=3", "sampling.guidance_channels is 3 and the model predicts 1"),
    ("sampling.guidance_interval=[0.9, 0.1]", "it runs from the lower to the higher time"),
    ("sampling.guidance_levels=[3, 1]", "it runs from the lower to the higher level"),
    (
        "sampling.guidance_levels=[1, 3] + sampling.guidance_interval=[0, 0.5]",
        "guidance_interval and guidance_levels both limit guidance; give one of them",
    ),
    ("sampling.guidance_kind=apq", "sampling.guidance_kind is 'apq'"),
    ("sampling.guidance_rescale=2", "sampling.guidance_rescale is 2"),
    ("sampling.guidance_eta=0.5", "guidance_eta works with guidance_kind apg, not with cfg; leave it out, or set"),
    ("sampling.guidance_kind=cfg-zero + sampling.guidance_norm=5", "guidance_norm works with guidance_kind apg"),
    ("sampling.guidance_zero_init=2", "guidance_zero_init works with guidance_kind cfg-zero, not with cfg"),
    (
        "sampling.guidance_kind=cfg-zero + sampling.sampler=dpmpp",
        "guidance_zero_init works with the flow-euler and flow-heun samplers, not with dpmpp; set guidance_zero_init",
    ),
    ("sampling.guidance_kind=apg + sampling.guidance_momentum=1", "sampling.guidance_momentum is 1"),
    ("sampling.sampler=ddpm + sampling.eta=1", "eta works with the ddim sampler, not with ddpm"),
    ("sampling.sampler=dpmpp + sampling.clip=true", "clip works with the ddim and ddpm samplers"),
    ("id2label=[a]", "id2label is ['a'] and the data says"),
    ("training", "'training' is no override"),
    ("=5", "'=5' is no override"),
    ("training.lr.x=5", "'training.lr' is a value, not a section"),
    ("nothing.lr=5", "unknown key 'nothing'"),
    ("training.lr=[", "is not valid YAML"),
    ("training.lr_schedule={kind:wsd}", "has 'kind:wsd' for a key; a colon takes a space after it: kind: wsd"),
    ("training.groups=[{match:label}]", "has 'match:label' for a key; a colon takes a space after it"),
]


@pytest.mark.parametrize(("overrides", "said"), BAD_VALUES, ids=[o for o, _ in BAD_VALUES])
def test_bad_value_is_a_one_line_error(overrides: str, said: str, one_line: Callable) -> None:
    with pytest.raises(UserError) as caught:
        load_run("digits", overrides.split(" + "))
    assert said in one_line(caught.value)


def test_labels_are_not_taken_for_a_model_s_that_takes_texts(one_line: Callable) -> None:
    with pytest.raises(UserError, match=r"^the model takes texts and no language model is named for them") as caught:
        load_run("digits", ["model=U-DiT-text-tiny"])
    one_line(caught.value)


def test_another_model_takes_the_place_of_the_recipe_s_and_says_so(
    one_line: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = load_run("fashion-mnist", ["model=DiT-S/2", "model.depth=3"], absent=True)
    assert (run.model.family, run.model.width, run.model.depth, run.model.in_channels) == ("DiT", 384, 3, 4)
    assert "model=DiT-S/2 takes the place of the recipe's model (family, width, heads, depths)" in caplog.text
    with pytest.raises(
        UserError, match=r"would drop the model keys given before it; give model=DiT-S/2 first"
    ) as caught:
        load_run("fashion-mnist", ["model.depth=3", "model=DiT-S/2"], absent=True)
    one_line(caught.value)
    with pytest.raises(UserError, match=r"is a DiT; leave family out, or write model=DiT-S/2 in place") as caught:
        load_run("fashion-mnist", ["model.name=DiT-S/2"], absent=True)
    one_line(caught.value)


@pytest.mark.parametrize("model", ["{name: U-ViT-M/4, patch: 2}", "{name: U-DiT-S, num_classes: 0, depths: [1]}"])
def test_no_label_is_dropped_by_default_where_there_is_no_null_label(model: str) -> None:
    assert load_run("digits", [f"model={model}", "sampling.guidance=1"]).training.label_dropout == 0
    assert load_run("digits", []).training.label_dropout > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_run_may_be_nan_or_infinite(bad: float, one_line: Callable) -> None:
    count = 0
    for path in paths(COMPLETE):
        node: Any = COMPLETE
        for step in path:
            node = node[step]
        if isinstance(node, int | float) and not isinstance(node, bool):
            count += 1
            with pytest.raises(UserError, match=path[-1]) as caught:
                resolve(edited(COMPLETE, path, value=bad))
            one_line(caught.value)
    assert count > 25


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from(list(paths(COMPLETE))), ANYTHING)
def test_any_value_anywhere_resolves_or_is_a_one_line_error(path: Path_, value: Any) -> None:
    try:
        run = resolve(edited(COMPLETE, path, value=value))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert resolve(run.plain()) == run


def test_shipped_recipes_resolve_and_are_described(tmp_path: Path) -> None:
    recipes = list_recipes()
    garments(tmp_path / "idx")
    folder(tmp_path / "pictures", cat=1, dog=1)
    data = {
        "digits": [],
        "two-digits": [],
        "fashion-mnist": [f"data.root={tmp_path / 'idx'}"],
        "folder": [f"data.root={tmp_path / 'pictures'}"],
        "moving-digits": [],
    }
    assert "digits" in recipes
    for name, said in recipes.items():
        assert len(said) > 20
        kind = read_recipe(name)["data"]["kind"]
        assert load_run(name, data[kind]).name == name


@pytest.mark.parametrize("overrides", [[], ["diffusion.kind=ddpm", "sampling.sampler=unipc"], ["model.ffn.kind=mlp"]])
def test_run_survives_yaml(overrides: list[str], tmp_path: Path) -> None:
    run = load_run("digits", overrides)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run.plain()), encoding="utf-8")
    assert load_run(str(file)) == run
    assert Run.model_validate(run.plain()) == run
    assert changed_keys(run.plain(), load_run(str(file)).plain()) == []


@settings(max_examples=30)
@given(
    st.floats(1e-12, 1e12),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"), min_size=1),
)
def test_numbers_and_names_survive_yaml_exactly(lr: float, name: str) -> None:
    run = load_run("digits").replace(name=name).model_copy()
    run = run.replace(training=run.training.replace(lr=lr))
    assert resolve(parse_yaml(to_yaml(run.plain()), "here")) == run


def test_boundary_of_the_model_follows_the_data() -> None:
    run = load_run("digits")
    assert (run.model.in_channels, run.model.num_classes, run.model.size) == (1, 10, (8, 8))
    assert run.id2label == tuple("0123456789")
    assert (run.name, run.out) == ("digits", Path("runs/digits"))


def test_unconditional_model_has_no_class_names() -> None:
    run = load_run("digits", ["model.num_classes=0", "sampling.guidance=1"])
    assert (run.id2label, run.model.null_label) == ((), None)


def test_flow_learns_no_variance_and_samples_by_euler() -> None:
    run = resolve(
        {"data": {"kind": "digits"}, "model": {"width": 16, "heads": 2, "depths": [1], "family": "U-DiT"}} | FLOW
    )
    assert (run.model.learn_sigma, run.sampling.sampler) == (False, "flow-euler")
    with pytest.raises(UserError, match="flow matching learns no variance"):
        load_run("digits", ["diffusion.kind=flow", "sampling.sampler=unipc", "model.learn_sigma=true"])


FLOW = {"diffusion": {"kind": "flow"}}


def test_override_of_another_kind_replaces_the_whole_section() -> None:
    run = load_run("digits", ["model.ffn.kind=mlp", "model.ffn.ratio=3"])
    assert run.model.ffn == Mlp(ratio=3)


def test_override_is_yaml_1_2() -> None:
    run = load_run("digits", ["training.lr=1e-4", "name=no", "training.betas=[0.8, 0.9]"])
    assert (run.training.lr, run.name, run.training.betas) == (1e-4, "no", (0.8, 0.9))


def test_model_by_name_takes_overrides() -> None:
    run = resolve({"data": {"kind": "digits"}, "model": {"name": "U-DiT-S-vanilla", "depths": [1, 1, 1]}})
    assert run.model == CATALOG["U-DiT-S-vanilla"].config.replace(
        depths=(1, 1, 1), in_channels=1, num_classes=10, input_size=(8, 8)
    )


def test_duplicate_yaml_keys_are_refused(tmp_path: Path, one_line: Callable) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("seed: 1\ndata: {kind: digits}\nseed: 2\n")
    with pytest.raises(UserError, match="duplicate key") as caught:
        load_run(str(file))
    one_line(caught.value)


@pytest.mark.parametrize("text", ["", "5", "- a\n- b", "a: [", "1: 2", "\tx: 1", "a: b: c"])
def test_text_that_is_no_mapping_is_refused(text: str, one_line: Callable) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "here.yaml")
    assert one_line(caught.value).startswith("here.yaml ")


def test_recipes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'digit'; did you mean 'digits'"):
        load_run("digit")
    with pytest.raises(UserError, match="no recipe file"):
        load_run(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=f"no recipe; .*`udit train folder data.root={tmp_path}`"):
        load_run(str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").touch()
    with pytest.raises(UserError, match=f"to go on with it: `udit train {tmp_path}/run/run.yaml`"):
        load_run(str(tmp_path / "run"))
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        load_run(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("missing", ["data", "model"])
def test_run_without_data_or_model_says_what_to_name(missing: str) -> None:
    with pytest.raises(UserError, match=f"^{missing} is missing; name"):
        resolve({key: value for key, value in RECIPE.items() if key != missing})


def test_changed_keys_are_named_and_harmless_ones_let_through() -> None:
    old = load_run("digits").plain()
    harmless = ["training.steps=7", "training.device=cuda", "sampling.steps=9", "name=x", "out=y", "training.workers=2"]
    assert changed_keys(old, load_run("digits", harmless).plain()) == []
    changed = ["seed=1", "training.lr=0.5", "model.width=32", "model.ffn.ratio=3", "data.test_share=0.2"]
    assert sorted(changed_keys(old, load_run("digits", changed).plain())) == [
        "data.test_share",
        "model.ffn.ratio",
        "model.width",
        "seed",
        "training.lr",
    ]
    assert changed_keys({"a": 1}, {}) == changed_keys({}, {"a": 1}) == ["a"]
    assert changed_keys(old, load_run("digits", ["diffusion.kind=ddpm", "sampling.sampler=unipc"]).plain())


def test_configs_are_frozen_and_compare_by_value() -> None:
    config = UDiTConfig(width=16, heads=2)
    with pytest.raises(ValueError, match="frozen"):
        config.width = 32  # type: ignore[misc]
    assert config == UDiTConfig(width=16, heads=2)
    assert config.replace(width=32).replace(width=16) == config
    row = CATALOG["U-DiT-S"]
    assert row.replace(weights="elsewhere").config == row.config, "nested configs keep the fields of their own class"
    with pytest.raises(UserError, match="unknown key 'wdith'; did you mean 'width'"):
        config.replace(wdith=3)


SPECS = [Downsampled(), RepConv(), Mlp(), DDPMConfig(), SamplingConfig(), DigitsData(), UDiTConfig()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_specs_survive_json(spec: Spec) -> None:
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_folded_config_is_its_own_folded_config() -> None:
    for entry in CATALOG.values():
        folded = entry.config.folded()
        assert folded.folded() == folded


def test_digits_are_described_without_being_loaded() -> None:
    info = describe(DigitsData())
    assert (info.channels, info.height, info.width, len(info.id2label)) == (1, 8, 8, 10)


def test_nearest_names_a_close_word_or_lists_all() -> None:
    assert nearest("widht", ["width", "heads"]) == "; did you mean 'width'?"
    assert nearest("u-dit-s", ["U-DiT-S", "U-DiT-B"]) == "; did you mean 'U-DiT-S'?"
    assert nearest("zzz", ["b", "a"]) == " (known: a, b)"


@pytest.mark.parametrize(
    "statement",
    [
        "import udit",
        "import udit; dir(udit); udit.list_models()",
        "from udit.run.recipes import load_run; load_run('digits', ['model.width=32'])",
    ],
)
def test_configuration_needs_no_torch(statement: str) -> None:
    heavy = "{'torch', 'diffusers', 'numpy', 'sklearn', 'PIL'} & set(sys.modules)"
    code = f"import sys\n{statement}\nfound = {heavy}\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
