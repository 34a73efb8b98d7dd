"""Results that are kept as a JSON file of their own."""

from __future__ import annotations

from pathlib import Path

from udit.files import write_text
from udit.spec.base import Spec


class Record(Spec):
    """A spec that can be written."""

    def write(self, path: Path) -> None:
        """Writes all fields as JSON, whole or not at all.

        Raises:
            OSError: the disk refuses it.
        """
        write_text(path, self.model_dump_json(indent=2) + "\n")
