"""The text of a file that holds definitions of many modules of this library, in order, with their docstrings.

The sources are read and never copied by hand. What only this library needs is rewritten on the way:

- an operator is its reference in torch, and what only training or a compiled kernel asks for is a short stand-in of
  ``plain``;
- a config is a dataclass without checks, and the values of a model's config are written out;
- names of modules are gone (``ops.apply`` is ``apply``), and where names of two modules are equal they get the module's
  before them.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from udit.exporting.bundle import Bundle, Piece, is_class_variable, name_of
from udit.exporting.sources import PLAIN, Edit, Key, Module, Reader, is_text, module, resolve
from udit.spec.base import Spec

LONGEST = 120
"""Characters of a line."""

WIDTH = 120
IGNORED = re.compile(r"  # type: ignore\[[\w, -]+\]")
"""What is said to this library's type checker."""
CHECKED_TYPES = {"PositiveInt": "int", "NonNegativeInt": "int", "PositiveFloat": "float", "NonNegativeFloat": "float"}


class Writer:
    """The text of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.pieces = bundle.pieces
        self.externals: set[str] = set()
        self.names = self._names()

    def text(self, title: str) -> str:
        """The file.

        Args:
            title: its docstring.
        """
        sections = [self._section(where) for where in self._order()]
        return (
            "\n\n\n".join([f'"""{title}"""\n\nfrom __future__ import annotations\n\n{self._imports()}', *sections])
            + "\n"
        )

    def _names(self) -> dict[Key, str]:
        """The name of every definition in the file, where the names of all modules meet."""
        hidden: dict[Key, set[str]] = {}
        for piece in self.pieces.values():
            for part in (piece, *piece.members.values()):
                for mention in part.reader.mentions:
                    written = part.owner.source[mention.start : mention.end].decode()
                    if written != mention.key[1]:  # a local name may stand in the way
                        hidden.setdefault(mention.key, set()).update(mention.hidden)
        parts = [part for piece in self.pieces.values() for part in (piece, *piece.members.values())]
        foreign = {line.split()[-1].split(".")[0] for part in parts for line in part.reader.externals}
        names: dict[Key, str] = {}
        for key in self.pieces:
            others = [other for other in self.pieces if other[1] == key[1]]
            crowded = len(others) > 1 or key[1] in ("reference", *foreign) or key[1] in hidden.get(key, ())
            names[key] = _prefixed(key) if crowded and key[0] != self.bundle.root else key[1]
        assert len(set(names.values())) == len(names), "two definitions have one name"
        return names

    def _order(self) -> list[str]:
        """Modules, each behind those that it imports."""
        done: list[str] = []
        seen: set[str] = set()

        def visit(where: str) -> None:
            if where in seen or (found := module(where)) is None:
                return
            seen.add(where)
            for other in found.needs:
                visit(other)
            done.append(where)

        taken = sorted({where for where, _ in self.pieces} - {self.bundle.root})
        for where in (PLAIN, *taken, self.bundle.root):
            visit(where)
        return [where for where in done if where in {*taken, self.bundle.root}]

    def _section(self, where: str) -> str:
        """A module's taken definitions in its order, under its docstring."""
        owner = module(where)
        assert owner is not None
        rule = f"# ---- {where.replace('.', '/')} ".ljust(WIDTH, "-")
        first, *further = (ast.get_docstring(owner.tree) or "").split("\n\n")
        about = [first, *(part for part in further if part.startswith("Axes:"))]
        lines = [line for part in about for line in ("", *textwrap.wrap(" ".join(part.split()), WIDTH - 2))]
        head = "\n".join([rule, *(f"# {line}".rstrip() for line in lines)])
        wanted = {id(piece.node): key for key, piece in self.pieces.items() if key[0] == where}
        chunks = [head]
        for statement in owner.tree.body:
            if isinstance(statement, ast.If) and where == self.bundle.root:
                last = Piece(owner, statement, Reader(owner, statement))
                chunks.append(self._source(last, *owner.span(statement)))
            elif id(statement) in wanted:
                chunks.append(self._definition(wanted[id(statement)]))
        return _joined(chunks)

    def _definition(self, key: Key) -> str:
        piece = self.pieces[key]
        if key[0] == self.bundle.root and key[1] in self.bundle.constants:
            return self._constant(key, piece)
        if isinstance(piece.node, ast.ClassDef):
            return self._class(key, piece)
        text = self._source(piece, *piece.owner.span(piece.node), self._own_name(key, piece))
        return text + self._described(piece)

    def _described(self, piece: Piece) -> str:
        follows = piece.owner.follows.get(id(piece.node))
        return "" if follows is None else "\n" + piece.owner.source[slice(*piece.owner.span(follows))].decode()

    def _own_name(self, key: Key, piece: Piece) -> list[Edit]:
        """The new name where a function or class is defined."""
        if not isinstance(piece.node, ast.FunctionDef | ast.ClassDef):
            return []
        start = piece.owner.starts[piece.node.lineno - 1] + piece.node.col_offset
        start += len("def " if isinstance(piece.node, ast.FunctionDef) else "class ")
        return [Edit(start, start + len(key[1].encode()), self.names[key])]

    def _source(self, piece: Piece, start: int, end: int, edits: Sequence[Edit] = ()) -> str:
        """A part of a source with all changes."""
        self.externals |= piece.reader.externals
        renamed = [Edit(m.start, m.end, self.names[m.key]) for m in piece.reader.mentions if m.key in self.names]
        out, place = b"", start
        for edit in sorted([*renamed, *piece.reader.edits, *edits], key=lambda e: (e.start, -e.end)):
            if edit.start < place or edit.end > end:  # in a part that is gone already
                continue
            out += piece.owner.source[place : edit.start] + edit.text.encode()
            place = edit.end
        return IGNORED.sub("", (out + piece.owner.source[place:end]).decode())

    def _constant(self, key: Key, piece: Piece) -> str:
        assert isinstance(piece.node, ast.AnnAssign)
        reader = Reader(piece.owner, piece.node.annotation)
        kept = Piece(piece.owner, piece.node, reader)
        value = self.bundle.constants[key[1]]
        kind = self.names[_key(value)] if isinstance(value, Spec) else type(value).__name__
        return f"{key[1]}: {kind} = {self._literal(value)}{self._described(kept)}"

    def _literal(self, value: Any, indent: str = "") -> str:
        """A value as Python writes it; configs with the fields that are used."""
        if isinstance(value, tuple | list) and any(isinstance(part, Spec) for part in value):
            inside = "".join(f"{indent}    {self._literal(part, indent + '    ')},\n" for part in value)
            return f"(\n{inside}{indent})"
        if not isinstance(value, Spec):
            return repr(tuple(value)) if isinstance(value, list) else _quoted(value)
        fields = [name for name in type(value).model_fields if self._has_field(type(value), name)]
        name = self.names[_key(value)]
        lines = [f"{f}={self._literal(getattr(value, f), indent + '    ')}" for f in fields]
        if len(one := f"{name}({', '.join(lines)})") + len(indent) < 80 and "\n" not in one:
            return one
        return f"{name}(\n" + "".join(f"{indent}    {line},\n" for line in lines) + f"{indent})"

    def _has_field(self, kind: type, name: str) -> bool:
        pieces = (self.pieces.get((base.__module__, base.__name__)) for base in kind.__mro__)
        return any(piece is not None and name in piece.members for piece in pieces)

    def _class(self, key: Key, piece: Piece) -> str:
        assert isinstance(piece.node, ast.ClassDef)
        owner, body = piece.owner, piece.node.body
        first = owner.starts[min(node.lineno for node in (body[0], *getattr(body[0], "decorator_list", []))) - 1]
        if piece.spec:
            bases = ", ".join(self.names[m.key] for m in piece.reader.mentions if m.key in self.names)
            text = f"@dataclass(frozen=True, kw_only=True)\nclass {self.names[key]}{f'({bases})' if bases else ''}:"
            self.externals.add("from dataclasses import dataclass")
        else:
            text = self._source(piece, owner.span(piece.node)[0], first, self._own_name(key, piece)).rstrip("\n")
        place, shown = first, True  # the class's own docstring is
        for member in body:
            end = owner.span(member)[1]
            taken = piece.members.get(name_of(member) or "")
            gap = owner.source[place : owner.starts[member.lineno - 1]].count(b"\n")
            if taken is not None and piece.spec and isinstance(member, ast.AnnAssign) and not is_class_variable(member):
                text += "\n" * max(gap, 1) + f"    {self._field(key, member)}"
            elif taken is not None or (is_text(member) and shown):
                part = taken or Piece(owner, member, Reader(owner, ast.Pass()))
                text += ("\n" if place == first else "") + self._source(part, place, end)
            shown = taken is not None
            place = end
        return text

    def _field(self, key: Key, member: ast.AnnAssign) -> str:
        """A field of a config: its type without checks, and only a kind has a default."""
        name = ast.unparse(member.target)
        held = [getattr(value, name) for value in self.bundle.values.get(key, [])]
        specs = dict.fromkeys(self.names[_key(value)] for value in held if isinstance(value, Spec))
        if specs:
            kind = " | ".join([*specs, *(["None"] if None in held else [])])
        else:
            kind = self._type(module(key[0]), member.annotation)
        default = f" = {ast.unparse(member.value)}" if name in ("kind", "family") and member.value else ""
        return f"{name}: {kind}{default}".replace("'", '"')

    def _type(self, owner: Module | None, node: ast.expr) -> str:
        """An annotation without pydantic's checks."""
        assert owner is not None
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            head = self._type(owner, node.value)
            if head == "Annotated":
                return self._type(owner, parts[0])
            return f"{head}[{', '.join(self._type(owner, part) for part in parts)}]"
        if isinstance(node, ast.BinOp):
            sides = [self._type(owner, node.left), self._type(owner, node.right)]
            return " | ".join(dict.fromkeys(side for side in sides if side))
        if not isinstance(node, ast.Name):
            return ast.unparse(node)
        if node.id in CHECKED_TYPES or node.id == "Annotated":
            return CHECKED_TYPES.get(node.id, node.id)
        found = resolve(owner.name, node.id)
        if isinstance(found, str):
            self.externals.add(found)
        if not isinstance(found, tuple):
            return node.id
        if found in self.names:
            return self.names[found]
        inside = module(found[0])
        alias = inside.definitions[found[1]] if inside else None
        if isinstance(alias, ast.Assign):
            return self._type(inside, alias.value)
        return ""  # a config that this model has none of

    def _imports(self) -> str:
        """Import statements of other libraries, the standard one's first."""
        plain = sorted(line for line in self.externals if line.startswith("import "))
        grouped: dict[str, list[str]] = {}
        for line in self.externals - set(plain):
            where, _, name = line.removeprefix("from ").partition(" import ")
            grouped.setdefault(where, []).append(name)
        lines = plain + [_import(where, sorted(grouped[where])) for where in sorted(grouped)]
        standard = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
        others = [line for line in lines if line not in standard]
        return "\n".join(standard) + "\n\n" + "\n".join(others)


def _key(value: Spec) -> Key:
    return type(value).__module__, type(value).__name__


def _quoted(value: Any) -> str:
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set('"\\')
    return f'"{value}"' if plain else repr(value)


def _prefixed(key: Key) -> str:
    """A name with its module's before it, in the name's own manner of writing."""
    where, name = key[0].split(".")[-1], key[1]
    bare = name.lstrip("_")
    mark = name[: len(name) - len(bare)]
    if bare.isupper():
        return f"{mark}{where.upper()}_{bare}"
    if bare[0].isupper():
        return mark + "".join(part.capitalize() for part in where.split("_")) + bare
    return f"{mark}{where}_{bare}"


def _joined(chunks: Sequence[str]) -> str:
    """Definitions with two empty lines between them, constants with none."""
    text = chunks[0]
    for before, chunk in itertools.pairwise(chunks):
        large = before is chunks[0] or any(p.startswith(("def ", "class ", "@", "if ")) for p in (before, chunk))
        text += ("\n\n\n" if large else "\n") + chunk
    return text


def _import(where: str, names: Sequence[str]) -> str:
    """One line, or one for each name where that would be too long."""
    line = f"from {where} import {', '.join(names)}"
    if len(line) <= LONGEST:
        return line
    return "\n".join([f"from {where} import (", *(f"    {name}," for name in names), ")"])
