"""Starts again what was paused on md arrays, when control cannot: ``python -m
dmcopy.stack.md_keeper`` (see `md_pause`).

What is paused stands in a record, one file a job, before it is paused.  Whoever works on it has
the file locked (flock(2)): control, and this process, which has the lock by the same open file
description.  So a record that nobody has locked is one that both have left, and anyone may put it
right.  It does not survive a boot, and need not: md begins what is due anew when it assembles an
array.

Like `watch` this imports next to nothing: it is there to stay when memory is short.

Kernel: drivers/md/md.c:action_store; ``idle`` ends ``frozen``, and has md look what is due.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

DONE: Final = b"d"
FROZEN: Final = "frozen"
_ASKED_FOR: Final = frozenset({"check", "repair"})  # md does not begin them by itself
_LOCK: Final = ".lock"  # no job's name begins so


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Be the only one who changes records and what they are about."""
    with _open(folder / _LOCK) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextmanager
def _open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def records(folder: Path) -> list[Path]:
    """Give the records that there are."""
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.name[:1] != ".")
    return []


def arrays_in(record: Path) -> list[dict[str, Any]]:  # Any: JSON
    """Give what a record says was paused; nothing where it is not whole, or gone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return list(json.loads(record.read_text())["arrays"])
    return []


def is_left(record: Path) -> bool:
    """Tell whether nobody works on a record any more."""
    try:
        fd = os.open(record, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def put_back(
    record: Path, *, keep: Collection[str] = (), remove: bool = True, root: str = "/sys"
) -> tuple[list[str], list[str]]:
    """Start again what *record* says was paused; gives what was done, and what could not be.

    Not those arrays, by devno, that another living record has too, nor *keep*.  Then *remove* the
    record, unless something was left.  The folder is locked by the caller.
    """
    others = [path for path in records(record.parent) if path != record and not is_left(path)]
    wanted = {array["devno"] for other in others for array in arrays_in(other)} | set(keep)
    done, left = [], []
    for array in arrays_in(record):
        if array["devno"] in wanted:
            continue
        folder = Path(root) / "dev" / "block" / array["devno"] / "md"
        try:
            if _uuid(folder) != array["uuid"]:
                continue  # the array is gone, and its number went to another
            if (folder / "sync_action").read_text().strip() != FROZEN:
                continue  # somebody has it going already
            word = array["found"] if array["found"] in _ASKED_FOR else "idle"
            (folder / "sync_action").write_text(word)
            done.append(f"started the {array['found']} of {array['name']} again")
        except FileNotFoundError:
            continue  # the array is gone
        except OSError as exc:
            left.append(f"the {array['found']} of {array['name']} is paused: {exc.strerror}")
    if remove and not left:
        record.unlink(missing_ok=True)
    return done, left


def _uuid(folder: Path) -> str:
    with suppress(OSError):  # older kernels do not tell
        return (folder / "uuid").read_text().strip()
    return ""


def main(argv: Sequence[str]) -> int:
    """Wait for the end of control; *argv* is the record, whose lock came as a descriptor."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("-1000")
    record = Path(argv[0])
    with suppress(BrokenPipeError):  # control is gone already
        os.write(1, b"ready\n")
    if os.read(0, 1) != DONE:
        with folder_locked(record.parent):
            put_back(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
