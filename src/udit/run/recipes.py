"""Reads recipes, ``run.yaml`` and ``config.json``: the only module of configuration that opens files."""

from __future__ import annotations

import json
import logging
import shlex
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from udit import hub
from udit.demos.find import folder_of, is_demo
from udit.errors import UserError, nearest, require_list
from udit.files import meant
from udit.run.config import Run
from udit.run.resolve import resolve
from udit.run.start import DECIDED

log = logging.getLogger(__name__)


def list_recipes() -> dict[str, str]:
    """Names of the shipped recipes, each with the comment on its first line."""
    found = {}
    for entry in sorted(resources.files("udit.recipes").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").split("\n", 1)[0]
            found[entry.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return found


def load_run(
    recipe: str,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    absent: bool = False,
    model: dict[str, Any] | None = None,
) -> Run:
    """The resolved run of a recipe's name or a YAML file, with ``key.path=value`` overrides.

    Args:
        recipe: the name or the file.
        overrides: ``key.path=value`` each.
        absent: a folder of images may be missing, see ``resolve``.
        model: plain keys in place of the recipe's whole ``model`` section.

    Raises:
        UserError: no such recipe (the nearest is named), bad YAML, an unknown key, or a value out of range.
    """
    require_list("overrides", overrides)
    values = read_recipe(recipe) | ({} if model is None else {"model": dict(model)})
    said = parse_overrides(list(overrides))
    for key in ("latents", "init_from"):
        if values.get(key) is not None:  # the recipe is written for one of its own, so that nothing in it gives way
            said.pop(key, None)
    if said.get("init_from") is not None:
        values = {key: value for key, value in values.items() if key not in DECIDED}  # the weights have their own
    named = next((word.partition("=")[2] for word in overrides if word.startswith("model=")), "")
    own = values.get("model")
    if named and not named.startswith("{") and isinstance(own, dict):
        log.info("model=%s takes the place of the recipe's model (%s)", named, ", ".join(own))
        del values["model"]
    for override in overrides:
        _apply(values, override)
    return resolve(values, absent=absent, said=said)


def forked_run(folder: Path, out: Path, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """The run of a run folder, in another folder and with some keys changed; it starts from no other weights.

    Args:
        folder: of the run that was begun.
        out: of the new one.
        overrides: ``key.path=value`` each.

    Raises:
        UserError: no run there, an unknown key, or a value out of range.
    """
    require_list("overrides", overrides)
    values = read_yaml(folder / "run.yaml")
    if origin := values.get("init_from"):
        log.info("the run started from %s; its fork starts from a checkpoint", origin)
    for override in overrides:
        _apply(values, override)
    return resolve(values | {"out": str(out), "init_from": None})


def read_recipe(recipe: str) -> dict[str, Any]:
    """The plain values of a shipped recipe or a YAML file."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or "/" in recipe:
        if path.is_dir():
            raise _instead(path)
        if not path.is_file():
            raise UserError(f"no recipe file {recipe!r}; `udit train --list` shows the shipped recipes")
        return read_yaml(path)
    recipes = list_recipes()
    if recipe not in recipes:
        if path.is_dir():
            raise _instead(path)
        raise UserError(f"no recipe {recipe!r}{nearest(recipe, recipes)} (`udit train --list` shows all)")
    text = (resources.files("udit.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    return {"name": recipe, **parse_yaml(text, recipe)}


def _instead(path: Path) -> UserError:
    """What to write in the place of a folder, which is no recipe: of a run, or of images."""
    if (path / "run.yaml").is_file():
        return UserError(f"{path} is the folder of a run; to go on with it: `udit train {path / 'run.yaml'}`")
    return UserError(f"{path} is no recipe; to train on images of your own: `udit train folder data.root={path}`")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML 1.2 mapping as plain values; duplicate keys are refused.

    Raises:
        UserError: not YAML, or not a mapping.
    """
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is not valid YAML: {detail}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where} holds no mapping of keys to values")
    return values


def read_origin(source: str, out: Path) -> dict[str, Any]:
    """The sections that the weights of ``init_from`` decide; of a run that has begun, its own.

    Args:
        source: a model folder, a run folder or a hub id.
        out: the run folder; a run that has begun from ``source`` does not need it any more.

    Returns:
        Plain ``model``, ``diffusion``, ``codec``, ``sampling`` and ``text`` or None, and ``init_from``: ``source``, or
        a hub id with the commit that the sections are of, so that the weights are of the same one.

    Raises:
        UserError: there is nothing of the kind.
    """
    begun = out.expanduser() / "run.yaml"
    if begun.is_file():
        values = read_yaml(begun)
        origin = values.get("init_from")
        if isinstance(origin, str) and source in (origin, hub.unpinned(origin)):
            return _decided(values, begun) | {"init_from": origin}
    folder = folder_of(source) if is_demo(source) else Path(source).expanduser()
    if folder.is_file():
        raise UserError(
            f"init_from is {source!r}, a file; convert it once: `udit convert {shlex.quote(source)} FOLDER --model "
            "NAME`, then give the folder"
        )
    origin = source
    if not folder.is_dir():
        if not hub.is_hub_id(source):
            raise UserError(
                f"init_from is {source!r}, no folder"
                f"{meant(source) or '; give a model folder, a run folder or a hub id (owner/name)'}"
            )
        folder = hub.describe(source, what=f"init_from is {source!r}, no folder")
        origin = hub.pinned(source, folder)
    path = folder / "run.yaml"
    if path.is_file():
        return _decided(read_yaml(path), path) | {"init_from": origin}
    if (found := hub.diffusers_class(folder)) is not None:
        raise UserError(
            f"init_from is {source!r}, diffusers' {found}; convert it once: `udit convert {shlex.quote(source)} "
            "FOLDER`, then give the folder"
        )
    path = folder / "config.json"
    return _decided(_read_json(source, path), path) | {"init_from": origin}


def _read_json(source: str, path: Path) -> Any:
    """The ``config.json`` of a model folder that ``init_from`` names."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(
            f"init_from is {source!r} and {path} cannot be read ({detail}); give a model or run folder, or a hub id"
        ) from None


def _decided(values: Any, path: Path) -> dict[str, Any]:
    sections = {key: values.get(key) if isinstance(values, dict) else None for key in DECIDED}
    if isinstance(sections["codec"], str) or sections["codec"] is None:
        sections["codec"] = {"kind": sections["codec"] or "identity"}
    for key, section in sections.items():
        if not isinstance(section, dict) or (key == "diffusion" and not isinstance(section.get("kind"), str)):
            raise UserError(f"{path} has no section {key!r}; init_from takes a folder that udit wrote")
    return sections | {"text": values.get("text")}


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """Nested plain values of ``key.path=value`` words.

    Raises:
        UserError: a word is no override.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is no override; write KEY.PATH=VALUE, e.g. training.lr=1e-3")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        raise UserError(f"the value of {override!r} is not valid YAML; quote it") from None
    if tight := _tight(value):
        raise UserError(
            f"{override!r} has {tight!r} for a key; a colon takes a space after it: {tight.replace(':', ': ')}"
        )
    *parents, last = key.split(".")
    node = values
    for i, parent in enumerate(parents):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        elif isinstance(child, str) and parent in ("model", "codec"):
            child = node[parent] = {"name" if parent == "model" else "kind": child}
        elif not isinstance(child, dict):
            raise UserError(f"unknown key {key!r}; {'.'.join(parents[: i + 1])!r} is a value, not a section")
        node = child
    if key == "model" and isinstance(value, str) and isinstance(values.get("model"), dict):
        raise UserError(f"model={value} would drop the model keys given before it; give model={value} first")
    node[last] = value


def _tight(value: Any) -> str | None:
    """A key of a value, or of its parts, that is one with its value since no space follows the colon; None without."""
    if isinstance(value, dict):
        found = (key for key, part in value.items() if isinstance(key, str) and ":" in key and part is None)
        return next(found, None) or next(filter(None, map(_tight, value.values())), None)
    return next(filter(None, map(_tight, value)), None) if isinstance(value, list) else None
