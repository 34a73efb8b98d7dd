"""Results that are kept as a JSON file of their own."""

from __future__ import annotations

import os
from pathlib import Path

from udit.spec.base import Spec


class Record(Spec):
    """A spec that can be written."""

    def write(self, path: Path) -> None:
        """Writes all fields as JSON, whole or not at all.

        Raises:
            OSError: the disk refuses it.
        """
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)
