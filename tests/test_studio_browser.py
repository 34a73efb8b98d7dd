"""The studio in a real browser: a person's way from the start to a saved image, by mouse and by keyboard alone."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from PIL import Image

import udit
from studio_page import serving, slow_steps, tiny_run
from test_prompts import system_of
from text_models import language_model
from udit.images import read_settings
from udit.studio.serve import Server

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page, Playwright

pytestmark = pytest.mark.slow
CHROMIUM = "/usr/bin/chromium"
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
Opened = Callable[..., "Page"]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one that has only begun, and a model of texts, which is older."""
    folder = tmp_path_factory.mktemp("place") / "runs"
    udit.save(system_of(language_model(folder.parent / "language"), depth=2, width=16, heads=2), folder / "texts")
    tiny_run(folder / "pets")
    (folder / "begun").mkdir()
    shutil.copy(folder / "pets" / "run.yaml", folder / "begun")
    shutil.copytree(folder / "images-of-pets", folder.parent / "images")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with mock.patch("udit.studio.training.SECONDS", 0.5), serving(place) as made:
        yield made


@pytest.fixture
def opened(playwright: Playwright, server: Server, tmp_path: Path) -> Iterator[Opened]:
    """Opens the page in a new browser; at the end, that nothing was asked of another host and nothing was refused."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    refused: list[str] = []
    complaints: list[str] = []

    def open_page(width: int = 1280, height: int = 900, scheme: Any = "light") -> Page:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / f"profile-{len(contexts)}",
            executable_path=CHROMIUM,
            args=list(QUIET),
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        )
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on(
            "response", lambda got: refused.append(got.url) if got.status >= 400 and asked_for(got.url) else None
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type == "error" and asked_for(said.location["url"]) else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url)
        panel(page).get_by_role("button", name="Draw", exact=True).wait_for()
        panel(page).get_by_label("Sampler").wait_for()
        page.wait_for_function("() => [...document.querySelectorAll('input')].some(field => field.value === 'ddim')")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert len(asked) > 20
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}
    assert (refused, complaints) == ([], [])


def asked_for(url: str) -> bool:
    """Not what gradio asks for in vain: how far an upload is that has ended by then."""
    return "/upload_progress" not in url


def panel(page: Page) -> Locator:
    """The tab that is open."""
    return page.locator("[role=tabpanel]:visible").first


def go_to(page: Page, name: str) -> Locator:
    """Opens a tab, on a narrow screen from the menu of those that have no room."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    return panel(page)


def choose(shown: Locator, label: str, *names: str) -> None:
    """Chooses from a list by typing."""
    field = shown.get_by_label(label, exact=True)
    for name in names:
        field.click()
        field.fill(name)
        field.press("Enter")
    field.press("Escape")


def drawn(shown: Locator, text: str) -> None:
    """Waits for the line at a drawing's end."""
    shown.get_by_role("status").filter(has_text=text).wait_for()


def saved(page: Page, shown: Locator, name: str, path: Path) -> Path:
    """Clicks on a button that saves a file."""
    with page.expect_download() as download:
        shown.get_by_role("button", name=name).click()
    download.value.save_as(path / download.value.suggested_filename)
    return path / download.value.suggested_filename


def test_a_person_draws_and_saves_a_grid(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = panel(page)
    assert page.title() == "udit studio"
    assert shown.get_by_label("Model").input_value() == "pets, newest checkpoint"
    assert shown.get_by_label("Steps").input_value() == "4"
    assert shown.get_by_role("button", name="Save grid").is_disabled()
    choose(shown, "Classes", "dog")
    shown.get_by_label("Seeds").fill("3, 5, 8")
    shown.get_by_label("Steps").fill("7")
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "3 images in")
    assert [image.get_attribute("alt") for image in shown.locator("figure img").all()] == [
        f"dog · seed {seed}" for seed in (3, 5, 8)
    ]
    path = saved(page, shown, "Save grid", tmp_path)
    assert path.name == "pets-newest-checkpoint.png"
    facts = read_settings(path)
    assert facts is not None
    assert (facts["seed"], facts["class"], facts["sampling"]["steps"]) == ([3, 5, 8], ["dog"] * 3, 7)
    with zipfile.ZipFile(saved(page, shown, "Save all", tmp_path)) as archive:
        assert len(archive.namelist()) == 4
    shown.get_by_text("The same as a command").click()
    assert "udit sample" in shown.locator("pre").inner_text()
    shown.get_by_role("button", name="Next seeds").click()
    drawn(shown, "3 images in")
    page.wait_for_function("() => document.querySelector('figure img').alt === 'dog · seed 9'")
    assert shown.get_by_label("Seeds").input_value() == "9-11"


def test_the_keyboard_alone_is_enough(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    focused = """() => {
      const at = document.activeElement;
      if (at === document.body) return '';
      const labels = [...(at.labels || [])].map(each => each.innerText);
      return [at.getAttribute('aria-label'), at.innerText, ...labels].join(' ');
    }"""

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if name in page.evaluate(focused):
                return
        raise AssertionError(f"Tab does not lead to {name}")

    tab_to("Classes")
    page.keyboard.type("cat")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    tab_to("Seeds")
    page.keyboard.press("Control+a")
    page.keyboard.type("4-5")
    page.keyboard.press("Enter")
    drawn(panel(page), "2 images in")
    tab_to("Save grid (PNG)")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    download.value.save_as(tmp_path / "grid.png")
    facts = read_settings(tmp_path / "grid.png")
    assert facts is not None
    assert (facts["seed"], facts["class"]) == ([4, 5], ["cat"] * 2)
    page.reload()
    panel(page).get_by_label("Sampler").wait_for()
    tab_to("Between")
    page.keyboard.press("Enter")
    assert page.get_by_role("tab", name="Between").get_attribute("aria-selected") == "true"


def test_stop_ends_a_drawing(opened: Opened) -> None:
    page = opened()
    shown = panel(page)
    shown.get_by_label("Seeds").fill("0-49")
    shown.get_by_label("Steps").fill("100")
    shown.get_by_role("button", name="Draw", exact=True).click()
    shown.get_by_role("status").filter(has_text="Step").wait_for()
    shown.get_by_role("button", name="Stop").click()
    drawn(shown, "Stopped.")
    page.wait_for_timeout(1000)
    assert shown.get_by_role("status").inner_text() == "Stopped."
    shown.get_by_label("Seeds").fill("0")
    shown.get_by_label("Steps").fill("2")
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "2 images in")


def test_closing_the_tab_stops_its_drawing_within_a_step(opened: Opened) -> None:
    page = opened()
    with slow_steps(0.3) as ended:
        panel(page).get_by_label("Steps").fill("40")
        panel(page).get_by_role("button", name="Draw", exact=True).click()
        told = re.compile(r"Step ([2-9]|[12]\d) of 40")  # under load the browser skips some
        panel(page).get_by_role("status").filter(has_text=told).wait_for()
        done = len(ended)
        page.close()
        time.sleep(2)
        assert len(ended) <= done + 1


def test_the_browser_keeps_nothing(opened: Opened) -> None:
    page = opened()
    shown = panel(page)
    shown.get_by_label("Seeds").fill("77")
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "2 images in")
    kept = page.evaluate("async () => [{...localStorage}, {...sessionStorage}, await indexedDB.databases()]")
    assert kept == [{}, {}, []]
    assert page.context.cookies() == []
    page.reload()
    shown.get_by_label("Sampler").wait_for()
    assert shown.get_by_label("Seeds").input_value() == "0-3"


def test_what_is_wrong_is_a_line_in_the_page(opened: Opened) -> None:
    page = opened()
    shown = panel(page)
    for seeds, told in (("five", "seeds has 'five'"), ("0-60", "122 images and 100 the most")):
        shown.get_by_label("Seeds").fill(seeds)
        shown.get_by_role("button", name="Draw", exact=True).click()
        shown.get_by_role("alert").filter(has_text=told).wait_for()
    assert shown.get_by_role("alert").count() == 1


def test_an_image_is_where_drawing_starts(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = panel(page)
    Image.new("RGB", (60, 40), "white").save(tmp_path / "white.png")
    shown.get_by_role("button", name="Start from an image").click()
    shown.locator("input[type=file]").set_input_files(tmp_path / "white.png")
    shown.get_by_role("button", name=re.compile("[Rr]emove|[Cc]lear")).first.wait_for()
    shown.get_by_label("Seeds").fill("0")
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "2 images in")
    facts = read_settings(saved(page, shown, "Save grid", tmp_path))
    assert facts is not None
    assert facts["from_image"] == ["white.png"] * 2


def test_classes_and_seeds_are_passed_through(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = go_to(page, "Between")
    shown.get_by_label("Images", exact=True).fill("3")
    choose(shown, "Classes", "dog", "cat")
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "3 images in")
    assert [text.inner_text() for text in shown.locator("figcaption").all()] == ["dog · seed 0", "50%", "cat · seed 1"]
    assert read_settings(saved(page, shown, "Save grid", tmp_path)) is not None


def test_two_checkpoints_are_compared(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = go_to(page, "Compare")
    assert shown.get_by_label("Model B").input_value() == "pets, step 3"
    shown.get_by_label("Seeds").fill("0-1")
    shown.get_by_role("button", name="Compare", exact=True).click()
    drawn(shown, "4 pairs; a pixel differs by")
    assert shown.locator("figure img").count() == 8
    assert read_settings(saved(page, shown, "Save grid", tmp_path)) is not None


def test_prompts_take_the_place_of_classes(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = panel(page)
    assert not shown.get_by_label("Prompts").is_visible()
    choose(shown, "Model", "texts")
    shown.get_by_label("Prompts").wait_for()
    assert not shown.get_by_label("Classes").is_visible()
    shown.get_by_label("Seeds").fill("3-4")
    shown.get_by_role("button", name="Draw", exact=True).click()
    shown.get_by_role("alert").filter(has_text="there is no prompt").wait_for()
    shown.get_by_label("Prompts").fill("a cat\na dog above a cat")
    shown.get_by_label("Negative prompt").fill("a dog")
    shown.get_by_label("Prompts").press("Shift+Enter")
    drawn(shown, "4 images in")
    captions = [text.inner_text() for text in shown.locator("figcaption").all()]
    assert captions == [f"{prompt} · seed {seed}" for seed in (3, 4) for prompt in ("a cat", "a dog above a cat")]
    facts = read_settings(saved(page, shown, "Save grid", tmp_path))
    assert facts is not None
    assert (facts["prompt"], facts["negative"]) == (["a cat", "a dog above a cat"] * 2, ["a dog"] * 4)
    choose(shown, "Model", "pets, step 3")
    shown.get_by_label("Classes").wait_for()
    assert not shown.get_by_label("Prompts").is_visible()


def test_each_side_of_a_comparison_has_settings_and_a_weaker_model(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    shown = go_to(page, "Compare")
    choose(shown, "Model B", "pets, newest")
    shown.get_by_label("Seeds").fill("0")
    shown.get_by_role("button", name="Compare", exact=True).click()
    shown.get_by_role("alert").filter(has_text="the same weights with the same settings").wait_for()
    shown.get_by_role("button", name="Settings of B").first.click()
    shown.get_by_label("Steps of B").fill("3")
    shown.get_by_role("spinbutton", name=re.compile("Guidance of B")).fill("2")
    shown.get_by_role("button", name="More settings of B").click()
    choose(shown, "Weaker model of B", "pets, step 3")
    shown.get_by_role("button", name="Compare", exact=True).click()
    drawn(shown, "2 pairs; a pixel differs by")
    facts = read_settings(saved(page, shown, "Save grid", tmp_path))
    assert facts is not None
    one, other = facts["compared"]
    assert [(each["sampling"]["steps"], each["sampling"]["guidance"]) for each in (one, other)] == [(4, 1.0), (3, 2.0)]
    assert "autoguide" not in one
    assert other["autoguide"] not in (one["model"], None)


def test_a_run_is_watched_while_it_trains(opened: Opened, place: Path) -> None:
    page = opened()
    shown = go_to(page, "Training")
    choose(shown, "Run", "pets")
    drawn(shown, "finished: step 6 of 6")
    assert "Training loss over 6 steps" in (shown.locator("svg[role=img]").get_attribute("aria-label") or "")
    assert shown.get_by_alt_text("Samples of step 6").is_visible()
    choose(shown, "Run", "begun")
    drawn(shown, "not started: step 0 of 6")
    assert shown.get_by_text("No step is logged yet.").is_visible()
    assert shown.get_by_text("No sample grid yet.").is_visible()
    with (place / "begun" / "metrics.jsonl").open("a") as stream:
        for step in (1, 2):
            stream.write(json.dumps({"step": step, "loss": 1 / step, "images_per_second": 9.0}) + "\n")
    drawn(shown, "training: step 2 of 6")
    shown.locator("svg[role=img]").wait_for()
    (place / "begun" / "samples").mkdir()
    shutil.copy(place / "pets" / "samples" / "step-00000003.png", place / "begun" / "samples" / "step-00000002.png")
    shown.get_by_alt_text("Samples of step 2").wait_for()


@pytest.mark.parametrize("name", ["Draw", "Between", "Compare", "Training"])
def test_a_narrow_screen_shows_everything(opened: Opened, name: str) -> None:
    page = opened(width=390, height=844)
    shown = go_to(page, name)
    if name in ("Draw", "Compare"):
        shown.get_by_role("button", name=name, exact=True).click()
        drawn(shown, "8 ")
    page.wait_for_timeout(500)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for field in [*shown.get_by_role("button").all(), *shown.get_by_role("textbox").all()]:
        box = field.bounding_box() if field.is_visible() else None
        assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 390.5), field


LUMINANCE = """
() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('label span, p, figcaption, button, legend, .legend span, h1')) {
    if (!element.offsetParent || !element.innerText?.trim() || element.disabled) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.innerText.trim().slice(0, 40)]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(opened: Opened, scheme: str) -> None:
    """WCAG's 4.5 to 1."""
    page = opened(scheme=scheme)
    shown = panel(page)
    shown.get_by_role("button", name="Draw", exact=True).click()
    drawn(shown, "8 images in")
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 3 * 128) == (scheme == "light")
    found = page.evaluate(LUMINANCE)
    assert len(found) > 20
    assert [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5] == []
    go_to(page, "Training")
    page.wait_for_timeout(1000)
    assert [(round(ratio, 2), text) for ratio, text in page.evaluate(LUMINANCE) if ratio < 4.5] == []


NAMELESS = """
() => [...document.querySelectorAll('input, textarea, select, button')]
  .filter(field => field.offsetParent && field.type !== 'file')
  .filter(field => ![...(field.labels || [])].some(label => label.innerText.trim()))
  .filter(field => !field.getAttribute('aria-label') && !field.getAttribute('aria-labelledby') && !field.title)
  .filter(field => !field.innerText?.trim())
  .map(field => field.outerHTML.slice(0, 200))
"""


def test_every_field_has_a_name(opened: Opened) -> None:
    """For programs that read the page aloud."""
    page = opened()
    for name in ("Draw", "Between", "Compare", "Training"):
        shown = go_to(page, name)
        for title in (re.compile("^Settings of"), "More settings", "Start from an image"):
            for button in shown.get_by_role("button", name=title).all():
                button.click()
        page.wait_for_timeout(300)
        nameless = page.evaluate(NAMELESS)
        assert nameless == [], name
        assert page.get_by_role("tab", name=name, exact=True).get_attribute("aria-selected") == "true"
