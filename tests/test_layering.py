"""Rules that a linter does not check: imports point down, and some constructs are banned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import udit

ROOT = Path(udit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ORDER = (
    *("errors", "progress", "spec", "interpolation", "rng", "files", "record", "hub", "dist", "sharding", "images"),
    *("clips", "checkpoint", "ops", "nn", "models", "diffusion", "text", "data", "optim", "demos", "run", "adapters"),
    *("prompts", "fingerprints", "joint", "assemble", "analysis", "rollout", "store"),
    *("exporting", "convert", "parity", "training", "evaluation", "scoring", "panel", "reconstruction"),
    *("tuning", "inputs", "target"),
    *(
        "generation",
        "clip_files",
        "publishing",
        "rehearsal",
        "benchmarking",
        "comparison",
        "claims",
        "diagnosis",
        "serving",
        "studio",
        "cli",
    ),
    "__main__",
)
"""Packages and modules of the library, each of which may import those before it: no circle leaves a package."""
FORBIDDEN = {
    "nn": {"dist", "sharding", "files", "images", "checkpoint"},
    "models": {"dist", "sharding", "files", "images", "checkpoint"},
    "diffusion": {"nn", "models", "sharding", "files", "images", "checkpoint"},
    "text": {"nn", "models", "diffusion"},
    "data": {"nn", "models", "diffusion", "text"},
    "exporting": {"analysis"},
    "optim": {"models", "diffusion", "data"},
    "parity": {"data", "training", "store"},
    "training": {"exporting", "convert", "parity", "analysis"},
    "evaluation": {"exporting", "parity", "training", "store", "assemble"},
}
"""Units that come before and may still not be imported."""
CONFIGURATION = {
    *("udit.errors", "udit.spec", "udit.spec.base", "udit.spec.digest", "udit.nn.specs", "udit.diffusion.config"),
    *("udit.spec.words", "udit.run.keys", "udit.optim.config", "udit.interpolation", "udit.diffusion.settings"),
    *("udit.diffusion.samplers", "udit.diffusion.process_config", "udit.diffusion.few_step_config"),
    *("udit.data.config", "udit.data.base_config", "udit.data.archive_config", "udit.data.codec_config"),
    *("udit.data.cache_config", "udit.models.catalog", "udit.text.config"),
    "udit.data.condition_config",
    *("udit.models.config", "udit.models.ablation", "udit.models.isotropic", "udit.models.clips", "udit.models.papers"),
    "udit.evaluation.protocol",
    *(
        "udit.run",
        "udit.run.config",
        "udit.run.rules",
        "udit.run.beside_rules",
        "udit.run.text_rules",
        "udit.run.method_rules",
    ),
    *("udit.run.start", "udit.run.system", "udit.run.resolve", "udit.run.adapter_config"),
    *("udit.run.recipes", "udit.run.classes", "udit.recipes"),
}
"""Modules of configuration, beside ``models/<family>/config.py``: free of torch; only ``READER`` opens files."""
READER = "udit.run.recipes"
"""Reads recipes, ``run.yaml`` and ``config.json``."""
TORCH_FREE = {
    *("udit.files", "udit.record", "udit.hub", "udit.exporting.manifest", "udit.tuning.quality"),
    *(f"udit.data.{name}" for name in ("describe", "vae", "latents", "sources", "names", "verify", "decode")),
    *(f"udit.data.{name}" for name in ("encoded", "deep", "buckets", "label_list", "numbering", "recognise")),
    *(f"udit.data.{name}" for name in ("webdataset", "tar", "dataset_json", "zipped", "lsun", "mapped", "moments")),
    *(f"udit.data.{name}" for name in ("folder", "captions", "idx", "npz", "fields", "hub", "moving", "clip_folder")),
    "udit.clips",
    *("udit.text", "udit.text.files", "udit.text.gguf"),
    "udit.run.scorable",
    "udit.demos.find",
}
"""No configuration, and free of torch all the same: what is read before torch is imported."""
CALLS = {
    ("udit.run.config", "source", "udit.data.latents"),
    ("udit.run.resolve", "latent_cache", "udit.data.latents"),
    ("udit.run.resolve", "codec", "udit.data.vae"),
    ("udit.run.resolve", "language_model", "udit.text.files"),
    ("udit.run.resolve", "model", "udit.text.files"),
    ("udit.run.resolve", "codec", "udit.data.fields"),
    ("udit.run.resolve", "data_set", "udit.data.describe"),
    (READER, None, "udit.hub"),
    (READER, None, "udit.demos.find"),
}
"""(module, function, target): where configuration calls what is not configuration, beside each spec's ``build``."""
OPENS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "glob", "rglob", "is_file", "is_dir"),
    *("exists", "stat", "lstat", "touch", "mkdir", "unlink", "scandir", "listdir", "walk"),
}
"""Names of functions and methods that open or look at files."""
OF_A_FAMILY = {
    "build": "network",
    "published_keys": "published",
    "check_published": "published",
    "diffusers_layouts": "published",
    "parity_systems": "parity",
}
"""Methods of a family's config, and the one module of its folder that each may import."""


@dataclass(frozen=True)
class Import:
    """One imported module, and where it is imported."""

    target: str
    """Dotted, e.g. ``udit.nn.init`` or ``torch``."""
    function: str | None
    """The innermost function it stands in."""
    for_types: bool
    """Under ``if TYPE_CHECKING``."""
    line: int


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def unit(name: str) -> str:
    """The first part below ``udit``; the package's own file is ``__init__``."""
    return name.split(".")[1] if "." in name else "__init__"


def imports(node: ast.AST, function: str | None = None, for_types: bool = False) -> Iterator[Import]:
    """Every import below ``node``, wherever it stands."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, function, for_types, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            base = child.module or ""
            below = {f"{base}.{alias.name}" for alias in child.names} & MODULES
            for target in below or {base}:
                yield Import(target, function, for_types, child.lineno)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child, child.name, for_types)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports(child, function, for_types=True)
        else:
            yield from imports(child, function, for_types)


@cache
def own_imports(path: Path) -> list[Import]:
    return [found for found in imports(tree(path)) if found.target.split(".")[0] == "udit"]


def is_configuration(name: str) -> bool:
    return name in CONFIGURATION or re.fullmatch(r"udit\.models\.\w+\.config", name) is not None


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_down(path: Path) -> None:
    """Imports inside functions count; those for types do not."""
    here = unit(module(path))
    if here in ("__init__", "recipes"):
        return
    assert here in ORDER, f"{here} is new: give it a place in ORDER and in docs/architecture.md"
    for found in own_imports(path):
        there = unit(found.target)
        if there in (here, "recipes") or found.target == "udit" or found.for_types:
            continue
        assert ORDER.index(there) < ORDER.index(here), f"{path.name}:{found.line}: {here} imports {found.target}"
        banned = there in FORBIDDEN.get(here, ()) and not is_configuration(found.target)
        assert not banned, f"{path.name}:{found.line}: {here} may not import {found.target}"


def test_packages_make_no_circle() -> None:
    """The graph of packages, imports inside functions included; ``pytest -s`` shows it."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = unit(module(path))
        targets = {unit(found.target) for found in own_imports(path) if not found.for_types}
        graph.setdefault(here, set()).update(targets - {here, "__init__"})
    for name in TopologicalSorter(graph).static_order():
        sys.stdout.write(f"{name}: {' '.join(sorted(graph.get(name, ())))}\n")


def test_towers_never_meet_below_the_joints() -> None:
    """Stated twice: a change of the table alone must not allow it."""
    for path in FILES:
        here, targets = unit(module(path)), {unit(found.target) for found in own_imports(path)}
        if here in ("nn", "models"):
            assert "diffusion" not in targets, path
        if here == "diffusion":
            assert not targets & {"nn", "models"}, path


def test_imports_make_no_circle() -> None:
    """Of modules, as Python loads them: imports within functions or for types aside."""
    graph = {
        module(path): {
            found.target
            for found in own_imports(path)
            if found.function is None and not found.for_types and found.target != module(path)
        }
        for path in FILES
    }
    assert set(TopologicalSorter(graph).static_order()) >= MODULES


CONFIGURATION_FILES = [path for path in FILES if is_configuration(module(path))]


@pytest.mark.parametrize("path", CONFIGURATION_FILES, ids=module)
def test_configuration_imports_configuration(path: Path) -> None:
    """A spec builds itself: ``build`` alone imports what it builds, from the spec's own package.

    A family's config has further such methods; each may import one module of its folder.
    """
    own = module(path).rpartition(".")[0]
    for found in imports(tree(path)):
        heavy = found.target.split(".")[0] in ("torch", "numpy", "diffusers", "safetensors", "PIL", "sklearn")
        assert not heavy or found.for_types, f"line {found.line}: {found.target}"
        if not found.target.startswith("udit.") or found.for_types or is_configuration(found.target):
            continue
        if own.startswith("udit.models."):
            builds = found.target == f"{own}.{OF_A_FAMILY.get(found.function or '')}"
        else:
            builds = found.function == "build" and found.target.startswith(f"{own}.")
        texts = found.target == "udit.files"  # of which test_configuration_opens_no_file lets digests of texts pass
        listed = (module(path), found.function, found.target) in CALLS
        assert builds or texts or listed, f"line {found.line}: {found.target}"


def test_tables_of_configuration_list_only_what_is_there() -> None:
    assert MODULES >= CONFIGURATION | TORCH_FREE
    there = {
        (module(path), found.function, found.target) for path in CONFIGURATION_FILES for found in imports(tree(path))
    }
    assert there >= CALLS


def openings(path: Path) -> Iterator[str]:
    """Where a module opens or looks at a file, or imports from ``files`` what does."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in OPENS or ast.unparse(node.func) == "json.load":
                yield f"line {node.lineno}: {ast.unparse(node.func)}"
        if isinstance(node, ast.ImportFrom) and node.module == "udit.files":
            yield from (f"line {node.lineno}: {a.name}" for a in node.names if a.name not in ("seal", "unseal"))


@pytest.mark.parametrize("path", CONFIGURATION_FILES, ids=module)
def test_configuration_opens_no_file(path: Path) -> None:
    """One module reads recipes, ``run.yaml`` and ``config.json``; the others take values."""
    assert bool(list(openings(path))) == (module(path) == READER), list(openings(path))


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "Path('x').read_text()",
        "Path('x').is_file()",
        "json.load(stream)",
        "from udit.files import write_text",
    ],
)
def test_openings_of_files_are_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(source)
    assert list(openings(tmp_path / "code.py"))


def test_a_family_is_named_by_its_folder_and_the_catalogue_alone() -> None:
    """So a new one is a folder and a row; a family may build on another's folder."""
    folders = {path.parent.name for path in ROOT.glob("models/*/config.py")}
    assert len(folders) >= 8
    for folder in folders:
        names = {path.stem for path in (ROOT / "models" / folder).glob("*.py")}
        assert {"__init__", "config", "network"} <= names <= {"__init__", "config", "network", "published", "parity"}
    for path in FILES:
        if module(path) in ("udit.models.catalog", "udit.models.ablation") or path.parent.parent == ROOT / "models":
            continue
        for found in own_imports(path):
            named = set(found.target.split(".")[2:3]) & folders
            assert not named or not found.target.startswith("udit.models."), f"{path.name}:{found.line}: {found.target}"


def test_configuration_loads_without_torch() -> None:
    """And what resolving a run reads, which may take numpy."""
    configuration = sorted(name for name in MODULES if is_configuration(name))
    for names, heavy in (
        (configuration, "{'torch', 'diffusers', 'numpy', 'sklearn', 'PIL'}"),
        (sorted(TORCH_FREE), "{'torch', 'diffusers', 'sklearn'}"),
    ):
        code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
        code += f"sys.exit(len({heavy} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_below_the_jobs_loads_what_only_some_calls_need() -> None:
    """The towers and their joints load without diffusers and the extras, which are imported where they are called."""
    template = "udit.exporting.pipeline"  # its source is read, and runs in other programs
    for path in (path for path in FILES if unit(module(path)) not in ("training", "evaluation")):
        for found in imports(tree(path)):
            assert found.target != template and not found.target.startswith(f"{template}."), path.name
            if module(path) != template and found.target.split(".")[0] in (
                "diffusers",
                "sklearn",
                "scipy",
                "matplotlib",
                "tensorboard",
                "datasets",
                "pyarrow",
                "onnx",
                "onnxruntime",
                "openvino",
                "nncf",
            ):
                assert found.function is not None or found.for_types, f"{path.name}:{found.line}: {found.target}"


RENAMES = {"files.py", "checkpoint.py"}
"""The one way to write a file or folder whole; a checkpoint is also renamed when it is damaged or to be removed."""


def offences(path: Path) -> Iterator[str]:
    """Banned constructs."""
    for node in ast.walk(tree(path)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {line}: bare except"
        if isinstance(node, ast.Name) and node.id in ("print", "eval", "exec", "breakpoint"):
            yield f"line {line}: {node.id}"
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "load"
            and ast.unparse(node) == "torch.load"
            and path.parts[-2:] != ("convert", "files.py")
        ):
            yield f"line {line}: torch.load"
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "load"
            and ast.unparse(node.func) == "torch.load"
        ):
            only = [word.value for word in node.keywords if word.arg == "weights_only"]
            if [ast.unparse(value) for value in only] != ["True"]:
                yield f"line {line}: torch.load without weights_only=True"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"line {line}: allow_pickle"
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("rename", "mkstemp", "mkdtemp")
            and path.name not in RENAMES
        ):
            yield f"line {line}: {node.attr}; write through files.py"
    for found in imports(tree(path)):
        if found.target.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"):
            text = path.read_text(encoding="utf-8").splitlines()[found.line - 1].strip()
            if text != "from pickle import UnpicklingError":  # the name of an error reads nothing
                yield f"line {found.line}: {found.target}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_banned_is_written(path: Path) -> None:
    assert list(offences(path)) == []


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("print(1)", "print"),
        ("x = eval('1')", "eval"),
        ("try:\n    f()\nexcept:\n    pass", "bare except"),
        ("import pickle", "pickle"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import torch\ntorch.load('x', weights_only=True)", "torch.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("part.rename(path)", "rename"),
    ],
)
def test_the_ban_sees_what_it_bans(source: str, offence: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(source)
    assert any(offence in found for found in offences(tmp_path / "code.py"))


def test_the_importer_reads_tensors_alone(tmp_path: Path) -> None:
    importer = tmp_path / "convert" / "files.py"
    importer.parent.mkdir()
    importer.write_text("import torch\ntorch.load('x')\ntorch.load('x', weights_only=True)")
    assert list(offences(importer)) == ["line 2: torch.load without weights_only=True"]


def test_no_module_is_called_utils() -> None:
    names = {part for name in MODULES for part in name.split(".")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_file_holds_two_concepts(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_modules_are_subclassed_once_and_never_twice() -> None:
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }
    networks = {name for name, above in bases.items() if "nn.Module" in above}
    assert len(networks) > 5
    for name, above in bases.items():
        assert not networks & {base.split(".")[-1] for base in above}, name
        if name in networks:
            assert above == ["nn.Module"], name


JOB_WORDS = re.compile(r"steps|batch|sampler|generate|shards|chunks|sigma_rels|seeds|update|losses")
"""What a loop over the work of a job iterates over, or calls."""


def job_loops(node: ast.AST) -> Iterator[str]:
    """Loops of a command that do the work of a job: they iterate over steps, batches or samples, or count them."""
    for child in ast.walk(node):
        iterated = [child.iter] if isinstance(child, ast.For | ast.AsyncFor | ast.comprehension) else []
        for expression in iterated:
            if found := JOB_WORDS.search(ast.unparse(expression)):
                yield f"loop over {found[0]}: {ast.unparse(expression)}"
        if isinstance(child, ast.While):
            yield f"line {child.lineno}: while"
    for found in imports(node):
        heavy = found.target.split(".")[0] in ("torch", "numpy", "tqdm", "safetensors", "PIL", "time", "statistics")
        if heavy or "progress" in found.target:
            yield f"line {found.line}: {found.target}"


COMMANDS = [path.stem for path in FILES if path.parent.name == "cli" and path.stem not in ("__init__", "output")]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_parse_and_print(name: str) -> None:
    """The work is done by library functions, in Python as well; tables are formatted here, numbers are not made."""
    assert list(job_loops(tree(ROOT / "cli" / f"{name}.py"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "for record in trainer.steps():\n    say(record)",
        "def f():\n    from torch import Tensor",
        "losses = [loss(batch) for batch in batches(run)]",
        "for sigma_rel in sigma_rels:\n    rebuild(sigma_rel)",
        "images = torch.cat(list(part for part in system.generate(range(8))))",
        "while step < steps:\n    step += 1",
        "from tqdm.auto import tqdm",
        "import time",
    ],
)
def test_the_search_for_jobs_in_commands_finds_them(source: str) -> None:
    assert list(job_loops(ast.parse(source)))


def test_no_command_imports_another() -> None:
    for path in (path for path in FILES if unit(module(path)) == "cli" and path.name != "__init__.py"):
        others = {found.target for found in own_imports(path) if unit(found.target) == "cli"}
        assert others <= {"udit.cli.output", "udit.cli.options"}, f"{path.name} imports {others}"


def test_every_package_is_described() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert ast.get_docstring(tree(path)), path


# ---- devices ---------------------------------------------------------------------------------------------------------

OF_A_DEVICE = {"is_cuda", "is_cpu", "is_mps", "is_meta", "is_compiling", "is_exporting", "is_dynamo_compiling"}
OF_KERNELS = {"usable", "available", "loaded", "is_available"}
MAY_ASK = {
    "udit.dist": "chooses a process's device, and how its group speaks",
    "udit.training.parallel": "options of DDP",
    "udit.training.learner": "what a step found is read late on a GPU, whose batches are pinned",
    "udit.benchmarking.meters": "clock and memory of a device, none of a forward",
    "udit.training.precision": "options of cuDNN and cuBLAS by device, none of a forward",
    "udit.training.unread": "numbers on a GPU are read after their copy has ended",
    "udit.training.memory": "which operators a device runs decides what a step keeps",
    "udit.data.batches": "copies to a GPU go on beside the host",
    "udit.diffusion.schedule": "times are read on the host where it knows them, and MPS has no float64",
    "udit.optim.adamw": "torch has a fused AdamW for some devices",
    "udit.optim.muon": "torch's Muon computes in bfloat16, which few CPUs have",
    "udit.training.graphs": "CUDA alone has graphs",
    "udit.training.capacity": "a GPU has its own memory, and running out of a machine's harms other programs",
    "udit.tuning.search": "the processor's time is a fair clock on one thread of a CPU only",
    "udit.models.build": "weights on meta stay without contents",
    "udit.diagnosis.machine": "tells which devices and kernels a machine has, and whether they work",
    "udit.serving.worker": "each kind of device limits a process's memory by a means of its own",
    "udit.benchmarking.subjects": "a network that is measured in shapes alone is not loaded",
}
"""Modules outside ``ops`` that look at a device, and why; no forward is among them."""


def device_checks(path: Path) -> Iterator[str]:
    """Questions about devices, compilers or kernels."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in OF_A_DEVICE:
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OF_KERNELS:
            yield f"line {node.lineno}: {ast.unparse(node.func)}()"
        if isinstance(node, ast.Compare):
            for part in (node.left, *node.comparators):
                if isinstance(part, ast.Attribute) and part.attr == "type" and "device" in ast.unparse(part):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [path for path in FILES if unit(module(path)) != "ops"], ids=module)
def test_no_device_or_kernel_is_asked_for_outside_of_operators(path: Path) -> None:
    found = list(device_checks(path))
    assert not found or module(path) in MAY_ASK, found
    if module(path).startswith(("udit.nn", "udit.models")) and module(path) != "udit.models.build":
        assert module(path) not in MAY_ASK


def test_modules_that_may_ask_for_a_device_do() -> None:
    for path in FILES:
        if module(path) in MAY_ASK:
            assert list(device_checks(path)), f"{module(path)} asks no more: strike it off MAY_ASK"


@pytest.mark.parametrize(
    "source",
    [
        "if x.is_cuda: pass",
        "y = x.device.type == 'cpu'",
        "y = device.type in ('cpu', 'cuda')",
        "if torch.compiler.is_compiling(): pass",
        "if kernel.available(): pass",
        "if torch.cuda.is_available(): pass",
    ],
)
def test_the_check_sees_what_asks_for_a_device(source: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(source)
    assert list(device_checks(tmp_path / "code.py"))


# ---- private names of torch ------------------------------------------------------------------------------------------

ASK_TORCH_ITSELF = {
    "udit.ops.surroundings": "what surrounds a call of an operator; tests/test_surroundings.py has a test for each",
    "udit.ops.operator": "names of an operator's arguments, and which functions a compiler calls",
    "udit.ops.recompute": "the memory of a tensor, and whether it was changed",
    "udit.training.memory": "shapes without data, and what is allocated within a mode",
    "udit.models.build": "an option of the compiler",
    "udit.benchmarking.measure": "what the compiler counts",
    "udit.data.batches": "ends the reading processes at once",
}
"""Modules that use names of torch that begin with an underscore, and for what."""


@cache
def own_private_names() -> frozenset[str]:
    """Names with an underscore that the library defines."""
    found: set[str] = set()
    for node in (node for path in FILES for node in ast.walk(tree(path))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "ctx"):
            found.add(node.attr)
    return frozenset(found)


def private_names(path: Path) -> Iterator[str]:
    """Names that another package, torch as a rule, keeps to itself."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
            of_torch = ast.unparse(node.value).startswith("torch")
            yield from [f"line {node.lineno}: {ast.unparse(node)}"] * (of_torch or node.attr not in own_private_names())
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                if name.startswith("_"):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


def test_private_names_of_torch_are_used_in_few_modules() -> None:
    found = {module(path): list(private_names(path)) for path in FILES}
    assert {name: uses for name, uses in found.items() if uses}.keys() == ASK_TORCH_ITSELF.keys(), found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._dynamo.reset()",
        "x = tensor._base",
        "from torch._C import _get_tracing_state",
        "from torch.nn.modules.module import _has_any_global_hook",
    ],
)
def test_private_names_are_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(source)
    assert list(private_names(tmp_path / "code.py"))
