"""How fast a job may copy, as a person says it: ``none``, ``auto``, ``50MiB/s``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dmcopy.errors import UsageError
from dmcopy.units import Bytes, parse_size

LARGEST_RATE: Final = Bytes(1 << 60)  # a second; keeps what is computed from it in 64 bits

_NONE: Final = "none"
_AUTO: Final = "auto"
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True)
class Rate:
    """A limit in bytes a second, None for none; or *auto*: as the origin's writes bear it."""

    limit: Bytes | None = None
    auto: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and (self.auto or not 0 < self.limit <= LARGEST_RATE):
            raise ValueError(f"no rate: {self.limit}, auto {self.auto}")

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read ``none``, ``auto`` or a size a second, with or without ``/s``.

        Raises `UsageError` for anything else, for 0, and above `LARGEST_RATE`.
        """
        word = text.strip().lower()
        if word == _NONE:
            return cls()
        if word == _AUTO:
            return cls(auto=True)
        try:
            return cls(limit=parse_size(word.removesuffix("/s")))
        except ValueError as exc:
            raise UsageError(
                f"'{text}' is not a rate; write a size per second above 0, like 50MiB/s, "
                "or none, or auto"
            ) from exc

    def __str__(self) -> str:
        """Write it so that `parse` reads the very same: in the largest unit that is exact."""
        if self.limit is None:
            return _AUTO if self.auto else _NONE
        number, power = int(self.limit), 0
        while number % 1024 == 0 and power + 1 < len(_UNITS):
            number, power = number // 1024, power + 1
        return f"{number}{_UNITS[power]}/s"
