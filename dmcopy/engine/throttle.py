"""How fast the reading thread may go: by its job's own rate, and by one cap over the host.

`Throttle` is the one; `HostCap` the other: a file that every worker of the host maps, so the
cap needs no daemon.  Either may be changed while someone waits for it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.core.rate import LARGEST_RATE
from dmcopy.errors import DmcopyError
from dmcopy.units import Bytes

_LOOK_SECONDS: Final = 0.1  # from one look to the next, at whether to stop, at the host's cap
_LOCK_SECONDS: Final = 0.001
_CREDIT: Final = 10  # what came late may be made up for: a tenth of a second's worth
_NS: Final = 1_000_000_000


def _never() -> bool:
    return False


class Throttle:
    """Paces one thread, which calls `wait`; any other may set `rate`.

    What was moved is a debt, paid off at *rate*: so a piece goes at once when nothing is owed,
    whatever its size, and the next one waits for it.
    """

    def __init__(
        self,
        rate: Bytes | None,
        *,
        cap: HostCap | None = None,
        stop: Callable[[], bool] = _never,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Pace to *rate* bytes a second, None for no limit, and to the host's *cap* as well.

        *stop* is asked ten times a second whether to wait no longer.  *pause* waits for so
        many seconds, less when the rate is set meanwhile; it is replaced in tests.
        """
        self._changed: Final = threading.Event()
        self._lock: Final = threading.Lock()
        self._cap: Final = cap
        self._stop: Final = stop
        self._clock: Final = clock
        self._pause: Final = pause if pause is not None else self._changed.wait
        self._rate = rate
        self._credit = 0.0  # bytes; below 0: owed
        self._at = clock()  # when _credit was that

    @property
    def rate(self) -> Bytes | None:
        """Bytes a second, None for no limit.  A new one counts at once, also for who waits."""
        return self._rate

    @rate.setter
    def rate(self, rate: Bytes | None) -> None:
        with self._lock:
            self._settle()  # what went by until now was at the old rate
            self._rate = rate
        self._changed.set()

    def wait(self, size: int) -> None:
        """Return when *size* bytes may be moved, or when there is a reason to stop."""
        if self._rate is not None:
            self._wait_for_rate(size)
        if self._cap is not None:
            self._cap.wait(size, stop=self._stop)

    def _wait_for_rate(self, size: int) -> None:
        while not self._stop():
            # before the look: a rate that is set after it ends the pause
            self._changed.clear()
            with self._lock:
                self._settle()
                if self._rate is None:
                    return
                if self._credit > -1:  # less than a byte is rounding
                    self._credit -= size
                    return
                left = -self._credit / self._rate
            self._pause(min(left, _LOOK_SECONDS))

    def _settle(self) -> None:
        now = self._clock()
        if self._rate is None:
            self._credit = 0.0
        else:
            # some credit: a pause that was too long, or a slow read, must not slow the job
            self._credit += self._rate * (now - self._at)
            self._credit = min(self._credit, self._rate / _CREDIT)
        self._at = now


class _Line(NamedTuple):
    """Who waits for the host's cap, as positions in one long line of bytes.

    A piece takes the bytes from *tail* on; its turn comes when *head*, which advances at
    *rate*, is there.  In bytes, not in times: a change of the rate moves every turn by itself,
    and a line that is too long to be true shows at any rate.
    """

    rate: int  # u64, bytes a second; 0: no cap
    head: int  # u64, bytes
    since: int  # u64, ns of CLOCK_MONOTONIC: when head was there
    tail: int  # u64, bytes

    def at(self, now: int) -> _Line:
        """Give the line as it is at *now*; what cannot be true becomes an empty one.

        That is a *since* in the future (the file is from a former boot) or anything that is
        larger than all workers of a host can make it.
        """
        tail = self.tail if self.tail < _FARTHEST else 0
        if not self.rate or tail != self.tail or self.since > now or tail - self.head > _LONGEST:
            return _Line(self.rate, tail, now, tail)
        head = self.head + self.rate * (now - self.since) // _NS
        return _Line(self.rate, min(head, tail + self.rate // _CREDIT), now, tail)

    def seconds_to(self, turn: int) -> float:
        """Give the time until *turn* comes; 0 also for one that is no longer in the line."""
        if not self.rate or turn >= self.tail:
            return 0.0
        return max(turn - self.head, 0) / self.rate


_FARTHEST: Final = 1 << 62  # bytes: years of the fastest host
_LONGEST: Final = 1 << 36  # bytes: a thousand workers with segments of 64 MiB
_MAGIC: Final = int.from_bytes(b"dmcap\0\0\1", "little")  # the last byte is the version
_RATE, _HEAD, _SINCE, _TAIL = 1, 2, 3, 4  # 64-bit words of the file; 0 is the magic
_SIZE: Final = 5 * 8


class HostCap:
    """One cap over all dmcopy processes of the host; one thread at a time.

    Turns are taken in the order of asking, a piece each, so jobs share the cap evenly, and
    one that does not ask leaves it to the others.  A process that ends between taking its turn
    and its turn leaves that piece of the cap unused, no more.
    """

    def __init__(
        self,
        fd: int,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Own *fd*, a file that `open` has prepared; the clock is the same for all processes."""
        self._fd = fd
        self._clock = clock
        self._sleep = sleep
        self._map = mmap.mmap(fd, _SIZE)
        # aligned 64-bit words: one is read and written whole, also without the lock
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def open(cls, path: Path) -> HostCap:
        """Open the cap of the host at *path*, and make the file if there is none.

        Raises `DmcopyError`, also for a file that is something else.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DmcopyError(f"cannot open the cap of this host: {exc}") from exc
        try:
            return cls._prepare(fd, path)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _prepare(cls, fd: int, path: Path) -> HostCap:
        try:
            # the first one fills it in; who was killed at that left zeroes to the next one
            fcntl.flock(fd, fcntl.LOCK_EX)
            found = os.pread(fd, 8, 0)
            if found.strip(b"\0"):
                if int.from_bytes(found, "little") != _MAGIC or os.fstat(fd).st_size != _SIZE:
                    raise DmcopyError(f"{path} is not the cap of a host; remove it")
            else:
                os.posix_fallocate(fd, 0, _SIZE)  # a page that is not there would be a SIGBUS
            cap = cls(fd)
            cap._words[0] = _MAGIC
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError as exc:
            raise DmcopyError(f"cannot use {path}: {exc}") from exc
        return cap

    @staticmethod
    def peek(path: Path) -> Bytes | None:
        """Give the cap in force, None for none; makes nothing and waits for nobody."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = os.pread(fd, _SIZE, 0)
        except OSError:
            return None
        finally:
            os.close(fd)
        words = memoryview(found[: len(found) // 8 * 8]).cast("Q")
        if len(words) * 8 != _SIZE or words[0] != _MAGIC:
            return None
        return Bytes(words[_RATE]) if 0 < words[_RATE] <= LARGEST_RATE else None

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._words.release()
        self._map.close()
        os.close(self._fd)

    @property
    def rate(self) -> Bytes | None:
        """Bytes a second over all jobs, None for no cap.  No system call."""
        rate = self._words[_RATE]
        return Bytes(rate) if 0 < rate <= LARGEST_RATE else None

    def set_rate(self, rate: Bytes | None) -> None:
        """Cap all jobs to *rate* together, None for no cap; who waits knows in 0.1 s."""
        if rate is not None and not 0 < rate <= LARGEST_RATE:
            raise ValueError(f"no rate: {rate}")
        with self._locked(_never):
            self._write(self._read()._replace(rate=rate or 0))

    def wait(self, size: int, *, stop: Callable[[], bool] = _never) -> None:
        """Return when it is the turn of *size* bytes, or when *stop* says so.

        Without a cap this is no system call, so it may be asked for every piece.
        """
        if self.rate is None:
            return
        with self._locked(stop) as locked:
            if not locked:
                return
            line = self._read()
            turn = line.tail
            line = line._replace(tail=turn + size)
            self._write(line)
        left = line.seconds_to(turn)
        while left > 0 and not stop():
            self._sleep(min(left, _LOOK_SECONDS))
            left = self._left(turn, stop)

    def _left(self, turn: int, stop: Callable[[], bool]) -> float:
        with self._locked(stop) as locked:
            return self._read().seconds_to(turn) if locked else 0.0

    @contextmanager
    def _locked(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """Hold the file's lock; gives False, without it, when there is a reason to stop.

        The kernel drops the lock of a process that dies.  One that is stopped (SIGSTOP) just
        here keeps it, so nobody waits for it without asking *stop*.
        """
        while not (locked := self._try_lock()) and not stop():
            self._sleep(_LOCK_SECONDS)
        try:
            yield locked
        finally:
            if locked:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def _read(self) -> _Line:
        words = self._words
        # the clock is read under the lock: else another's *since* could be later
        return _Line(words[_RATE], words[_HEAD], words[_SINCE], words[_TAIL]).at(self._clock())

    def _write(self, line: _Line) -> None:
        # Killed between two of these, the line is wrong by a few pieces once: head is never
        # believed to be past the tail, nor far behind it.
        self._words[_HEAD], self._words[_SINCE] = line.head, line.since
        self._words[_TAIL], self._words[_RATE] = line.tail, line.rate
