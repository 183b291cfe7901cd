"""What we say to systemd and to its journal, where they run.

Two datagram protocols, each a few lines: sd_notify(3), and the native protocol of the journal
(systemd's documentation, "Native Journal Protocol").  Neither needs libsystemd, and without
systemd each call does nothing.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

_RUNS: Final = Path("/run/systemd/system")  # sd_booted(3)
_JOURNAL: Final = "/run/systemd/journal/socket"
_LISTEN_FIRST: Final = 3  # SD_LISTEN_FDS_START


def is_running() -> bool:
    """Tell whether systemd is this host's first process."""
    return _RUNS.is_dir()


def notify(*words: str) -> None:
    """Tell systemd a unit's state, ``READY=1`` and the like; nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # of the abstract name space
        address = "\0" + address[1:]
    _send(address, "\n".join(words).encode())


def watchdog_seconds() -> float | None:
    """Give within how many seconds systemd wants to hear ``WATCHDOG=1``, None for never."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def listening() -> socket.socket | None:
    """Give the socket that systemd listens on for us (sd_listen_fds(3)), None where it does not.

    The caller closes it.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(_LISTEN_FIRST, False)
    return socket.socket(fileno=_LISTEN_FIRST)


def journal(message: str, fields: Mapping[str, str], *, path: str = _JOURNAL) -> None:
    """Write an entry with *fields* (names in capitals) to the journal, if there is one."""
    _send(path, entry({"MESSAGE": message, **fields}))


def entry(fields: Mapping[str, str]) -> bytes:
    """Give an entry as the journal reads it: what has lines in it goes with its length."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _send(address: str, data: bytes) -> None:
    """Send one datagram; who listens may be gone, and must not keep us."""
    flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, flags) as out, suppress(OSError):
        out.sendto(data, address)
