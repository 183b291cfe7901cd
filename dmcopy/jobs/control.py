"""How one dmcopy asks another that runs a job: a socket for each job, a JSON line each way.

The running job has the `Desk`; `dmcopy pause`, `set` and the others `ask`.  The socket lies in a
directory that only root can enter.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.lock import wait_free
from dmcopy.jobs.spec import Places

Json = Mapping[str, Any]  # Any: JSON

_LINE_SECONDS: Final = 1.0  # for a client to say what it wants; control waits so long, once
_END_SECONDS: Final = 2.0  # from the close of a job's desk to the release of its lock
_LONGEST: Final = 1 << 16  # bytes of a request or an answer


class Asked:
    """One request; answered once, also later."""

    def __init__(self, connection: socket.socket, request: Json) -> None:
        self._connection = connection
        self.verb = str(request.get("do"))
        self.request = request

    def answer(self, **fields: object) -> None:
        """Say that it is done."""
        self._send({"ok": True, **fields})

    def refuse(self, why: str) -> None:
        """Say why it is not done."""
        self._send({"ok": False, "error": why})

    def _send(self, answer: Json) -> None:
        with self._connection, suppress(OSError):  # who asked may be gone
            self._connection.sendall(json.dumps(answer).encode() + b"\n")


class Desk:
    """Where a running job is asked; whoever has it holds the job's lock."""

    def __init__(self, directory: Path, job: str) -> None:
        self._directory = directory
        self._job = job
        self._socket: socket.socket | None = None

    def __enter__(self) -> Desk:
        """Listen; raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with _address(self._directory, self._job) as address:
            Path(address).unlink(missing_ok=True)  # of a process that was killed
            listening.bind(address)
        listening.listen(8)
        self._socket = listening
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with _address(self._directory, self._job) as address:
                Path(address).unlink(missing_ok=True)

    def fileno(self) -> int:
        """Give the descriptor that is readable when somebody asks."""
        assert self._socket is not None
        return self._socket.fileno()

    def asked(self) -> Iterator[Asked]:
        """Take what was asked; never waits where nobody does."""
        assert self._socket is not None
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                request = _request(_read_line(connection, _LINE_SECONDS))
                if request is None:  # nothing of ours: it gets no answer
                    connection.close()
                    continue
                yield Asked(connection, request)


def ask(directory: Path, job: str, verb: str, *, timeout: float | None, **fields: object) -> Json:
    """Ask the process that runs *job*; gives its answer.

    Waits for at most *timeout* seconds, for ever with None.  Raises `DmcopyError` when nobody
    answers, `Refused` when it will not.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            with _address(directory, job) as address:
                connection.connect(address)
            connection.sendall(json.dumps({"do": verb, **fields}).encode() + b"\n")
            line = _read_line(connection, timeout)
            answer: Json = json.loads(line)
    except (OSError, ValueError) as exc:
        raise DmcopyError(f"the process that runs job {job} does not answer: {exc}") from exc
    if not answer["ok"]:
        raise Refused(str(answer["error"]))
    return answer


def ask_running(
    places: Places, job: str, verb: str, *, timeout: float | None, **fields: object
) -> Json:
    """Do what `ask` does, for somebody who saw *job* run a moment ago.

    Raises `Refused` also where it has ended since, or hung up because it ends right now.
    """
    try:
        return ask(places.desks, job, verb, timeout=timeout, **fields)
    except Refused:
        raise
    except DmcopyError as exc:
        if not wait_free(places.locks, job, _END_SECONDS):
            raise
        raise Refused(
            f"job {job} does not run any more", way_out=f"see what became of it: dmcopy show {job}"
        ) from exc


class Question:
    """The same, for one who must not wait: `answer` when `fileno` is readable, then it is over.

    Raises `DmcopyError` where nobody listens.
    """

    def __init__(self, directory: Path, job: str, verb: str, **fields: object) -> None:
        self._job = job
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(directory, job) as address:
                self._connection.connect(address)
            self._connection.sendall(json.dumps({"do": verb, **fields}).encode() + b"\n")
        except OSError as exc:
            self._connection.close()
            raise self._silent(exc) from exc

    def fileno(self) -> int:
        """Give the descriptor that is readable when there is an answer."""
        return self._connection.fileno()

    def answer(self) -> Json:
        """Take the answer; raises `DmcopyError` when there is none, `Refused`."""
        try:
            with self._connection:
                answer: Json = json.loads(_read_line(self._connection, _LINE_SECONDS))
        except (OSError, ValueError) as exc:
            raise self._silent(exc) from exc
        if not answer["ok"]:
            raise Refused(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Want to know no more; twice is fine."""
        self._connection.close()

    def _silent(self, exc: Exception) -> DmcopyError:
        return DmcopyError(f"the process that runs job {self._job} does not answer: {exc}")


@contextmanager
def _address(directory: Path, job: str) -> Iterator[str]:
    """Give a path that fits into sun_path (108 bytes, unix(7)) however long the names are."""
    name = hashlib.sha256(job.encode()).hexdigest()[:16]
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def _request(line: bytes) -> Json | None:
    try:
        request = json.loads(line)
    except ValueError:
        return None
    return request if isinstance(request, dict) else None


def _read_line(connection: socket.socket, timeout: float | None) -> bytes:
    """Read up to a newline, or what there is when the time is up."""
    data = b""
    connection.setblocking(False)
    while not data.endswith(b"\n") and len(data) < _LONGEST:
        if not select.select([connection], [], [], timeout)[0]:
            break
        more = connection.recv(_LONGEST)
        if not more:
            break
        data += more
    connection.setblocking(True)
    return data
