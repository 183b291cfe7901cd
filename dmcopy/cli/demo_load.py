"""The application of ``dmcopy demo``: writes all the time, and remembers what was safe when.

Runs as a process of its own: ``python -m dmcopy.cli.demo_load DIRECTORY LOG SECONDS``.  It
writes numbered files whose content follows from their number, and overwrites random places
of one large file; each is synced.  LOG gets a line a numbered file: number, when writing it
began, when it was safe (nanoseconds since 1970).  It ends after SECONDS, or on SIGTERM.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FILE_SIZE: Final = 16 << 10
BULK_NAME: Final = "bulk"
_PIECE: Final = 64 << 10
_BULK_WRITES: Final = 8  # for each numbered file
_MOST: Final = 1000  # numbered files, so that the disk is never full


def content(number: int) -> bytes:
    """Give what file *number* holds."""
    block = hashlib.sha256(str(number).encode()).digest()
    return f"{number:012d}\n".encode() + block * (FILE_SIZE // len(block))


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def main(argv: Sequence[str]) -> int:
    """Write until the time is up."""
    directory, log, seconds = Path(argv[0]), Path(argv[1]), float(argv[2])
    deadline = time.monotonic() + seconds
    dice = random.Random(1)  # noqa: S311 (places to write to, no secret)
    bulk = os.open(directory / BULK_NAME, os.O_WRONLY)
    places = os.fstat(bulk).st_size // _PIECE
    folder = os.open(directory, os.O_RDONLY)
    with open(log, "w", encoding="ascii") as out:
        for number in range(_MOST):
            if time.monotonic() > deadline:
                break
            began = time.time_ns()
            _write(directory / f"{number:06d}", content(number))
            os.fsync(folder)  # the name too
            out.write(f"{number} {began} {time.time_ns()}\n")
            out.flush()
            for _ in range(_BULK_WRITES):
                os.pwrite(bulk, dice.randbytes(_PIECE), dice.randrange(places) * _PIECE)
            os.fdatasync(bulk)
            time.sleep(0.01)
        while time.monotonic() < deadline:
            os.pwrite(bulk, dice.randbytes(_PIECE), dice.randrange(places) * _PIECE)
            os.fdatasync(bulk)
            time.sleep(0.01)
    os.close(bulk)
    os.close(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
