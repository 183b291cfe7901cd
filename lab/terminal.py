"""The host's end of a guest's terminal: a pseudo-terminal between the real one and the guest.

The guest's own tty does echo, line editing and Ctrl-C, so everything on the host is raw: each
key goes through as a byte.  The real terminal is put back as it was, whatever happens.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import tty
from types import TracebackType
from typing import Final

ESCAPE: Final = b"\x1d"  # Ctrl-]: three of them at once end a guest that does not answer


def window_size(fd: int) -> tuple[int, int]:
    """Give rows and columns of the terminal *fd*, 24 x 80 where it is none."""
    try:
        packed = fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return 24, 80
    rows, columns, _, _ = struct.unpack("4H", packed)
    return rows or 24, columns or 80


class Pty:
    """A pseudo-terminal; the guest gets `slave`, `relay` serves the other end."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.rows, self.columns = window_size(self._real())
        self._saved: list[int | list[bytes | int]] | None = None
        self._resize()

    @staticmethod
    def _real() -> int:
        return sys.__stdin__.fileno() if sys.__stdin__ is not None else 0

    @property
    def path(self) -> str:
        """Give the path of the guest's end."""
        return os.ttyname(self.slave)

    def _resize(self) -> None:
        self.rows, self.columns = window_size(self._real())
        fcntl.ioctl(
            self.master, termios.TIOCSWINSZ, struct.pack("4H", self.rows, self.columns, 0, 0)
        )

    def __enter__(self) -> Pty:
        real = self._real()
        if os.isatty(real):
            self._saved = termios.tcgetattr(real)
            tty.setraw(real)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._saved is not None:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            termios.tcsetattr(self._real(), termios.TCSADRAIN, self._saved)
        os.close(self.master)
        os.close(self.slave)

    def relay(self, transcript: int, *, wait: float) -> bool:
        """Pass on what came within *wait* seconds; False when the user asked for the end."""
        real = self._real()
        sources = [self.master] if self._closed else [self.master, real]
        ready, _, _ = select.select(sources, [], [], wait)
        if self.master in ready:
            data = os.read(self.master, 65536)
            _write_all(1, data)
            _write_all(transcript, data)
        if real in ready:
            keys = os.read(real, 4096)
            if not keys:
                self._closed = True
            if ESCAPE * 3 in keys:
                return False
            _write_all(self.master, keys)
        return True

    _closed = False


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
