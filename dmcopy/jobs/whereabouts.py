"""Where the destination of a job is now: a disk that was unplugged may be back in another slot.

A job has its destination on record by what names it for ever (`kernel.identity`), and by the path
that it had.  The path may lead to another disk by now, or to none; the names do not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from dmcopy.destinations import parse
from dmcopy.destinations.base import Destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.errors import DestinationFailed, Interrupted
from dmcopy.kernel import identity as same
from dmcopy.kernel import lasting
from dmcopy.kernel.command import Commander
from dmcopy.kernel.identity import Identity
from dmcopy.kernel.sysfs import Sysfs

_GOING: Final = 5.0  # seconds: a disk that was pulled fails first, and goes then
_POLL: Final = 0.05


class Found(NamedTuple):
    """A destination, and what is known of it as it is called now."""

    destination: Destination
    identity: Identity


def destination_now(text: str, recorded: Identity, sysfs: Sysfs, run: Commander) -> Found:
    """Find the destination *text* of a job, which has *recorded* as what it was.

    A block device is found whatever it is called now; where it is not there, its old path is
    given, and opening that is refused.  Changes nothing.
    """
    if "devno" not in recorded:  # a file
        return Found(parse(text), recorded)
    path = str(recorded["path"])
    with suppress(OSError):
        devno = sysfs.devno_of(path)
        if same.difference(recorded, sysfs.identity(devno)) is None:
            renamed = {"devno": devno, "kname": sysfs.kname(devno)}  # a link may lead there
            is_same = devno == recorded["devno"]
            return Found(BlockDestination(path), recorded if is_same else {**recorded, **renamed})
    found = same.find(recorded, sysfs) or _by_partuuid(recorded, sysfs, run)
    if found is None:
        return Found(BlockDestination(path), recorded)
    now = {"path": sysfs.node(found), "devno": found, "kname": sysfs.kname(found)}
    return Found(BlockDestination(now["path"]), {**recorded, **now})


def _by_partuuid(recorded: Identity, sysfs: Sysfs, run: Commander) -> str | None:
    if not recorded.get("partuuid"):
        return None
    found = lasting.find(lasting.Lasting("partuuid", str(recorded["partuuid"])), sysfs, run)
    return found[0] if len(found) == 1 else None  # of twins nobody knows which


def is_gone(recorded: Mapping[str, str | int], sysfs: Sysfs) -> bool:
    """Tell whether a block device that was there is so no more, or is another one."""
    if "devno" not in recorded:
        return False
    try:
        return same.difference(recorded, sysfs.identity(str(recorded["devno"]))) is not None
    except OSError:
        return True


@contextmanager
def unplugged_is_interrupted(recorded: Identity, sysfs: Sysfs) -> Iterator[None]:
    """Raise `Interrupted` for a destination that failed because it was pulled out.

    What is durable on it stays so, and the job goes on when it is back.  A disk that fails and
    stays has failed.
    """
    try:
        yield
    except DestinationFailed as exc:
        if not _goes(recorded, sysfs):
            raise
        raise Interrupted(
            f"{recorded['path']} was unplugged while it was written ({exc}); attach it again"
        ) from exc


def _goes(recorded: Identity, sysfs: Sysfs) -> bool:
    """Tell whether it is gone, or goes within some seconds."""
    end = time.monotonic() + (_GOING if _can_be_pulled(recorded, sysfs) else 0.0)
    while not is_gone(recorded, sysfs):
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL)
    return True


def _can_be_pulled(recorded: Identity, sysfs: Sysfs) -> bool:
    """Tell whether there is hardware behind it: dm, md, loop devices stay while they are open."""
    with suppress(KeyError, OSError):
        devno = str(recorded["devno"])
        return (sysfs.folder(sysfs.parent(devno) or devno) / "device").exists()
    return True  # it goes just now
