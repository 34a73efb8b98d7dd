"""``udit studio``."""

from __future__ import annotations

from udit.cli.output import say


def studio(place: str = "runs", /, *, port: int = 7860, device: str = "auto", text_model: str | None = None) -> int:
    """Open a page in the browser: draw from models, compare checkpoints, watch runs. Needs udit[studio].

    It is served on this machine alone (127.0.0.1), and loads nothing from other hosts. Ctrl-C ends it.

    Parameters
    ----------
    place
        A run, a model folder, a folder of runs and models, or a hub id.
    port
        Of 127.0.0.1; 0 takes any free one.
    device
        auto, cpu, cuda, cuda:N or mps.
    text_model
        The language model that models of texts were trained with, where it is not at the place that they record: a
        folder, a .gguf file or a hub id.
    """
    from udit.studio.serve import open_studio

    server = open_studio(place, port=port, device=device, text_model=text_model)
    say(f"studio of {server.studio.place.root}: {server.url} (Ctrl-C ends it)")
    server.run()
    return 0
