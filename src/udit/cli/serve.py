"""``udit serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from udit.cli.output import say


def serve(
    *models: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    max_images: int = 16,
    max_steps: int = 250,
    max_pixels: int = 1 << 24,
    max_seconds: float = 120.0,
    max_memory: float = 4.0,
    queue: int = 64,
    batch_size: int = 16,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: Literal["torch", "onnxruntime", "openvino"] | None = None,
    text_model: str | None = None,
) -> int:
    """Sample over HTTP: a queue, batches of requests that fit together, limits and metrics. Needs udit[serve].

    GET /docs describes the API. Each model is loaded in a process of its own. Ctrl-C answers what was accepted, and
    ends. A host that others can reach needs a key, in a file or in UDIT_SERVE_KEY.

    Parameters
    ----------
    models
        Run folders, model folders, hub ids, or NAME=MODEL; requests name the one they mean, or get the first.
    host
        The address to listen at.
    port
        0 takes any free one.
    key_file
        A file that holds the key; clients send it as Authorization: Bearer KEY.
    max_images
        Of one request.
    max_steps
        Network evaluations per image.
    max_pixels
        Images of one request times their height and width.
    max_seconds
        From a request's arrival to its answer.
    max_memory
        GiB that a worker process may take beyond its loaded model.
    queue
        Requests that are accepted and not answered yet, of each model; further ones are refused.
    batch_size
        Images that are sampled together.
    device
        auto, cpu, cuda, cuda:N or mps.
    weights
        ema (averaged) or raw.
    engine
        torch, or onnxruntime or openvino: the graph that `udit export` put into the model's folder.
    text_model
        The language model of models that take texts, where it is not at the place that they record: a folder, a .gguf
        file or a hub id.
    """
    from udit.serving.limits import from_options
    from udit.serving.server import open_server

    limits = from_options(
        {
            "--max-images": max_images,
            "--max-steps": max_steps,
            "--max-pixels": max_pixels,
            "--max-seconds": max_seconds,
            "--max-memory": max_memory,
            "--queue": queue,
            "--batch-size": batch_size,
        }
    )
    server = open_server(
        models,
        host=host,
        port=port,
        key_file=key_file,
        limits=limits,
        device=device,
        weights=weights,
        engine=engine,
        text_model=text_model,
    )
    say(f"serving {', '.join(server.dispatchers)} at {server.url} ({server.url}/docs describes it; Ctrl-C ends)")
    server.run()
    return 0
