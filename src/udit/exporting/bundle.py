"""What a file of some names of this library holds: all definitions that they need, and no other.

From the wanted names on, a definition is taken if one that is taken mentions it, and a method or a config's field only
if its name occurs in what is taken.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udit.diffusion.samplers import SAMPLERS
from udit.exporting.sources import SPEC, TRAINING, Key, Module, Reader, module, resolve
from udit.spec.base import Spec

ROWS = ("udit.diffusion.samplers", "_ROWS")


@dataclass
class Piece:
    """A taken definition, or a taken member of a class."""

    owner: Module
    node: ast.stmt
    reader: Reader
    members: dict[str, Piece] = field(default_factory=dict)
    """Taken members of a class by name, and its text."""
    spec: bool = False
    """It is a config."""


class Bundle:
    """One file of some names of a module and all that they need."""

    def __init__(self, root: str, names: Sequence[str], constants: Mapping[str, Any], process: str) -> None:
        """Collects.

        Args:
            root: the module that comes last.
            names: of it, that are wanted.
            constants: values of names of the root that are written out: configs, numbers, texts.
            process: kind of the noising process; samplers of others are left out.
        """
        self.root = root
        self.constants = dict(constants)
        self.process = process
        self.pieces: dict[Key, Piece] = {}
        self.attributes: set[str] = set()
        self.externals: set[str] = set()
        self.values: dict[Key, list[Spec]] = {}
        for value in constants.values():
            self._note(value)
        waiting = [(root, name) for name in (*names, *constants)] + list(self.values)
        grown = True
        while waiting or grown:
            while waiting:
                key = waiting.pop()
                if key not in self.pieces:
                    waiting += self._take(key)
            known = len(self.attributes)
            for key in list(self.pieces):
                waiting += self._grow(key)
            grown = len(self.attributes) > known  # which a class that came before may have members of

    def _note(self, value: Any) -> None:
        """Remembers the configs in a value by their class and its bases, which say the types of fields."""
        if isinstance(value, Spec):
            for kind in type(value).__mro__:
                if issubclass(kind, Spec) and kind is not Spec:
                    self.values.setdefault((kind.__module__, kind.__name__), []).append(value)
            for name in type(value).model_fields:
                self._note(getattr(value, name))
        elif isinstance(value, tuple | list):
            for part in value:
                self._note(part)

    def _read(self, owner: Module, node: ast.AST, member: bool = False) -> tuple[Reader, list[Key]]:
        reader = Reader(owner, node, member)
        self.attributes |= reader.attributes
        return reader, [mention.key for mention in reader.mentions if mention.key != SPEC]

    def _take(self, key: Key) -> list[Key]:
        """Takes a definition; of a class its head alone. What it mentions."""
        owner = module(key[0])
        assert owner is not None
        node = owner.definitions[key[1]]
        if key[0] == self.root and key[1] in self.constants:
            self.pieces[key] = Piece(owner, node, Reader(owner, ast.Pass()))
            return []
        if key == ROWS and isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            reader, mentions = self._read(owner, ast.Tuple([r for r in node.value.elts if self._serves(r)], ast.Load()))
            reader.edits += [owner.line_of(row) for row in node.value.elts if not self._serves(row)]
            self.pieces[key] = Piece(owner, node, reader)
            return mentions
        if not isinstance(node, ast.ClassDef):
            reader, mentions = self._read(owner, node)
            self.pieces[key] = Piece(owner, node, reader)
            return mentions
        head = ast.Tuple([*node.bases, *(k.value for k in node.keywords), *node.decorator_list], ast.Load())
        reader, mentions = self._read(owner, head)
        self.pieces[key] = Piece(owner, node, reader, spec=self._is_spec(key))
        return mentions

    def _serves(self, row: ast.expr) -> bool:
        """Whether a row of the table of samplers names the process."""
        assert isinstance(row, ast.Call)
        name = row.args[0]
        assert isinstance(name, ast.Constant)
        return self.process in SAMPLERS[str(name.value)].processes

    def _is_spec(self, key: Key) -> bool:
        owner = module(key[0])
        node = owner.definitions.get(key[1]) if owner else None
        if owner is None or not isinstance(node, ast.ClassDef):
            return False
        bases = [resolve(owner.name, base.id) for base in node.bases if isinstance(base, ast.Name)]
        return any(base == SPEC or (isinstance(base, tuple) and self._is_spec(base)) for base in bases)

    def _grow(self, key: Key) -> list[Key]:
        """Takes members of a taken class whose names occur by now. What they mention."""
        piece = self.pieces[key]
        if not isinstance(piece.node, ast.ClassDef):
            return []
        found: list[Key] = []
        for member in piece.node.body:
            name = name_of(member)
            if name is None or name in piece.members or not self._wanted(key, piece, member, name):
                continue
            if piece.spec and isinstance(member, ast.AnnAssign) and not is_class_variable(member):
                reader = Reader(piece.owner, ast.Pass())
                found += self._kinds(key, name)
            else:
                reader, mentions = self._read(piece.owner, member, True)
                found += mentions
            piece.members[name] = Piece(piece.owner, member, reader)
        return found

    def _wanted(self, key: Key, piece: Piece, member: ast.stmt, name: str) -> bool:
        if key[0] == self.root or (name.startswith("__") and name.endswith("__")) or name == "forward":
            return True
        if isinstance(member, ast.FunctionDef) and any("validator" in ast.unparse(d) for d in member.decorator_list):
            return False
        if isinstance(member, ast.AnnAssign) and not is_class_variable(member) and not piece.spec:
            reader = Reader(piece.owner, member, True)
            return not any(mention.key in TRAINING for mention in reader.mentions)
        return name in self.attributes

    def _kinds(self, key: Key, name: str) -> list[Key]:
        """The classes of configs that a field of a config holds."""
        held = [getattr(value, name) for value in self.values.get(key, [])]
        flat = [part for value in held for part in (value if isinstance(value, tuple | list) else [value])]
        return [(type(part).__module__, type(part).__name__) for part in flat if isinstance(part, Spec)]


def name_of(member: ast.stmt) -> str | None:
    """The name that a member of a class has; None of a text."""
    match member:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def is_class_variable(member: ast.AnnAssign) -> bool:
    """Whether a name in a class is no field."""
    return ast.unparse(member.annotation).startswith("ClassVar")
