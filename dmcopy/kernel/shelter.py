"""Keeps udev, and with it LVM, md and systemd, from looking into a device that becomes a twin.

A copy has the identity of its source.  Whoever closes a device that was open for writing makes
udev probe it, and then /dev/disk/by-uuid/... leads to the copy, LVM activates it, mdadm assembles
it.  Two things keep that off, neither of which is enough alone:

* flock(2) LOCK_EX on a whole disk: systemd-udevd (seen: 252) takes LOCK_SH before it handles an
  event of the disk or of one of its partitions, and puts the event off while it cannot, for three
  minutes, then drops it.  It does not ask for dm, md and drbd devices
  (src/udev/udevd.c:worker_lock_whole_disk); `udevadm settle` waits meanwhile.
* marks under /run/dmcopy that our udev rule obeys (udev/rules.d/57-dmcopy.rules), for every kind
  of device, if the rule is installed.

LVM's own commands ask neither: they read every device that their filters and their devices
file let them.  Nothing here starts a program.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.kernel import udev
from dmcopy.kernel.blkdev import locked
from dmcopy.kernel.sysfs import Sysfs

log = logging.getLogger(__name__)

RULES: Final = ("57-dmcopy.rules", "65-dmcopy.rules")
RULE_FOLDERS: Final = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d")
_OBEYED: Final = Path("/run/dmcopy")  # as the rule says
_PATIENCE: Final = 10.0  # seconds; udev holds its lock while it handles one event


class Installed(NamedTuple):
    """A rule that udev reads; *obeys*: it is one that obeys the marks, not an older one."""

    path: Path
    obeys: bool


def installed_rule(name: str, folders: Iterable[str] = RULE_FOLDERS) -> Installed | None:
    """Find a rule of ours where udev looks; None when it is not installed."""
    for folder in folders:  # the first one hides others of its name: udev(7)
        path = Path(folder) / name
        if path.is_file():
            return Installed(path, "DMCOPY_HIDDEN" in path.read_text())
    return None


class Shelter:
    """The marks under *runtime*; a device is named by devno, an LV by its dm uuid."""

    def __init__(self, runtime: Path, *, folders: Iterable[str] = RULE_FOLDERS) -> None:
        self._runtime = runtime
        self._hidden = runtime / "hidden"
        self._twins = runtime / "twins"
        self._folders = tuple(folders)

    @property
    def works(self) -> bool:
        """Tell whether udev obeys the marks: our rule is there, or there is no udev."""
        if not udev.is_running():
            return True
        if self._runtime != _OBEYED:
            return False
        found = [installed_rule(rule, self._folders) for rule in RULES]
        return all(rule is not None and rule.obeys for rule in found)

    def hide(self, name: str, job: str) -> None:
        """Have udev leave a device alone, whatever is on it; raises OSError."""
        self._hidden.mkdir(mode=0o755, parents=True, exist_ok=True)
        (self._hidden / name).write_text(job)

    def unhide(self, name: str) -> None:
        """End `hide`; harmless where it is not hidden."""
        (self._hidden / name).unlink(missing_ok=True)

    def hidden(self) -> list[tuple[str, str]]:
        """Give what is hidden, and by which job."""
        try:
            found = sorted(self._hidden.iterdir())
        except OSError:
            return []
        return [(path.name, _text(path)) for path in found]

    def hidden_by(self, job: str) -> list[str]:
        """Give what *job* hides: a killed process of it may have left that."""
        return [name for name, by in self.hidden() if by == job]

    def keep_twin(self, devno: str, uuids: Iterable[str]) -> None:
        """Have udev leave a device alone for as long as what is on it has one of *uuids*."""
        folder = self._twins / devno
        self.forget_twin(devno)
        folder.mkdir(mode=0o755, parents=True)
        for uuid in uuids:
            (folder / uuid.replace("/", "_")).touch()

    def forget_twin(self, devno: str) -> None:
        """End `keep_twin`; harmless where there is none."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._twins / devno)

    def is_twin(self, devno: str) -> bool:
        """Tell whether the device is kept from udev as a finished copy."""
        return (self._twins / devno).is_dir()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def whole_disk_locked(sysfs: Sysfs, devno: str, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the lock that udev asks for, on a disk; on a partition do nothing.

    The lock of a partition is its disk's: it would keep udev from all the other partitions.
    The descriptor is read-only: closing it makes nobody look.  Raises `Refused` when another
    program has the lock for *patience* seconds, and OSError.
    """
    if sysfs.parent(devno) is not None:
        yield
        return
    with locked(sysfs.node(devno), patience):
        yield


def publish(sysfs: Sysfs, devno: str) -> None:
    """Have udev look at a device, and at its partitions, as they are now.

    By a close after an open for writing, as any tool that changes a disk does: then udev has the
    kernel read the partition table again (src/udev/udevd.c:synthesize_change); and by a
    ``change`` event, for a device that udev does not watch.
    """
    try:
        os.close(os.open(sysfs.node(devno), os.O_RDWR | os.O_CLOEXEC))
        for one in (devno, *sorted(sysfs.partitions(devno))):
            (sysfs.folder(one) / "uevent").write_text("change")
    except OSError as exc:  # it has gone, or is read-only: there is nothing to be seen
        log.warning("udev could not be told of %s: %s", devno, exc)
