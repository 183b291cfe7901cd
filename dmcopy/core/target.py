"""What every dm target is: a kind, a length, and arguments in the kernel's order.

A target has no start: a `Table` lays targets end to end.  What is not known here is kept
word for word as `Opaque`, for a table that we give back must be the one we took.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from dmcopy.units import Sectors

_DEVNO: Final = re.compile(r"\d+:\d+")


@dataclass(frozen=True)
class Target(ABC):
    """One line of a table without its start; *length* in sectors."""

    KIND: ClassVar[str] = ""  # the kernel's name of the target
    length: Sectors

    @property
    def kind(self) -> str:
        """The kernel's name of the target."""
        return self.KIND

    @abstractmethod
    def args(self) -> list[str]:
        """Give the arguments as the kernel's constructor takes them."""

    @classmethod
    @abstractmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        """Read what `args` gives; raises ValueError for what does not fit."""

    @property
    def params(self) -> str:
        """Give the arguments as one string."""
        return " ".join(self.args())

    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """Name the devices that the target uses, as they stand in its arguments."""


@dataclass(frozen=True)
class Opaque(Target):
    """A target of a *name* (kind) that we do not know, kept word for word."""

    name: str
    words: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.name

    def args(self) -> list[str]:
        return list(self.words)

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        """Read ``KIND ARGS...``."""
        if not args:
            raise ValueError("a target needs a kind")
        return cls(length, args[0], tuple(args[1:]))

    def devices(self) -> tuple[str, ...]:
        """Give the words that look like "major:minor"."""
        return tuple(word for word in self.words if _DEVNO.fullmatch(word))


def number(word: str) -> int:
    """Read an unsigned number as the kernel writes it; raises ValueError for any other word.

    No sign and no leading zero: what is read can be written again word for word.
    """
    if not word.isascii() or not word.isdigit() or (word[0] == "0" and word != "0"):
        raise ValueError(f"'{word}' is not a number")
    return int(word)


def expect(args: Sequence[str], *counts: int) -> None:
    """Raise ValueError unless there are as many arguments as one of *counts*."""
    if len(args) not in counts:
        raise ValueError(f"{len(args)} arguments, not {' or '.join(map(str, counts))}")
