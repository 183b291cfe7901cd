"""What a job works with on this machine."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander
from dmcopy.kernel.cookie import Cookies
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.dmrequest import CONTROL
from dmcopy.kernel.sysfs import Sysfs


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a job works with on this machine; *dm* is None without device-mapper."""

    dm: Dm | None
    sysfs: Sysfs
    run: Commander
    places: Places


def open_host(places: Places, *, dm: Dm | None = None, load: bool = True) -> Host:
    """Open this machine; None for *dm* means the kernel's, where it has one.

    Without *load* no module is loaded for it, and so no program is started.
    """
    dm = dm or open_dm(places, load=load)
    return Host(dm=dm, sysfs=Sysfs(), run=Commander(), places=places)


def open_dm(places: Places, *, load: bool = True) -> Dm | None:
    """Open device-mapper's control device, None when this kernel has none."""
    run = Commander()
    if load and not _is_there() and run.find("modprobe"):
        run.run("modprobe", "--quiet", "dm-mod", ok=(0, 1))
    if not _is_there():
        return None
    return DmIoctl(cookies=open_cookies(places))


def _is_there() -> bool:
    """Tell whether the control device has a driver: libdevmapper makes the node without one."""
    try:
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        # what else is wrong, permission above all, is said by whoever opens it for use
        return exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
    return True


def open_cookies(places: Places) -> Cookies:
    """Give the records of udev cookies under way."""
    return Cookies(places.cookies)


def load_targets(host: Host) -> None:
    """Load the modules of the targets that a splice needs; built-in ones are fine too."""
    assert host.dm is not None
    missing = {"snapshot", "snapshot-origin", "linear"} - host.dm.targets().keys()
    if missing and host.run.find("modprobe"):
        host.run.run("modprobe", "--quiet", "dm-snapshot", ok=(0, 1))
