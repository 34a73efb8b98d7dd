"""Class names and numbers: labels of what a user writes, and names of labels for a user to read; free of torch."""

from __future__ import annotations

import difflib
import logging
import operator
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from udit.errors import UserError, as_list
from udit.interpolation import Between

SHOWN = 10
"""Most class names that an error lists."""

Label = int | Between[int]
"""A class number, or a point between two."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    A text is a class name first, and a class number if no class has that name: of folders 1, 2 and 10, "2" is the class
    with that name and not the third class. A number in Python is always a class number. Composed and decomposed letters
    are the same, and so are texts that differ in spaces only.
    """

    count: int
    """Labels run from 0 to this; 0 is an unconditional model."""
    names: tuple[str, ...] = ()
    """In label order; empty, or fewer than ``count``, where the data has no names for all classes."""
    null_label: int | None = None
    """The label that stands for no class, where there is one."""

    @property
    def trained(self) -> int:
        """Number of classes, from 0 on, that the data had images of: those with a name, or all without names."""
        return min(len(self.names), self.count) or self.count

    def title(self, label: Label) -> str:
        """A class's name, or its number where it has none; of a point between two, both and the share."""
        if isinstance(label, Between):
            return str(Between(self.title(label.first), self.title(label.second), label.share))
        return self.names[label] if label < len(self.names) else str(label)

    def labels(self, wanted: str | Sequence[str | int]) -> list[int]:
        """Class names or numbers as labels.

        Args:
            wanted: a list, or a text as on the command line, e.g. ``"cat,dog"`` or ``"3, 7"``. A text is tried as one
                name first, and longer names before shorter ones, so that names may have commas.

        Raises:
            UserError: an unknown or ambiguous name, a number that is no class's, or labels for an unconditional model.
        """
        if not self.count:
            raise UserError("labels were given to an unconditional model (num_classes 0); leave them out")
        words = self._split(wanted) if isinstance(wanted, str) else as_list("labels", wanted)
        if not words:
            raise UserError(f"labels is {wanted!r}; name at least one class, or leave it out for all classes in turn")
        found = [self._label(word) for word in words]
        self._tell_names_of_others(words, found)
        return found

    def points(self, wanted: str | Sequence[str | int | Between[Any]]) -> list[Label]:
        """As ``labels``, of which any may be a point between two.

        Raises:
            UserError: as ``labels``.
        """
        if isinstance(wanted, str) or not any(isinstance(word, Between) for word in as_list("labels", wanted)):
            return [*self.labels(wanted)]  # type: ignore[arg-type]
        ends = [(word.first, word.second) if isinstance(word, Between) else (word,) for word in wanted]
        found = iter(self.labels([end for pair in ends for end in pair]))
        return [
            Between(next(found), next(found), word.share) if isinstance(word, Between) else next(found)
            for word in wanted
        ]

    def each(self, wanted: str | Sequence[str | int | Between[Any]] | None, count: int) -> list[Label] | None:
        """A label for each of several images; None for a model without classes.

        Args:
            wanted: as for ``points``, repeated in turn; all classes that were trained in turn if None.
            count: of the images.

        Raises:
            UserError: as ``labels``, or there are more labels than images.
        """
        chosen: list[Label] = [*range(self.trained)] if wanted is None else self.points(wanted)
        if wanted is not None and len(chosen) > count:
            raise UserError(f"labels are {len(chosen)} and seeds {count}; give a seed for each label, or fewer labels")
        return [chosen[i % len(chosen)] for i in range(count)] if chosen else None

    @cached_property
    def _plain_names(self) -> list[str]:
        return [_plain(name) for name in self.names]

    def _split(self, text: str) -> list[str]:
        """The names and numbers of a text with commas, the longest names first."""
        parts = text.split(",")
        words: list[str] = []
        while parts:
            lengths = range(len(parts), 0, -1)
            taken = next((n for n in lengths if self._named(",".join(parts[:n]))), 1)
            words.append(",".join(parts[:taken]).strip())
            del parts[:taken]
        return words if any(words) else []

    def _named(self, word: str) -> list[int]:
        """Labels of the classes with a name: the one that is written so, or all that are the same text."""
        if word in self.names:
            return [self.names.index(word)]
        plain = _plain(word)
        return [i for i, name in enumerate(self._plain_names) if name == plain]

    def _label(self, word: Any) -> int:
        if isinstance(word, str):
            found = self._named(word)
            if len(found) > 1:
                numbers = " and ".join(map(str, found))
                raise UserError(f"{word!r} is the name of several classes, numbers {numbers}; give the number")
            if found:
                return found[0]
            number = _number(word)
            if number is None:
                raise UserError(f"no class {word.strip()!r}{self._nearest(word)}")
            return self._checked(number)
        try:
            return self._checked(operator.index(word) if not isinstance(word, bool) else None)
        except TypeError:
            raise UserError(f"label {word!r} is neither a class name nor a whole number; give one of them") from None

    def _checked(self, number: int | None) -> int:
        """The number of a class.

        Raises:
            UserError: it is none's, or the null class's.
            TypeError: None.
        """
        if number is None:
            raise TypeError
        if 0 <= number < self.count:
            return number
        null = number == self.null_label
        raise UserError(
            f"label {number} is out of range; the model knows 0 to {self.count - 1}"
            + (f" ({number} is its null class, which stands for no class)" if null else "")
        )

    def _nearest(self, word: str) -> str:
        """The tail of an error on an unknown name: the nearest known one, or some of them, quoted."""
        plain = {_plain(name).casefold(): name for name in self.names}
        if close := difflib.get_close_matches(_plain(word).casefold(), plain, n=1, cutoff=0.5):
            return f"; did you mean {plain[close[0]]!r}?"
        if not self.names:
            return f"; the model has no class names, give numbers from 0 to {self.count - 1}"
        more = f" and {len(self.names) - SHOWN} more" if len(self.names) > SHOWN else ""
        return f" (known: {', '.join(map(repr, self.names[:SHOWN]))}{more})"

    def _tell_names_of_others(self, words: Sequence[Any], labels: Sequence[int]) -> None:
        """Says it where a text that was taken as a name is also another class's number."""
        for word, label in zip(words, labels, strict=True):
            number = _number(word) if isinstance(word, str) else None
            if number is not None and number != label and 0 <= number < self.count:
                log.info(
                    "label '%s' is the class of that name, number %d; class number %d is '%s'",
                    *(word.strip(), label, number, self.title(number)),
                )
                return


def _plain(text: str) -> str:
    """A text with composed letters, single spaces, and one space behind each comma."""
    return ", ".join(" ".join(part.split()) for part in unicodedata.normalize("NFC", text).split(","))


def _number(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.removeprefix("-").isdecimal() else None
