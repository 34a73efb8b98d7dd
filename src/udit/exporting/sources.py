"""The sources of this library as trees: what the names in a definition mean, for a file that gathers definitions.

A definition is read once (``Reader``): what it mentions, and what changes in it outside of this library.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

PLAIN = "udit.exporting.plain"
SPEC = ("udit.spec.base", "Spec")
STAND_INS = {
    ("udit.ops.matmul", "apply"),
    ("udit.ops.matmul", "apply_chain"),
    ("udit.ops.matmul", "unchanged"),
    ("udit.ops.normalization", "normalize"),
    ("udit.ops.normalization", "layer_norm"),
    ("udit.ops.attention", "dot_product_attention"),
    ("udit.nn.blocks", "run"),
    ("udit.nn.dropout", "Dropout"),
    ("udit.errors", "nearest"),
}
"""Definitions that ``plain`` has in a shorter form."""
CALLED_THROUGH = {("udit.ops.recompute", "recomputable"), ("udit.ops.recompute", "lowered")}
"""``recomputable(f, x)`` becomes ``f(x)`` and ``lowered(x)`` becomes ``x``: they matter in backward alone."""
TRAINING = {("udit.diffusion.learning", "Learning")}
"""What is cut out with the field or the keyword that holds it."""
MODEL_FIELD = re.compile(r"(\w+)\.model_fields\['(\w+)'\]")

Key = tuple[str, str]
"""Module and name of a definition."""


class Edit(NamedTuple):
    """A part of a source, in bytes, and what takes its place."""

    start: int
    end: int
    text: str


@dataclass
class Module:
    """A parsed source file and its top-level names."""

    name: str
    source: bytes
    tree: ast.Module
    starts: list[int]
    """Byte at which each line starts."""
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, Key | str] = field(default_factory=dict)
    """Name -> what is imported from this library, or the import statement of another one."""
    needs: list[str] = field(default_factory=list)
    """Modules of this library that it imports when it is loaded."""
    follows: dict[int, ast.stmt] = field(default_factory=dict)
    """By the id of a statement, the text behind it that describes it."""

    def span(self, node: ast.stmt | ast.expr | ast.keyword) -> tuple[int, int]:
        """First byte of a node, its decorators included, and the one behind its last."""
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda part: part.lineno)
        start = self.starts[first.lineno - 1] + first.col_offset
        start -= 1 if first is not node else 0  # the @ of a decorator
        return start, self.starts[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)

    def line_of(self, node: ast.stmt | ast.expr) -> Edit:
        """The removal of a node's lines, and of empty ones behind them."""
        start, end = self.starts[node.lineno - 1], self.starts[node.end_lineno or 0]
        rest = self.source[end:]
        return Edit(start, end + len(rest) - len(rest.lstrip(b"\n")), "")


ROOT = Path(__file__).parents[1]


@cache
def module(name: str) -> Module | None:
    """A module of this library; None if there is none of that name."""
    path = ROOT.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return None
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = Module(name, source, ast.parse(source), starts)
    previous: ast.stmt | None = None
    for statement in found.tree.body:
        _read(found, statement)
        if is_text(statement) and previous is not None:
            found.follows[id(previous)] = statement
        previous = statement
    return found


def _read(owner: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            owner.definitions[name] = statement
        case ast.Assign(targets=[*targets]):
            names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
            owner.definitions |= {n.id: statement for n in names if isinstance(n, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            owner.definitions[name] = statement
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            for inner in statement.body:
                owner.imports |= imported(inner)
        case ast.Import() | ast.ImportFrom():
            owner.imports |= (new := imported(statement))
            for target in new.values():
                if isinstance(target, tuple):
                    owner.needs.append(target[0])
                    owner.needs.append(".".join(target))


def imported(statement: ast.stmt) -> dict[str, Key | str]:
    """The names that an import statement makes."""
    if isinstance(statement, ast.Import):
        return {
            a.asname or a.name.split(".")[0]: f"import {a.name}" + (f" as {a.asname}" if a.asname else "")
            for a in statement.names
        }
    if not isinstance(statement, ast.ImportFrom) or statement.module in (None, "__future__"):
        return {}
    where = str(statement.module)
    if where.split(".")[0] == "udit":
        return {a.asname or a.name: (where, a.name) for a in statement.names}
    return {
        a.asname or a.name: f"from {where} import {a.name}" + (f" as {a.asname}" if a.asname else "")
        for a in statement.names
    }


def resolve(where: str, name: str) -> Key | str | Module | None:
    """What a name is at the top level of a module: a definition, an import of another library, or a module."""
    if (own := module(where)) is None:
        return None
    if name == "OPERATOR" and where.startswith("udit.ops."):
        name = "reference"
    if name in own.definitions:
        return (PLAIN, name) if (where, name) in STAND_INS else (where, name)
    target = own.imports.get(name)
    if isinstance(target, tuple):
        return resolve(*target)
    return target or module(f"{where}.{name}")


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


class Mention(NamedTuple):
    """A place where a taken definition names another."""

    start: int
    end: int
    key: Key
    hidden: frozenset[str]
    """Local names of the functions around it."""


class Reader(ast.NodeVisitor):
    """What one definition, or one member of a class, mentions."""

    def __init__(self, owner: Module, node: ast.AST, member: bool = False) -> None:
        self.owner = owner
        self.mentions: list[Mention] = []
        self.edits: list[Edit] = []
        self.attributes: set[str] = set()
        self.externals: set[str] = set()
        self.scopes: list[tuple[frozenset[str], dict[str, Key | str]]] = []
        if member and isinstance(node, ast.AnnAssign | ast.Assign):  # the name itself is the class's
            parts = [node.value, node.annotation if isinstance(node, ast.AnnAssign) else None]
            for part in filter(None, parts):
                self.visit(part)
        else:
            self.visit(node)

    def look_up(self, name: str) -> Key | str | Module | None:
        """What a name means here; None for a local or a builtin one."""
        for local, deferred in reversed(self.scopes):
            if name in deferred:
                target = deferred[name]
                return resolve(*target) if isinstance(target, tuple) else None
            if name in local:
                return None
        return resolve(self.owner.name, name)

    def target(self, node: ast.AST) -> Key | str | Module | None:
        """What a name, or an attribute of a module, means."""
        if isinstance(node, ast.Name):
            return self.look_up(node.id)
        if isinstance(node, ast.Attribute) and isinstance(inside := self.target(node.value), Module):
            return resolve(inside.name, node.attr)
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function is a scope; its decorators, defaults and annotations are not in it."""
        for outer in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(outer)
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        for argument in filter(None, every):
            if argument.annotation:
                self.visit(argument.annotation)
        if node.returns:
            self.visit(node.returns)
        deferred: dict[str, Key | str] = {}
        for statement in ast.walk(node):
            if isinstance(statement, ast.ImportFrom) and any(
                isinstance(t, tuple) for t in imported(statement).values()
            ):
                deferred |= imported(statement)
                self.edits.append(self.owner.line_of(statement))
        local = frozenset(_bound(node)) - set(deferred)
        self.scopes.append((local, deferred))
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A scope of its arguments."""
        self.scopes.append((frozenset(a.arg for a in node.args.args), {}))
        self.visit(node.body)
        self.scopes.pop()

    def visit_Name(self, node: ast.Name) -> None:
        """A definition, or something of another library."""
        self.take(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A definition of a module, or an attribute of an object; pydantic's ``cls.model_fields["kind"].default``."""
        if node.attr == "default" and (match := MODEL_FIELD.fullmatch(ast.unparse(node.value))):
            self.attributes.add(match[2])
            self.edits.append(Edit(*self.owner.span(node), f"{match[1]}.{match[2]}"))
        elif not self.take(node):
            self.attributes.add(node.attr)
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Calls that matter in backward alone vanish, and so do keywords of training."""
        if self.target(node.func) in CALLED_THROUGH:
            start, end = self.owner.span(node)
            first = node.args[0]
            inner = self.owner.span(first)
            self.edits.append(Edit(start, inner[0], ""))
            if len(node.args) > 1:
                self.edits.append(Edit(inner[1], self.owner.span(node.args[1])[0], "("))
            else:
                self.edits.append(Edit(inner[1], end, ""))
            for argument in node.args:
                self.visit(argument)
            return
        kept = []
        places = [self.owner.span(part)[1] for part in (node.func, *node.args)]
        for keyword in node.keywords:
            if self.of_training(keyword.value):
                self.edits.append(Edit(places[-1], self.owner.span(keyword)[1], ""))
            else:
                kept.append(keyword)
            places.append(self.owner.span(keyword)[1])
        for part in (node.func, *node.args, *kept):
            self.visit(part)

    def of_training(self, node: ast.AST) -> bool:
        """Whether an expression mentions what only training uses."""
        return any(self.target(part) in TRAINING for part in ast.walk(node))

    def take(self, node: ast.Name | ast.Attribute) -> bool:
        """Records a mention; False if the node is none."""
        if not isinstance(found := self.target(node), tuple | str):
            return False
        if isinstance(found, str):
            self.externals.add(found)
        else:
            hidden = frozenset().union(*(local for local, _ in self.scopes))
            self.mentions.append(Mention(*self.owner.span(node), found, hidden))
        return True


def _bound(function: ast.FunctionDef) -> Iterator[str]:
    """Names that are arguments or assigned within a function, nested ones included."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef) and node is not function:
            yield node.name
