"""Names of the models that come with the library; free of torch.

Each is a model folder beside this file: the fused averaged weights of a shipped recipe of the same name, stored in
float16 and computed with in float32.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from udit.errors import UserError

PREFIX = "demo:"


def names() -> list[str]:
    """All of them, e.g. ``digits``."""
    return sorted(entry.name for entry in resources.files("udit.demos").iterdir() if (entry / "config.json").is_file())


def is_demo(model: str | Path) -> bool:
    """Whether a user's word for a model is ``demo:NAME``."""
    return str(model).startswith(PREFIX)


def name_of(model: str | Path) -> str:
    """The name behind the prefix.

    Raises:
        UserError: there is no such model.
    """
    name, known = str(model).removeprefix(PREFIX), names()
    if name not in known:
        raise UserError(f"no model {str(model)!r}; there are {', '.join(PREFIX + one for one in known)}")
    return name


def folder_of(model: str | Path) -> Path:
    """The model folder of ``demo:NAME``.

    Raises:
        UserError: there is no such model.
    """
    return Path(str(resources.files("udit.demos") / name_of(model)))
