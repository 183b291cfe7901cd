"""Nobody else's snapshot may miss a write: what is retired passes every snapshot of the volume by.

So before the origin of an LVM snapshot gets a table of ours, LVM's lock of the group is taken, so
that no lvcreate is under way, and who uses the volume's own device is looked at.  A snapshot that
is made later is safe by itself: LVM gives the origin its full table again for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from dmcopy.errors import DmcopyError
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm_lock import vg_locked
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.layers import LAYERS, Layers
from dmcopy.stack.names import Role

_WAIT_SECONDS: Final = 1.0  # it can be tried again

Guard = Callable[[], AbstractContextManager[None]]  # entered around a swap of the origin's table


def only_ours(dm: Dm, sysfs: Sysfs, *, job: str, vg: str, origin: str) -> Guard:
    """Give the guard for *origin* (a devno) of an LVM snapshot in *vg*.

    Entering it raises `DmcopyError` when another has the group's lock, or uses the volume.
    """

    @contextmanager
    def guard() -> Iterator[None]:
        with vg_locked(vg, wait=_WAIT_SECONDS):
            layers = Layers(dm, job)
            source = layers.info(Role.SOURCE)
            if source is None:
                raise DmcopyError(f"the snapshot of job {job} was removed")
            infos = [layers.info(role) for role in (Role.SNAP, *LAYERS)]
            known = {origin} | {info.devno for info in infos if info is not None}
            others = sysfs.holders(source.devno) - known
            if others:
                names = ", ".join(sorted(sysfs.dm_name(devno) or devno for devno in others))
                raise DmcopyError(
                    f"the volume has another snapshot ({names}), which must see every write, so "
                    "nothing is retired"
                )
            yield

    return guard
