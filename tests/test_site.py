"""The documentation as a site: every page has its place, the build warns of nothing, no other host is asked."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|srcset|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
)
"""What a browser fetches by itself, from another host; a link to click on is none."""
STYLE = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)")


def test_every_page_is_in_the_navigation_and_in_llms_txt() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    index = (ROOT / "llms.txt").read_text(encoding="utf-8")
    names = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)) == names
    assert set(re.findall(r"\]\(docs/(\S+\.md)\)", index)) == names


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    import json

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(
        build, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


@pytest.mark.slow
def test_the_site_is_whole_and_names_no_other_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # 404.html beside them
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert LOADED.findall(text) == [], page.name
        assert STYLE.findall(text) == [], page.name
    for sheet in site.rglob("*.css"):
        assert STYLE.findall(sheet.read_text(encoding="utf-8")) == [], sheet.name
    index = (site / "llms.txt").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([\w/.-]+\.html)\)", index)
    assert len(targets) == len(list(DOCS.rglob("*.md")))
    assert all((site / target).is_file() for target in targets)
    assert (site / "notebooks" / "digits.ipynb").is_file()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<link rel=stylesheet href="https://a.org/x.css">', ["https://a.org/x.css"]),
        ("<script async src=//a.org/x.js>", ["//a.org/x.js"]),
        ('<a href="https://a.org">', []),
        ('<img src="images/a.png">', []),
    ],
)
def test_what_is_fetched_from_another_host_is_found(text: str, found: list[str]) -> None:
    assert LOADED.findall(text) == found


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on loopback, by its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("opened", ["served", "from the disk"])
def test_a_browser_asks_no_other_host_and_finds_words(site: Path, opened: str) -> None:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    where = served(site) if opened == "served" else contextlib.nullcontext(site.as_uri() + "/")
    with where as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        page = browser.new_page(viewport={"width": 400, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "dit-to-udit.html", "reference/keys.html", "systems/u-dit.html", "models.html"):
            page.goto(base + name)
            page.wait_for_load_state("load")
            broken = (
                "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
            )
            assert page.evaluate(broken) == []
            assert page.evaluate("document.documentElement.scrollWidth") == 400, f"{name} is wider than the screen"
        page.goto(base + "index.html")
        page.click("label[for=__search]")
        page.locator("input[name=query]").press_sequentially("memorisation")
        page.wait_for_selector(".md-search-result__item a", timeout=30_000)
        browser.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((base, "data:", "blob:", "about:"))] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= 5
