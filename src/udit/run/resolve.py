"""From a recipe's plain values to a complete ``Run``: the steps in their order, and what each of them decides.

A step uses what earlier steps found, and calls the modules that read data sets, latent caches, VAEs and initial
weights. None of them imports torch, so that a wrong key or value is reported within a second.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udit.data.cache_config import FREE_CODEC_KEYS, FREE_DATA_KEYS, follow_cache
from udit.data.codec_config import FieldCodec, codec_from
from udit.data.condition_config import ConditionConfig
from udit.data.config import DataConfig, DataInfo, FieldsData, ImageFiles
from udit.diffusion.config import DDPMConfig, process_from
from udit.errors import UserError, nearest, resembling
from udit.models.catalog import families, find
from udit.models.config import ModelConfig
from udit.run.config import Run, model_from
from udit.run.rules import check
from udit.run.start import check_language_model, follow_start, trained_on
from udit.spec.base import Spec, parse, parse_kind
from udit.spec.words import shown
from udit.text.config import TextConfig

log = logging.getLogger(__name__)


@dataclass
class Draft:
    """A run on its way to being complete.

    A key that several places give is decided by the first of: the command line, what the command line names (a latent
    cache, initial weights), the recipe. What differs from the recipe is told. Within a recipe that names a latent cache
    itself, a key that does not match the cache is an error.
    """

    values: dict[str, Any]
    """Sections and keys, plain or as specs; complete after the last step."""
    absent: bool = False
    """Whether a folder of images may be missing."""
    said: Mapping[str, Any] | None = None
    """What the command line says, as nested plain values; None where nobody knows, then it said all of ``values``."""
    told: list[str] = field(default_factory=list)
    """What the user should hear of: recipe's values that gave way, and an image size that is not the weights'."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Plain sections of the weights that the run starts with (``read_origin``); from ``initial_weights`` on."""
    images: DataInfo | None = None
    """Of the images; from ``latent_cache`` or ``data_set`` on."""
    seen: DataInfo | None = None
    """Of what the network sees of an image; from ``codec`` on."""

    def names(self, key: str) -> bool:
        """Whether the command line names a latent cache or initial weights, to which a recipe's values give way."""
        return self.said is not None and self.said.get(key) is not None

    def says(self, section: str, key: str) -> bool:
        """Whether a key of a section is the user's word: the command line's, or of values whose origin is not known."""
        given = self.values if self.said is None else self.said
        return key in _keys(given.get(section)) or (key == "num_classes" and key in given)


def resolve(values: dict[str, Any], *, absent: bool = False, said: Mapping[str, Any] | None = None) -> Run:
    """A complete Run from a recipe's plain values; the model's boundary follows the data where it is not given.

    Args:
        values: of the recipe.
        absent: a folder of images may be missing; then the model's own number of classes is taken, without names.
        said: those of ``values`` that the command line gives, see ``Draft``; all of them if not given.

    Raises:
        UserError: unknown keys, values out of range, or parts that do not fit each other.
    """
    draft = Draft(dict(values), absent, said)
    for step in STEPS:
        step(draft)
    run = parse(Run, draft.values)
    assert draft.seen is not None
    check(run, draft.seen)
    for line in draft.told if os.environ.get("RANK", "0") == "0" else ():  # of a launcher's processes, the first
        log.info(line)
    return run


def known_keys(draft: Draft) -> None:
    """Refuses unknown keys, and plain values where a section belongs."""
    for key, value in draft.values.items():
        if key not in Run.model_fields and key != "num_classes":
            from udit.run.keys import keys_like

            meant = [] if resembling(key, list(Run.model_fields)) else keys_like(key)
            hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else nearest(key, Run.model_fields)
            raise UserError(f"unknown key {key!r}{hint}")
        if key in ("data", "diffusion", "training", "sampling", "evaluation") and not isinstance(value, dict | Spec):
            raise UserError(f"{key} is {shown(value)}; it is a section with keys of its own, e.g. {key}.KEY=VALUE")
    model = draft.values.get("model")
    if model is not None and not isinstance(model, str | dict | Spec):
        raise UserError(f"model is {shown(model)}; name one, e.g. model=U-DiT-S, or give its keys, e.g. model.width=32")


def name_and_folder(draft: Draft) -> None:
    """``name`` and ``out``, where they are not given."""
    draft.values.setdefault("name", "run")
    draft.values.setdefault("out", f"runs/{draft.values['name']}")


def class_count(draft: Draft) -> None:
    """Moves ``num_classes``, which may be given outside the model's section, into it."""
    count = draft.values.pop("num_classes", None)
    if count is not None:
        model = draft.values.get("model")
        keys = {"name": model} if isinstance(model, str) else dict(model or {})
        draft.values["model"] = keys | {"num_classes": count}


def initial_weights(draft: Draft) -> None:
    """With ``init_from``: model, diffusion, codec and sampling are those of the weights where the run has none."""
    source, model = draft.values.get("init_from"), draft.values.get("model")
    if source is None:
        return
    if not isinstance(source, str):
        raise UserError(f"init_from is {shown(source)}; give a model folder, a run folder or a hub id")
    from udit.run.recipes import read_origin

    model = {"name": model} if isinstance(model, str) else model
    if isinstance(model, dict) and "name" in model:
        model = find(str(model["name"])).config.model_dump(mode="json") | model
        del model["name"]
    origin = draft.origin = read_origin(source, Path(str(draft.values["out"])))
    draft.values = follow_start(draft.values | {"model": model, "init_from": origin["init_from"]}, origin)


def image_size(draft: Draft) -> None:
    """With ``init_from``: images have the size and channels that the weights saw in training, where none are said."""
    data, source = draft.values.get("data"), draft.values.get("init_from")
    if source is None or draft.values.get("latents") is not None or not isinstance(data, dict):
        return
    if data.get("kind") not in [spec.model_fields["kind"].default for spec in ImageFiles.__subclasses__()]:
        return  # a data set that has a size of its own
    for key, value in trained_on(draft.origin.get("model", {}), _keys(draft.values.get("codec"))).items():
        old = data.get(key, ImageFiles.model_fields[key].default)
        if not (draft.says("data", key) if draft.names("init_from") else key in data):
            data = draft.values["data"] = data | {key: value}
            if old != value:
                draft.told.append(f"data.{key} is {value}, that of the weights of init_from={source}, and not {old}")
        elif old != value:
            draft.told.append(f"data.{key} is {old} and the weights of init_from={source} were trained with {value}")


def latent_cache(draft: Draft) -> None:
    """With ``latents``: data and codec are those of the latent cache where the run has none."""
    root = draft.values.get("latents")
    if root is None:
        return
    if not isinstance(root, str | Path):
        raise UserError(f"latents is {shown(root)}; give the folder that `udit encode` wrote")
    from udit.data.latents import read_manifest

    manifest = read_manifest(Path(root))
    given = {key: _plain(draft.values.get(key)) for key in ("data", "codec")}
    if isinstance(given["codec"], str):
        given["codec"] = {"kind": given["codec"]}
    if draft.names("latents"):
        plan = {"data": manifest.plan.data.model_dump(mode="json"), "codec": manifest.codec.model_dump(mode="json")}
        for section, free in (("data", FREE_DATA_KEYS), ("codec", FREE_CODEC_KEYS)):
            given[section] = _giving_way(draft, section, _keys(given[section]), plan[section], free)
    draft.values |= follow_cache(given, manifest, Path(root))
    draft.images = manifest.plan.info


def data_set(draft: Draft) -> None:
    """The data's config, and what the data set holds; a latent cache has both already."""
    if "data" not in draft.values:
        raise UserError("data is missing; name a source, e.g. data.kind=digits or data.kind=folder data.root=PATH")
    section = draft.values["data"]
    if draft.absent and isinstance(section, dict) and section.get("kind") == "folder":
        section = {"root": "PATH", **section}
    data = draft.values["data"] = parse_kind(DataConfig, section, "data")
    if draft.images is None:
        from udit.data.describe import described

        draft.images = described(data, draft.absent)


def noising_process(draft: Draft) -> None:
    """The noising process's config."""
    draft.values["diffusion"] = process_from(draft.values.get("diffusion", DDPMConfig()))


def codec(draft: Draft) -> None:
    """The codec's config with what its files decide, and what the network sees of an image."""
    from udit.data.vae import complete

    data, section = draft.values["data"], draft.values.get("codec", {})
    if isinstance(data, FieldsData):
        section = {"kind": "field", **_keys(section)}
    found = codec_from(section)
    if isinstance(found, FieldCodec) and isinstance(data, FieldsData) and None in (found.mean, found.std):
        from udit.data.fields import statistics

        mean, std = statistics(data)
        found = found.replace(mean=found.mean or mean, std=found.std or std)
    found = draft.values["codec"] = complete(found)
    assert draft.images is not None
    draft.seen = found.seen(draft.images)


def language_model(draft: Draft) -> None:
    """With ``text``: what the language model's files decide of it."""
    if (given := draft.values.get("text")) is None:
        return
    from udit.text.files import complete

    section = _keys(given)
    if draft.said is not None and draft.says("text", "source"):  # what a recipe says of its own gives way
        own = {"revision", "width", "depth", "sha256"} - {key for key in section if draft.says("text", key)}
        section = {key: value for key, value in section.items() if key not in own}
    draft.values["text"] = complete(parse(TextConfig, section or given, where="text"))


def model(draft: Draft) -> None:
    """The model's config; channels, size and classes are those of the data where they are not given."""
    section, seen = draft.values.get("model"), draft.seen
    assert seen is not None
    if section is None:
        raise UserError("model is missing; name one, e.g. model=U-DiT-S (`udit models` lists all)")
    section = {"name": section} if isinstance(section, str) else dict(section)
    boundary: dict[str, Any] = {"in_channels": seen.channels, "input_size": [seen.height, seen.width]}
    if draft.values["data"].condition is not None:
        boundary["condition_channels"] = _beside(draft.values["data"].condition, seen)
    if seen.frames is not None and "frames" in _fields(section):
        boundary["frames"] = seen.frames
    base = _named(section)
    if base is not None and base.condition_shape:
        boundary["num_classes"] = 0
    elif seen.id2label or not seen.labelled:
        boundary["num_classes"] = len(seen.id2label)
    if (text := draft.values.get("text")) is not None and "context" in _fields(section):
        boundary |= {"num_classes": 0, "context": {"tokens": text.tokens, "width": text.width}}
    if draft.names("latents"):
        section = _boundary_giving_way(draft, section, boundary)
    if not draft.values["diffusion"].learns_variance:
        boundary["learn_sigma"] = False
    if draft.values["diffusion"].two_times:
        boundary |= {"second_time": True, "time": "unit"}  # an index's features are steeper, and so are derivatives
    draft.values["model"] = model_from(boundary | section)
    if text is not None:
        from udit.text.files import with_layers

        text = draft.values["text"] = with_layers(text, draft.values["model"].readers)
        check_language_model(text, draft.origin.get("text"), draft.values.get("init_from"))


def _fields(section: Mapping[str, Any]) -> Collection[str]:
    """Keys of the family that a model's section names; none where it names nothing known, which is told later."""
    base = _named(section)
    return () if base is None else type(base).model_fields


def _named(section: Mapping[str, Any]) -> ModelConfig | None:
    """The config that a model's section starts from; None where it names nothing known, which is told later."""
    name, family = section.get("name"), families().get(str(section.get("family")))
    if name is not None:
        return find(str(name)).config
    return None if family is None else family.model_validate({})


def time_shift(draft: Draft) -> None:
    """A shift of training times by resolution becomes a number, that of the size which the network sees."""
    process, model = draft.values["diffusion"], draft.values["model"]
    if getattr(process, "shift", None) == "resolution":
        height, width = model.size
        draft.values["diffusion"] = process.replace(shift=(height * width) ** 0.5 / process.shift_side)


def class_names(draft: Draft) -> None:
    """``id2label`` is the data's; an unconditional model has none."""
    assert draft.seen is not None
    names = draft.seen.id2label if draft.values["model"].num_classes else ()
    if draft.values.get("id2label", names) not in (names, list(names)):
        given = shown(draft.values["id2label"])
        raise UserError(f"id2label is {given} and the data says {shown(names)}; leave it out")
    draft.values["id2label"] = names


def sampler(draft: Draft) -> None:
    """The sampler is the noising process's first where none is given, with the steps that the process is meant for."""
    process = draft.values["diffusion"]
    _default(draft, "sampling", "sampler", process.samplers()[0])
    if process.sampling_steps is not None:
        _default(draft, "sampling", "steps", process.sampling_steps)


def label_dropout(draft: Draft) -> None:
    """Labels are not dropped by default where the model has no null label."""
    if draft.values["model"].null_label is None and draft.values.get("text") is None:
        _default(draft, "training", "label_dropout", 0.0)


def without_labels(draft: Draft) -> None:
    """Of images without labels a model is unconditional, and a recipe's guidance gives way, as there is none."""
    assert draft.seen is not None
    if draft.seen.labelled or draft.values["model"].num_classes or draft.values.get("text") is not None:
        return
    sampling = _keys(draft.values.get("sampling"))
    where = ", as they lie in no class folders" if _keys(draft.values.get("data")).get("kind") == "folder" else ""
    told = f"the images have no labels{where}: the model is unconditional"
    if not draft.says("sampling", "guidance") and sampling.get("guidance", 1.0) != 1:
        draft.values["sampling"] = sampling | {"guidance": 1.0}
        told += f"; sampling.guidance is 1, and the recipe's {shown(sampling['guidance'])} gives way"
    draft.told.append(told)


Step = Callable[[Draft], None]
STEPS: tuple[Step, ...] = (
    known_keys,
    name_and_folder,  # before initial_weights, which asks the run's folder first
    class_count,
    initial_weights,  # before data and codec, which it may decide
    image_size,  # needs the codec of the weights
    latent_cache,  # before data and codec, which it decides
    data_set,
    noising_process,
    codec,  # needs the images
    language_model,  # before the model, whose context it decides
    model,  # needs what the codec makes of them, and the process
    time_shift,  # needs the model's size
    class_names,  # needs the model's number of classes
    sampler,  # needs the process
    label_dropout,  # needs the model
    without_labels,  # needs the images and the model
)
"""What ``resolve`` does, in this order."""


def _beside(condition: ConditionConfig, seen: DataInfo) -> int:
    """Channels of a condition.

    Raises:
        UserError: there is no such condition of these images.
    """
    try:
        return condition.channels(seen)
    except ValueError as error:
        raise UserError(str(error)) from None


def _giving_way(
    draft: Draft, section: str, given: dict[str, Any], cached: dict[str, Any], free: frozenset[str]
) -> dict[str, Any]:
    """A section without the recipe's keys that differ from the latent cache's; the user's own stay."""
    kept = {}
    for key, value in given.items():
        if draft.says(section, key) or (key in cached and (key in free or value == cached[key])):
            kept[key] = value
        elif key in cached:
            draft.told.append(
                f"{section}.{key} is {shown(cached[key])}, that of the latent cache {str(draft.values['latents'])!r}; "
                f"the recipe's {shown(value)} gives way"
            )
    return kept


def _boundary_giving_way(draft: Draft, model: dict[str, Any], boundary: dict[str, Any]) -> dict[str, Any]:
    """A model's section without the recipe's keys that differ from what the latent cache holds."""
    kept = {}
    for key, value in model.items():
        wanted = boundary.get(key, value)
        size = [value, value] if key == "input_size" and isinstance(value, int) else value
        unconditional = key == "num_classes" and value == 0
        if draft.says("model", key) or size == wanted or unconditional:
            kept[key] = value
        else:
            draft.told.append(
                f"model.{key} is {shown(wanted)}, that of the latent cache {str(draft.values['latents'])!r}; "
                f"the recipe's {shown(value)} gives way"
            )
    return kept


def _keys(section: Any) -> dict[str, Any]:
    """A section as a dict, also where it is given by one word, a codec's kind."""
    section = _plain(section)
    return {"kind": section} if isinstance(section, str) else dict(section) if isinstance(section, Mapping) else {}


def _default(draft: Draft, section: str, key: str, value: Any) -> None:
    """Sets a key of a plain section where it is not given; a spec is complete already."""
    values = draft.values.get(section, {})
    if isinstance(values, dict):
        draft.values[section] = {key: value} | values


def _plain(section: Any) -> Any:
    return section.model_dump() if isinstance(section, Spec) else section
