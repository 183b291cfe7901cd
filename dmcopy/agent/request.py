"""What is asked of ``dmcopy-job@.service``: words of the command line; and the way back.

A file for each instance of the unit, in a directory that is root's alone.  The unit removes it when
it takes it, before it does anything; from then on the two who have it open are the only ones that
can see it, and it is gone with them, however they end.  The answer is written behind the question.

Whoever removes it has it: an asker that could remove it knows that nothing is going to be done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from dmcopy.errors import DmcopyError
from dmcopy.kernel import systemd

_STALE_SECONDS: Final = 3600.0  # of one that nobody has taken: its asker was killed in between
_PLACES: Final = "DMCOPY_"
_READ: Final = 1 << 16
ANSWERED: Final = "answered"  # the last event of an answer


class Request(NamedTuple):
    """Words of the command line, where they are said (None: anywhere), and the asker's places."""

    words: tuple[str, ...]
    directory: str | None = None
    environment: Mapping[str, str] = {}

    @classmethod
    def of(cls, words: tuple[str, ...], directory: str | None) -> Request:
        """Make one of ours: with our places (DMCOPY_STATE_DIR and the like)."""
        ours = {name: value for name, value in os.environ.items() if name.startswith(_PLACES)}
        return cls(words, directory, ours)

    def text(self) -> str:
        """Give the line that `parse` reads."""
        return json.dumps(self._asdict()) + "\n"

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read it; raises `DmcopyError` for what is none."""
        try:
            said = json.loads(text)
            words = tuple(str(word) for word in said["words"])
            return cls(words, said["directory"], dict(said["environment"]))
        except (ValueError, KeyError, TypeError) as exc:
            raise DmcopyError(f"what is asked cannot be read: {exc!r}") from exc


class Asked:
    """The asker's side: the question lies there from ``with`` on, until it is taken or we end."""

    def __init__(self, folder: Path, instance: str, request: Request) -> None:
        self._path = folder / instance
        self._question = request.text().encode()
        self._fd = -1

    def __enter__(self) -> Asked:
        """Ask; raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self._path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        try:
            os.write(self._fd, self._question)
        except OSError:
            self.__exit__(None, None, None)
            raise
        return self

    def answer(self) -> str:
        """Give what was answered up to now."""
        data = bytearray()
        while more := os.pread(self._fd, _READ, len(self._question) + len(data)):
            data += more
        return data.decode(errors="replace")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the question back, where nobody has taken it."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


class Answer:
    """The unit's side: what happens, and at last how it ended, or that its begin time is fixed.

    Systemd is told of that as well.  What is said later is for nobody.
    """

    def __init__(self, fd: int) -> None:
        """*fd* is ours to close."""
        self._fd = fd
        self._is_over = False

    def __enter__(self) -> Answer:
        return self

    def say(self, line: Mapping[str, object]) -> None:
        """Say one event."""
        self.write(json.dumps(line) + "\n")

    def write(self, text: str) -> None:
        """Say what a command prints; where there is no room, it is not known, and does no harm."""
        if not self._is_over:
            with suppress(OSError):
                os.write(self._fd, text.encode())

    def end(self, status: int, message: str = "") -> None:
        """Say that it has begun or is done (0), or the exit status and why; only once."""
        if self._is_over:
            return
        self.say({"event": ANSWERED, "exit_status": status, "message": message})
        self._is_over = True
        if status == 0:
            systemd.notify("READY=1")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def take(folder: Path, instance: str) -> tuple[Request, Answer]:
    """Take what is asked of *instance*; raises `DmcopyError` when nothing is asked (any more)."""
    path = folder / instance
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError as exc:
        raise _nothing(path, exc) from exc
    try:
        path.unlink()
        data = bytearray()
        while more := os.read(fd, _READ):
            data += more
        return Request.parse(data.decode()), Answer(fd)
    except OSError as exc:
        os.close(fd)
        raise _nothing(path, exc) from exc
    except DmcopyError:
        os.close(fd)
        raise


def _nothing(path: Path, exc: OSError) -> DmcopyError:
    return DmcopyError(f"nothing is asked in {path}: {exc.strerror}")


def _sweep(folder: Path) -> None:
    """Remove what was never taken."""
    for path in folder.iterdir():
        with suppress(OSError):  # it has just been taken
            if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()
