"""The command line. Help and configuration errors do not import torch; each command imports what it needs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from udit import __version__
from udit.cli.bench import bench
from udit.cli.claims import claims
from udit.cli.compare import compare
from udit.cli.convert import convert
from udit.cli.data import data
from udit.cli.doctor import doctor
from udit.cli.ema import ema
from udit.cli.encode import encode
from udit.cli.evaluate import evaluate
from udit.cli.export import export
from udit.cli.find_lr import find_lr
from udit.cli.fork import fork
from udit.cli.models import models
from udit.cli.parity import parity
from udit.cli.pull import pull
from udit.cli.push import push
from udit.cli.reference import ref
from udit.cli.sample import sample
from udit.cli.scores import scores
from udit.cli.serve import serve
from udit.cli.studio import studio
from udit.cli.train import train
from udit.cli.tune import tune
from udit.errors import (
    A_SLIP,
    PeerError,
    RunError,
    UserError,
    nearest,
    of_missing_module,
    one_line,
    ran_out_of_memory,
    resembling,
)
from udit.progress import say_on_stderr

OF_RECIPES = ("train", "fork", "encode", "data", "bench", "find-lr", "compare")
"""Commands that take a recipe's keys as KEY=VALUE."""


def version() -> str:
    """Versions, and which kernels have been compiled; free of torch."""
    from importlib import metadata, resources

    from udit.files import cache_folder

    packages = []
    for name in ("torch", "diffusers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    folder = Path(os.environ.get("UDIT_CACHE") or cache_folder())
    operators = (resources.files("udit") / "ops").iterdir()
    count = sum((operator / "cpu.cpp").is_file() for operator in operators if operator.is_dir())
    compiled = {path.name.rpartition("-")[0] for path in folder.glob("*-*.so")}
    setting = os.environ.get("UDIT_KERNELS")
    state = (
        f"{len(compiled)} of {count} compiled in {folder}" if compiled else "none compiled yet, at first use they are"
    )
    off = f"; UDIT_KERNELS is {setting}" if setting else ""
    return (
        f"udit {__version__}\nPython {platform.python_version()}, {', '.join(packages)}\n"
        f"kernels: {state}{off}; `udit doctor` tells more"
    )


app = App(
    name="udit",
    help="U-shaped diffusion transformers: train, sample, score, convert, export.",
    version=version,
    help_format="plaintext",
    group_parameters=Group("Options"),
    suppress_keyboard_interrupt=False,  # ``main`` reports it
    default_parameter=Parameter(negative_iterable=()),  # no --empty-LIST beside every list
)
app.command(train)
app.command(sample)
app.command(evaluate, name="eval")
app.command(scores)
app.command(compare)
app.command(tune)
app.command(find_lr)
app.command(fork)
app.command(ref)
app.command(encode)
app.command(ema)
app.command(convert)
app.command(export)
app.command(push)
app.command(pull)
app.command(serve)
app.command(data)
app.command(models)
app.command(parity)
app.command(bench)
app.command(claims)
app.command(doctor)
app.command(studio)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; a UserError is one line and exit code 2, a RunError one line and exit code 1."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for developers of torch
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it repeats what the error says
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    say_on_stderr()
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
    except ModuleNotFoundError as error:
        if (missing := of_missing_module(error, f"`udit {tokens[0]}`")) is None:
            raise
        _fail(str(missing), 2)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        _fail(f"out of memory ({one_line(error)}); take smaller batches, a smaller model or another machine", 1)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: CycloptsError, tokens: list[str]) -> str:
    """What is wrong with the words of a command line."""
    commands = [name for name in app if not name.startswith("-")]
    if tokens and not tokens[0].startswith("-") and tokens[0] not in commands:
        return f"no command {tokens[0]!r}{nearest(tokens[0], commands)}"
    command = " ".join(["udit", *(error.command_chain or ())])
    text = " ".join(str(error).split()).rstrip(".")
    token = error.token if isinstance(error, UnknownOptionError | CoercionError) else None
    named = error.argument.name if isinstance(error, CoercionError | MissingArgumentError) and error.argument else ""
    if isinstance(error, UnknownOptionError):
        text = _unknown_option((token and (token.keyword or token.value)) or "", tokens)
    elif isinstance(error, UnknownCommandError) and tokens[0].startswith("-"):
        text = f"no option {tokens[0]}; name a command first, one of {', '.join(commands)}"
    elif isinstance(error, UnknownCommandError):
        known = [name for name in app[tokens[0]] if not name.startswith("-")]
        text = f"`udit {tokens[0]}` has no command {tokens[1]!r}{nearest(tokens[1], known)}"
    elif isinstance(error, UnusedCliTokensError):
        words = " ".join(map(repr, error.unused_tokens or ()))
        text = f"{words} is more than `{command}` takes; leave it out, or quote what has spaces"
    elif isinstance(error, MissingArgumentError):
        text = f"{named} is missing; give it a value"
    elif isinstance(error, RepeatArgumentError):
        text = f"{error.token.keyword} is given more than once; give it once"
    elif isinstance(error, CoercionError) and token:
        _, choose, choices = text.partition("Choose from: ")
        takes = {int: "a whole number", float: "a number", bool: "true or false"}.get(error.target_type or str, "text")
        text = f"{token.keyword or named} is {token.value!r}; it takes {_either(choices) if choose else takes}"
    return f"{text} (`{command} --help` tells more)"


def _either(choices: str) -> str:
    *others, last = choices.replace('"', "").split(", ")
    return f"{', '.join(others)} or {last}" if others else last


def _unknown_option(option: str, tokens: list[str]) -> str:
    """An option that a command has not; a recipe's key written as an option is answered by KEY=VALUE."""
    name, equals, value = option.partition("=")
    command = app[tokens[0]] if tokens and tokens[0] in app else app
    for word in tokens[1:]:
        if word in command and not word.startswith("-"):
            command = command[word]
    options = command.assemble_argument_collection(default_parameter=app.default_parameter)
    known = {flag.lstrip("-"): flag for argument in options for flag in argument.names}
    known = {plain: flag for plain, flag in known.items() if flag.startswith("--") and plain not in ("help", "version")}
    word = name.lstrip("-")
    close = resembling(word, list(known))
    hint = f"; did you mean {known[close[0]]}?" if close else f" (known: {', '.join(sorted(known.values()))})"
    if tokens[:1] and tokens[0] in OF_RECIPES and not resembling(word, list(known), A_SLIP):
        from udit.run.keys import keys_like

        if keys := keys_like(word):
            following = [after for token, after in itertools.pairwise(tokens) if token == option]
            value = value if equals else following[0] if following and not following[0].startswith("-") else "VALUE"
            written = " or ".join(f"{key}={value}" for key in keys)
            return f"no option {name}; a recipe's keys are written KEY=VALUE: {written}"
        return f"no option {name}{hint}" + ("" if close else "; a recipe's keys are KEY=VALUE, e.g. training.lr=1e-3")
    return f"no option {name}{hint}"


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"udit: error: {message}\n")
    sys.stderr.flush()
    sys.exit(code)
