"""What a client sends, and the images that it means; the words are those of ``udit.generate``. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from udit.diffusion.config import Level, SamplingConfig, check_sampler
from udit.errors import UserError, nearest
from udit.run.system import SystemConfig
from udit.serving.dispatch import Facts
from udit.serving.limits import Limits, mistaken
from udit.serving.queue import Order
from udit.spec.base import MAX_SEED, Seed, Spec, parse

Output = Literal["png", "grid", "npz", "json"]
MOST_LETTERS = 4000
"""Of a prompt; a language model reads its first tokens anyway."""
NAME = r"[A-Za-z0-9_.-]{1,64}"


class SampleRequest(Spec):
    """Images that are wanted: one for each seed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str | None = None
    """Which of the server's models; the first if not given."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """One per image; the same seed, label and setting give the same image."""
    labels: tuple[int | str, ...] | None = None
    """Class names or numbers, repeated in turn; all classes in turn if not given."""
    prompt: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None
    """For a model that takes texts: what the images show; "" for no text."""
    negative: Annotated[str, Field(max_length=MOST_LETTERS)] = ""
    """A prompt that guidance compares with in place of the empty one."""
    sampling: dict[str, Any] | None = None
    """The fields that differ from the model's own setting, e.g. {"steps": 20, "guidance": 2}."""
    quality: Level | None = None
    """In place of sampling: what `udit tune` found, or a default."""
    output: Output | None = None
    """png (of one image), grid (all in one PNG), npz (arr_0 and arr_1) or json (PNGs in base64); png for one image and
    json for several if not given."""
    id: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    """Chosen by the client, who can then cancel it: DELETE /sample/ID."""


def read_request(body: bytes) -> SampleRequest:
    """The request in a body.

    Raises:
        Refusal: it is no JSON object, or has an unknown key or a value that its field refuses.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("(")[0]
        raise mistaken(f"the body is no JSON: {detail.strip()}", 400) from None
    if not isinstance(values, dict):
        raise mistaken('the body is no JSON object; write e.g. {"seeds": [0], "labels": ["cat"]}', 400)
    try:
        return parse(SampleRequest, values)
    except UserError as error:
        raise mistaken(str(error)) from None


def order_of(request: SampleRequest, facts: Facts, limits: Limits) -> Order:
    """The images that a request means.

    Raises:
        Refusal: more than the server takes on, unknown labels, or a setting that does not fit the model.
    """
    count, own = len(request.seeds), facts.config.sampling
    _, height, width = facts.shape
    if count > limits.images:
        raise mistaken(f"seeds are {count}; a request takes at most {limits.images}, so ask several times")
    if count * height * width > limits.pixels:
        most = limits.pixels // (height * width)
        raise mistaken(f"seeds are {count}, of images of {height}x{width}; a request takes at most {most} of them")
    if request.sampling is not None and request.quality is not None:
        raise mistaken(f"sampling is given and quality {request.quality} sets it; leave one of them out")
    try:
        if request.labels is not None and len(request.labels) > count:  # before each of them is looked up
            raise UserError(f"labels are {len(request.labels)} and seeds {count}; give a seed for each label")
        _check_prompt(request, facts.config)
        given = facts.classes.each(request.labels, count)
        sampling = facts.quality[request.quality] if request.quality else changed(own, request.sampling or {})
        check_sampler(sampling.sampler, type(facts.config.diffusion), sampling.steps)
    except UserError as error:
        raise mistaken(str(error)) from None
    if request.negative and sampling.guidance == 1:
        raise mistaken("negative is given and guidance 1 compares with nothing; give a sampling.guidance above 1")
    if sampling.steps > limits.steps:
        raise mistaken(f"sampling.steps is {sampling.steps}; this server takes at most {limits.steps}")
    labels = None if given is None else tuple(label for label in given if isinstance(label, int))
    return Order(request.seeds, labels, sampling, request.prompt, request.negative)


def _check_prompt(request: SampleRequest, config: SystemConfig) -> None:
    """Refuses a prompt where the model takes none, and none where it takes one (UserError)."""
    if request.prompt is None and request.negative:
        raise UserError("negative is given and no prompt; give one")
    if request.prompt is not None:
        _ = config.prompted
    if config.text is not None and request.labels is not None:
        raise UserError("labels were given to a model that takes texts; give a prompt")
    if config.text is not None and request.prompt is None:
        raise UserError('the model takes texts and was given none; give a prompt, or "" for no text')


def changed(own: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    """A setting with some fields changed; unlike ``replace`` it takes any text as a key, and names its section.

    Raises:
        UserError: an unknown field, or a value that it refuses.
    """
    return parse(SamplingConfig, {key: getattr(own, key) for key in type(own).model_fields} | changes, "sampling")


def named(models: list[str]) -> dict[str, str]:
    """The models of a command line by the names that requests have for them.

    Args:
        models: each a folder or a hub id, or NAME=MODEL.

    Raises:
        UserError: none, or two of one name.
    """
    found: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals or "/" in name:  # a folder may have an equals sign in its name
            name, model = Path(text).name or text, text
        if name in found:
            raise UserError(f"two models are called {name!r}; give one of them another name, e.g. {name}-2={model}")
        found[name] = model
    if not found:
        raise UserError("no model is named; give a run folder, a model folder or a hub id")
    return found


def chosen(name: str | None, known: list[str]) -> str:
    """The model that a request means.

    Raises:
        Refusal: there is none of that name.
    """
    if name is None:
        return known[0]
    if name not in known:
        raise mistaken(f"no model {name[:100]!r}{nearest(name[:100], known)}", 404)
    return name


def schema() -> dict[str, Any]:
    """The JSON schema of a request."""
    whole = SampleRequest.model_json_schema()
    fields = SamplingConfig.model_json_schema()["properties"]
    for values in fields.values():
        values.pop("default", None)  # a model has its own
    whole["properties"]["sampling"] |= {
        "anyOf": [{"type": "object", "properties": fields, "additionalProperties": False}, {"type": "null"}]
    }
    whole["properties"]["seeds"]["items"] |= {"maximum": MAX_SEED}
    return whole
