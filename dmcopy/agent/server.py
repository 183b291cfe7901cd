"""The socket of the agent: varlink messages in and out, for callers that may be hostile or slow.

What a message means is `agent.varlink`'s to say; this is what stands between it and the world.  A
caller is told by the kernel (SO_PEERCRED, unix(7)), not by itself.  One thread a caller, of whom
there are only so many: whoever sends nothing whole, reads nothing, or sends too much is dropped
after a while, and what a call does wrong ends that call and no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.agent.varlink import Service

log = logging.getLogger(__name__)

INTERFACE: Final = "org.dmcopy.Agent"
# of the command line, by the error of the interface; `Failed` has its own with it
EXIT_STATUSES: Final = {"Usage": 2, "Refused": 3, "PointInTimeLost": 4}
_UCRED: Final = struct.Struct("@iII")  # struct ucred (linux/socket.h): pid, uid, gid
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS: Final = 1024  # bytes: what Python has room for, 256 of gid_t
_READ: Final = 1 << 16


class Peer(NamedTuple):
    """Who has connected, as the kernel says."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()  # its others


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller may cost."""

    callers: int = 64  # at a time, of whom those that are not root have three quarters
    backlog: int = 128
    message: int = 1 << 18  # bytes
    idle: float = 600.0  # seconds between two calls
    whole: float = 10.0  # seconds from the first byte of a message to its last
    reading: float = 10.0  # seconds in which the caller must take something of an answer


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end; raises OSError.

    Of one who is in more groups than there is room for, his first only.
    """
    ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    groups = b""
    with contextlib.suppress(OSError):  # ERANGE
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS)
    pid, uid, gid = _UCRED.unpack(ucred)
    return Peer(pid, uid, gid, struct.unpack(f"@{len(groups) // 4}I", groups))


class Caller:
    """One connection; given to what answers, which may ask whether anybody listens still."""

    def __init__(self, connection: socket.socket, peer: Peer, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self.peer = peer
        self._buffer = bytearray()
        connection.settimeout(limits.reading)

    @property
    def is_gone(self) -> bool:
        """Tell whether the other end is closed; what it has sent meanwhile is kept."""
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(self._connection, select.POLLRDHUP)
            return bool(poll.poll(0))
        return True

    def messages(self) -> Iterator[bytes]:
        """Give one message after the other; ends with the connection, or with its patience.

        Raises `TooLong`.
        """
        while True:
            end = self._buffer.find(b"\0")
            while end < 0:
                if not self._more():
                    return
                end = self._buffer.find(b"\0")
            message = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            yield message

    def _more(self) -> bool:
        limits = self._limits
        deadline = time.monotonic() + (limits.whole if self._buffer else limits.idle)
        started = bool(self._buffer)
        while b"\0" not in self._buffer:
            if len(self._buffer) > limits.message:
                raise TooLong
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._connection.settimeout(left)
            data = self._connection.recv(_READ)
            if not data:
                return False
            searched = len(self._buffer)
            self._buffer += data
            if self._buffer.find(b"\0", searched) >= 0:
                break
            if not started:
                started, deadline = True, time.monotonic() + limits.whole
        if self._buffer.find(b"\0") > limits.message:
            raise TooLong
        return True

    def send(self, message: bytes) -> None:
        """Send a message; raises OSError when the caller does not take it."""
        self._connection.settimeout(self._limits.reading)
        self._connection.sendall(message + b"\0")

    def refuse(self, error: str, **parameters: object) -> None:
        """Send an error, as far as it goes at once."""
        self._connection.setblocking(False)
        said = {"error": error, "parameters": parameters}
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps(said).encode() + b"\0")

    def close(self) -> None:
        """End the connection; twice is fine."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class TooLong(Exception):
    """A message is longer than any that makes sense."""


class Server:
    """Takes callers on a listening socket, in a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        service: Service,
        listening: socket.socket,
        *,
        may_ask: Callable[[Peer], bool],
        limits: Limits | None = None,
    ) -> None:
        """*listening* stays the caller's to close."""
        self._service = service
        self._listening = listening
        self._may_ask = may_ask
        self._limits = limits or Limits()
        self._callers: set[Caller] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Take callers from now on."""
        self._listening.setblocking(False)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Tell whether callers are taken."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more callers and drop those that are there: jobs are not theirs to keep."""
        self._stopping.set()
        os.close(self._wake)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._woken)
        with self._lock:
            callers = list(self._callers)
        for caller in callers:
            caller.close()

    def _accept(self) -> None:
        while True:
            select.select([self._listening.fileno(), self._woken], [], [])
            if self._stopping.is_set():
                return
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:  # it went away again
                continue
            except OSError as exc:  # no descriptor left, above all: others will end
                log.warning("cannot take a caller: %s", exc)
                self._stopping.wait(0.2)
                continue
            try:
                self._take(connection)
            except (OSError, RuntimeError) as exc:  # it is gone; no thread could be started
                log.warning("cannot take a caller: %s", exc)
                connection.close()

    def _take(self, connection: socket.socket) -> None:
        caller = Caller(connection, peer_of(connection), self._limits)
        if not self._may_ask(caller.peer):
            log.warning("uid %d (pid %d) may not ask", caller.peer.uid, caller.peer.pid)
            why = f"uid {caller.peer.uid} is neither root nor in the group of this socket"
            caller.refuse(f"{INTERFACE}.PermissionDenied", message=why)
            caller.close()
            return
        room = self._limits.callers
        with self._lock:
            others = sum(one.peer.uid != 0 for one in self._callers)
            is_full = len(self._callers) >= room
            if caller.peer.uid != 0:  # root always has some room
                is_full = is_full or others >= room * 3 // 4
            if not is_full:
                self._callers.add(caller)
        if is_full:
            why = f"{room} callers are connected already"
            caller.refuse(f"{INTERFACE}.TooMuch", message=why)
            caller.close()
            return
        try:
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()
        except RuntimeError:
            self._forget(caller)
            raise

    def _serve(self, caller: Caller) -> None:
        try:
            for message in caller.messages():
                for answer in self._answers(caller, message):
                    caller.send(answer)
                    if self._stopping.is_set():
                        return
        except TooLong:
            why = f"a call has at most {self._limits.message} bytes"
            caller.refuse(f"{INTERFACE}.TooMuch", message=why)
        except _Bug as exc:
            caller.refuse(f"{INTERFACE}.Failed", message=str(exc), exit_status=1)
        except OSError:
            pass  # it went away, or takes nothing
        finally:
            self._forget(caller)

    def _answers(self, caller: Caller, message: bytes) -> Iterator[bytes]:
        try:
            yield from self._service.handle(message, caller)
        except OSError:
            raise
        except Exception as exc:  # the outermost loop of this caller: the others go on
            log.exception("a call failed")
            raise _Bug(f"the agent has a bug: {type(exc).__name__}: {exc}") from exc

    def _forget(self, caller: Caller) -> None:
        caller.close()
        with self._lock:
            self._callers.discard(caller)


class _Bug(Exception):
    """A call that a bug of ours could not answer."""
