"""udev's database, and whether udev is there at all; the only module that imports pyudev.

Without udev (an initramfs, a container, the lab's plain guest) nothing here fails: there
are just no properties, and nothing to wait for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pyudev

_POLL: Final = 0.01  # seconds
_BUFFER: Final = 128 << 10  # bytes: some hundred events


def is_running(run: str = "/run/udev") -> bool:
    """Tell whether udevd runs: its control socket is there."""
    return (Path(run) / "control").exists()


def settle(timeout: float, *, run: str = "/run/udev") -> bool:
    """Wait until udevd has worked off its queue; False when *timeout* seconds were not enough.

    The file ``queue`` is there while events are waiting.  An event that udevd has not yet
    taken from the kernel is not seen, so this is a courtesy, never a proof: a caller that
    needs a device's own event waits by udev cookie.
    """
    end = time.monotonic() + timeout
    while is_running(run) and (Path(run) / "queue").exists():
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL)
    return True


def properties(devno: str) -> Mapping[str, str]:
    """Give what udev knows of a block device (ID_WWN, ID_SERIAL ...); empty without udev."""
    major, minor = (int(part) for part in devno.split(":"))
    try:
        # a context of our own: libudev's are not to be shared between threads
        device = pyudev.Devices.from_device_number(
            pyudev.Context(), "block", os.makedev(major, minor)
        )
    except pyudev.DeviceNotFoundError:
        return {}
    return {str(key): str(value) for key, value in device.properties.items()}


class Event(NamedTuple):
    """What udev has made of a block device's event."""

    action: str  # add | change | remove | ...
    devno: str
    is_ready: bool  # others may use it (SYSTEMD_READY)


class Overflow(Exception):
    """Events were lost: they came faster than they were taken.  Listen anew, and look around."""


class Events:
    """The events of block devices when udev is done with them; for one thread."""

    def __init__(self) -> None:
        """Listen from now on."""
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        self._monitor.filter_by("block")
        # libudev's own is 128 MiB of the kernel's memory: what is lost is made up for by a look
        self._monitor.set_receive_buffer_size(_BUFFER)
        self._monitor.start()

    def wait(self, seconds: float) -> Event | None:
        """Give the next event, None when there is none for *seconds*; raises `Overflow`."""
        try:
            device = self._monitor.poll(seconds)
        except OSError as exc:  # pyudev has lost the errno: ENOBUFS
            raise Overflow from exc
        if device is None:
            return None
        number = device.device_number
        return Event(
            str(device.action),
            f"{os.major(number)}:{os.minor(number)}",
            device.properties.get("SYSTEMD_READY") != "0",
        )
