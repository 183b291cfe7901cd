"""Freezes mounted file systems for a limited time, the topmost first, and thaws them.

The kernel's freeze waits for writes under way and cannot be interrupted (fs/super.c:freeze_super),
so a thread of its own waits with it: when the time is over who asked is told at once, and what is
frozen is thawed as soon as the kernel lets go of it.  It forks nothing and touches no file.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from dmcopy.kernel import freeze as kernel

_LOOK_SECONDS: Final = 0.2
_STACK: Final = 512 * 1024  # bytes, of the thread: memory is locked


class Frozen(NamedTuple):
    """What came of a freeze."""

    in_time: bool
    held: tuple[str, ...]  # frozen by us
    cannot: tuple[str, ...]  # its kind of file system cannot be frozen
    before: tuple[str, ...]  # was frozen already, by somebody else
    failed: str | None  # why one could not be frozen


class Freezer:
    """Some mount points, in the order in which they are frozen; `thaw` and `close` in every case.

    *open_mount*, *freeze* and *thaw* are the kernel's (`dmcopy.kernel.freeze`).
    """

    def __init__(
        self,
        points: Sequence[str],
        *,
        open_mount: Callable[[str], int] = kernel.open_mount,
        freeze: Callable[[int], None] = kernel.freeze,
        thaw: Callable[[int], None] = kernel.thaw,
    ) -> None:
        """Open the mount points; raises OSError with the path."""
        self._freeze, self._thaw = freeze, thaw
        self._fds: list[tuple[str, int]] = []
        self._held: list[tuple[str, int]] = []
        self._cannot: list[str] = []
        self._before: list[str] = []
        self._failed: str | None = None
        self._is_off = threading.Event()  # nothing more is to be frozen
        self._frozen: threading.Event | None = None
        self._thawed: threading.Event | None = None
        self.since: float | None = None  # time.monotonic() when the first was begun
        try:
            for point in points:
                self._fds.append((point, open_mount(point)))
        except OSError:
            self.close()
            raise

    def sync(
        self, sync: Callable[[str], None], timeout: float, *, is_off: Callable[[], bool]
    ) -> bool:
        """Write out what can be written before the freeze; tell whether that was done in time.

        It is not waited for any more when *is_off*; an error will be the freeze's own.
        """

        def work() -> None:
            for point, _ in self._fds:
                with suppress(OSError):
                    sync(point)

        done = _in_thread(work)
        end = time.monotonic() + timeout
        while not done.wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end or is_off():
                return False
        return True

    def freeze(self, timeout: float) -> Frozen:
        """Freeze all; after *timeout* seconds it is told, and goes on in the background.

        Stops at the first that fails.
        """
        self.since = time.monotonic()
        self._frozen = _in_thread(self._freeze_all)
        in_time = self._frozen.wait(timeout)
        if not in_time:
            self._is_off.set()
        held = tuple(point for point, _ in self._held)
        return Frozen(in_time, held, tuple(self._cannot), tuple(self._before), self._failed)

    def _freeze_all(self) -> None:
        for point, fd in self._fds:
            if self._is_off.is_set():
                return
            try:
                self._freeze(fd)
            except OSError as exc:
                if exc.errno == errno.EOPNOTSUPP:
                    self._cannot.append(point)
                elif exc.errno == errno.EBUSY:
                    self._before.append(point)
                else:
                    self._failed = f"{point}: {exc.strerror}"
                    return
                continue
            self._held.append((point, fd))

    def thaw(self, timeout: float | None) -> list[str]:
        """Let all go, the last one first; gives those still frozen after *timeout* seconds.

        They go when the kernel lets them; call again, with None, to wait for that.
        """
        self._is_off.set()
        if self._frozen is None:
            return []
        frozen = self._frozen

        def work() -> None:
            frozen.wait()
            for one in reversed(tuple(self._held)):
                try:
                    self._thaw(one[1])
                except OSError as exc:
                    if exc.errno != errno.EINVAL:  # else somebody else has thawed it
                        continue
                self._held.remove(one)

        if self._thawed is None:
            self._thawed = _in_thread(work)
        is_over = self._thawed.wait(timeout)
        left = [point for point, _ in self._held]
        return left if is_over or left else [point for point, _ in self._fds]

    def close(self) -> None:
        """Close the mount points."""
        while self._fds:
            os.close(self._fds.pop()[1])


def _in_thread(work: Callable[[], None]) -> threading.Event:
    done = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            done.set()

    threading.stack_size(_STACK)
    threading.Thread(target=run, daemon=True).start()
    return done
