"""The command line. Help and configuration errors do not import torch; each command imports what it needs."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError, Group

from udit import __version__
from udit.cli.bench import bench
from udit.cli.convert import convert
from udit.cli.data import data
from udit.cli.doctor import doctor
from udit.cli.ema import ema
from udit.cli.encode import encode
from udit.cli.evaluate import evaluate
from udit.cli.export import export
from udit.cli.models import models
from udit.cli.parity import parity
from udit.cli.reference import ref
from udit.cli.sample import sample
from udit.cli.scores import scores
from udit.cli.train import train
from udit.cli.tune import tune
from udit.errors import PeerError, RunError, UserError, nearest, one_line, ran_out_of_memory

app = App(
    name="udit",
    help="U-shaped diffusion transformers: train, sample, score, convert, export.",
    version=__version__,
    help_format="plaintext",
    group_parameters=Group("Options"),
    suppress_keyboard_interrupt=False,  # ``main`` reports it
)
app.command(train)
app.command(sample)
app.command(evaluate, name="eval")
app.command(scores)
app.command(tune)
app.command(ref)
app.command(encode)
app.command(ema)
app.command(convert)
app.command(export)
app.command(data)
app.command(models)
app.command(parity)
app.command(bench)
app.command(doctor)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; a UserError is one line and exit code 2, a RunError one line and exit code 1."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for developers of torch
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler of `udit bench` reports its start and stop
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it repeats what the error says
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="udit: %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "huggingface_hub", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its own warnings, of retries for one
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_usage(error, tokens), 2)
    except UserError as error:
        _fail(str(error), 2)
    except PeerError:
        sys.exit(1)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        _fail(f"out of memory ({one_line(error)}); take smaller batches, a smaller model or another machine", 1)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: CycloptsError, tokens: list[str]) -> str:
    commands = [name for name in app if not name.startswith("-")]
    if tokens and not tokens[0].startswith("-") and tokens[0] not in commands:
        return f"no command {tokens[0]!r}{nearest(tokens[0], commands)}"
    command = f"udit {tokens[0]}" if tokens and tokens[0] in commands else "udit"
    return f"{' '.join(str(error).split())} (`{command} --help` tells more)"


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"udit: error: {message}\n")
    sys.stderr.flush()
    sys.exit(code)
