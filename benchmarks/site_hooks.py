"""What mkdocs does beside its own work (``hooks`` in mkdocs.yml): llms.txt goes to the root of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_post_build(config: Any) -> None:
    """Copies llms.txt with links to the built pages in place of their sources."""
    text = (Path(config.config_file_path).parent / "llms.txt").read_text(encoding="utf-8")
    linked = re.sub(r"\]\(docs/([\w/-]+)\.md\)", r"](\1.html)", text)
    (Path(config.site_dir) / "llms.txt").write_text(linked, encoding="utf-8")
