"""The worker process: it loads a model and samples the batches that it is sent, until its server is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from udit.diffusion.config import SamplingConfig
from udit.errors import RunError, UserError, one_line, ran_out_of_memory
from udit.progress import say_on_stderr
from udit.serving.wire import Message, receive
from udit.spec.base import parse

if TYPE_CHECKING:
    from udit.assemble import System

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a worker's model comes from."""

    model: str
    """As for ``udit.load``."""
    weights: Literal["ema", "raw"] = "ema"
    device: str = "auto"
    engine: Literal["torch", "onnxruntime", "openvino"] | None = None
    copy: str = ""
    """A folder for the weights of a run, which may go on training: a later worker loads them from there."""
    memory: float = 4.0
    """GiB beyond the loaded model."""
    text_model: str | None = None
    """The language model of a model that takes texts, where it was moved."""


class Stopped(Exception):
    """Nobody waits for the batch any more, or the server is gone."""


def main(connection: Connection, source: Source) -> None:
    """Serves batches until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    say_on_stderr()
    with contextlib.suppress(OSError, EOFError):  # the server is gone
        try:
            system, facts = opened(source)
        except (UserError, RunError) as error:
            Message("unusable", values={"text": one_line(error, 500)}).send(connection)
            return
        except Exception as error:
            log.debug("where it failed", exc_info=True)
            text = f"{source.model} cannot be loaded ({type(error).__name__}: {one_line(error)}); check its files"
            Message("unusable", values={"text": text}).send(connection)
            return
        Message("ready", values=facts).send(connection)
        while True:
            order = receive(connection)
            if order.kind == "draw":
                for answer in answers(system, order, connection):
                    answer.send(connection)


def opened(source: Source) -> tuple[System, dict[str, Any]]:
    """The system, and what the server has to know of it.

    Raises:
        UserError: there is no such model, it takes vectors, or its language model is not there.
    """
    from udit.exporting.find import open_system
    from udit.store import load, save
    from udit.tuning.levels import qualities

    place, weights, training = source.model, source.weights, None
    if source.copy and Path(source.copy).is_dir():
        place, weights = source.copy, "ema"
    elif (Path(place) / "run.yaml").is_file() and source.engine in (None, "torch"):
        save(load(place, weights=weights), source.copy)
        training = _progress(Path(place))
        place, weights = source.copy, "ema"
    engine = source.engine if place == source.model else None
    system, _ = open_system(place, weights, source.device, engine)
    system.config.model.refuse_clips("udit serve")
    if system.config.text is not None and source.text_model is not None:
        system = system.with_text_model(source.text_model)
    if (shape := system.config.model.condition_shape) and system.config.text is None:
        raise UserError(
            f"{source.model} takes vectors of {list(shape)} per image and the server has no text encoder; use "
            "`udit sample --context FILE`"
        )
    folder = Path(source.model) if Path(source.model).is_dir() else None
    facts = {
        "config": system.config.model_dump(mode="json"),
        "fingerprint": system.fingerprint,
        "quality": {level: each.model_dump(mode="json") for level, each in qualities(folder, system).items()},
        "shape": _image_shape(system),
        "training": training,
    }
    _limit_memory(system, source.memory)
    return system, facts


def answers(system: System, order: Message, connection: Connection) -> Iterator[Message]:
    """Samples one batch: messages on the way, and one last that ends it."""
    from udit.dist import World
    from udit.generation import Generation
    from udit.inputs import conditions_of_images

    values = order.values or {}
    seeds, labels = values["seeds"], values["labels"]

    def on_step(_: int) -> None:
        try:
            Message("step", order.batch).send(connection)
            stop = connection.poll() and receive(connection) == Message("stop", order.batch)
        except (OSError, EOFError):  # the server is gone
            stop = True
        if stop:
            raise Stopped

    try:
        sampling = parse(SamplingConfig, values["sampling"])
        given = (values["prompts"], values["negative"], None, sampling.guidance, len(seeds))
        said = conditions_of_images(system, labels, *given)
        context = {} if said is None else {"context": said.rows, "null": said.null}
        options: dict[str, Any] = {"sampling": sampling, "batch_size": len(seeds), "on_step": on_step} | context
        [images] = system.generate(seeds, labels, **options)
    except Stopped:
        yield Message("stopped", order.batch)
    except UserError as error:
        yield Message("error", order.batch, {"text": one_line(error, 500), "status": 422})
    except Exception as error:
        if ran_out_of_memory(error):
            text = f"{len(seeds)} images together need more memory than the server may take; ask for fewer"
            yield Message("error", order.batch, {"text": text, "status": 503})
            return
        log.exception("a batch failed")
        text = f"sampling failed ({type(error).__name__}); see the server's log"
        yield Message("error", order.batch, {"text": text, "status": 500})
    else:
        drawn = Generation(system, seeds, labels, sampling, said, len(seeds), World())
        facts = {
            "shape": list(images.shape[1:]),
            "settings": [drawn.settings() | drawn.settings_of(i) for i in range(len(seeds))],
        }
        yield Message("images", order.batch, facts, images.contiguous().numpy().tobytes())


def _progress(folder: Path) -> str | None:
    """A line on a run that is not at its end."""
    from udit.checkpoint import CheckpointStore
    from udit.store import read_run_config

    newest = CheckpointStore(folder / "checkpoints").newest(aside=False)
    steps = read_run_config(folder).training.steps
    if newest is None or newest.step >= steps:
        return None
    return f"its newest checkpoint, of step {newest.step} of {steps}; start the server again to serve a later one"


def _image_shape(system: System) -> list[int]:
    """(C, H, W) of the images, from one that is sampled in two steps; VAE and language model are loaded by that."""
    own = system.config.sampling
    few = {"steps": min(2, own.steps), "cache": 1, "refresh": (), "forecast": False, "keep_guidance": False}
    labels = system.config.classes.each(None, 1)
    prompts = None if system.config.text is None else ""
    [image] = system.generate([0], labels, prompts=prompts, sampling=own.replace(**few))
    return list(image.shape[1:])


def _limit_memory(system: System, gib: float) -> None:
    """Makes an allocation beyond a limit an error of its batch, in place of one that harms the machine."""
    import torch

    device = next((p.device for p in system.backbone.parameters()), torch.device("cpu"))
    more = int(gib * 2**30)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved(device) + more) / total), device
        )
        return
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        log.info("this system does not tell a process's size, so that the worker's memory is not limited")
        return
    most = pages * resource.getpagesize() + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
