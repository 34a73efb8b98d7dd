"""The page: gradio's components around ``session``."""

from __future__ import annotations

from html import escape
from importlib import resources

import gradio as gr

from udit.studio.session import Studio
from udit.studio.tabs import between_tab, compare_tab, draw_tab
from udit.studio.training import training_tab

QUEUED = 64
"""Most drawings that wait; further ones are refused at once."""
THREADS = 8
"""For answers of all kinds; drawings are made one at a time."""
SESSIONS = 200
"""Browser tabs whose state is kept."""
KEPT = (600, 3600)
"""Seconds between two removals of old files, and their age."""


def theme() -> gr.themes.Base:
    """The fonts of the system, so that none is loaded, and grey text that is dark enough to read."""
    look = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=("ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
        radius_size="sm",
        spacing_size="sm",
    )
    return look.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def style() -> str:
    """The page's own style sheet."""
    return resources.files("udit.studio").joinpath("page.css").read_text(encoding="utf-8")


def build(studio: Studio) -> gr.Blocks:
    """The page of a place; its queue has all limits set."""
    with gr.Blocks(title="udit studio", analytics_enabled=False, fill_width=True, delete_cache=KEPT) as page:
        gr.HTML(f"<div class='top'><h1>udit studio</h1><p>{escape(studio.place.root)}</p></div>")
        with gr.Tabs():
            with gr.Tab("Draw"):
                draw_tab(studio, page)
            with gr.Tab("Between"):
                between_tab(studio, page)
            with gr.Tab("Compare"):
                compare_tab(studio, page)
            if studio.place.may_have_runs:
                with gr.Tab("Training") as tab:
                    training_tab(studio, page, tab)
    page.max_threads = THREADS
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=QUEUED, default_concurrency_limit=1, api_open=False)
