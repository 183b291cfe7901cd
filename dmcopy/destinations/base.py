"""What every kind of destination promises; tests/contract holds each kind to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar

from dmcopy.core.extent import Extent
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes, Sectors


class Can(Flag):
    """What a kind of destination is able to do."""

    RANDOM = auto()  # segments in any order (a tape cannot)
    ZERO = auto()  # has a cheap way to write zeroes
    REREAD = auto()  # can be read back, for --verify


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a destination needs to know to refuse: the host, and what is being copied."""

    sysfs: Sysfs
    run: Commander
    source: str  # devno of the device being copied
    overwrite_signature: bool = False
    spare: frozenset[str] = frozenset()  # devnos that are in use by the job too (the COW device)
    identity: Mapping[str, str | int] | None = None  # as recorded; `open` refuses another one
    resume: Mapping[str, str | int] | None = None  # the `Session.mark` to go on with; None: new


class Session(ABC):
    """An open destination; closed by the context manager it came from.

    Extents start at 0 of the image.  Every memoryview is page aligned and exactly
    ``extent.size`` bytes long.  All methods raise `DestinationFailed` with the offset and
    what the kernel said.
    """

    @property
    @abstractmethod
    def mark(self) -> Mapping[str, str | int]:
        """What tells this session's work from any other's; for `Surroundings.resume`."""

    @abstractmethod
    def keep(self) -> None:
        """Leave what was written when the session ends, complete or not.

        From then on a later session may go on with it, and who gives it up removes it.
        """

    @abstractmethod
    def write(self, at: Extent, data: memoryview) -> None:
        """Write all of *data*; not durable before `flush`."""

    @abstractmethod
    def zero(self, at: Extent) -> None:
        """Make the range read as zeroes, in the cheapest way that is sure."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything written so far durable on the medium."""

    @abstractmethod
    def read(self, at: Extent, into: memoryview) -> None:
        """Read back from the medium, past the page cache."""

    @abstractmethod
    def complete(self) -> None:
        """Say that the image is whole and flushed; an image file gets its final name."""


def must_fit(at: Extent, whole: Extent, data: memoryview | None = None) -> None:
    """Raise ValueError, for it is our own mistake, unless *data* fills *at*, inside *whole*.

    A device may be larger than the image; what lies behind the image is not ours.
    """
    if at.clip(whole) != at or (data is not None and data.nbytes != at.size):
        raise ValueError(f"{at} with {data!r} does not fit into {whole}")


class Destination(ABC):
    """A place to copy to, as the user named it; nothing is opened before `open`."""

    kind: ClassVar[str]
    can: ClassVar[Can]

    @classmethod
    @abstractmethod
    def parse(cls, rest: str) -> Destination:
        """Read what stands behind ``KIND:``; raises `UsageError`."""

    @abstractmethod
    def __str__(self) -> str:
        """Give ``KIND:REST``, the inverse of parse."""

    @abstractmethod
    def check(self, length: Sectors, around: Surroundings) -> None:
        """Raise `Refused` (or `UsageError`) when it must not be written; changes nothing.

        May start programs; `open` never does, because the worker calls it.
        """

    @abstractmethod
    def identity(self, around: Surroundings) -> Mapping[str, str | int]:
        """Give what tells this destination from any other, for the job's record.

        May start programs, as `check`.
        """

    @abstractmethod
    def open(self, length: Sectors, around: Surroundings) -> AbstractContextManager[Session]:
        """Check again, open, and hold it against others until the context ends.

        With ``around.resume`` it is the work of an earlier session that is opened, and only
        that.  When the context ends without `Session.complete` or `Session.keep`, an image
        file that was begun is removed; a block device keeps what was written.
        """

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Name the paths that a killed copy may leave behind, and that rescue removes."""

    def segment_alignment(self) -> Bytes:
        """Give what segments should be a multiple of; 512 where it does not matter."""
        return Bytes(512)
