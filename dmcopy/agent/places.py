"""Which of the devices that are there a policy means: by names for ever, whatever is on them.

A file system's label or UUID is never a name: every copy has its source's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dmcopy.agent.label import Labels
from dmcopy.agent.partition import partition
from dmcopy.agent.policy import LABEL, Place, plain
from dmcopy.errors import Refused
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.dm import OURS
from dmcopy.kernel.sysfs import Sysfs

Names = Mapping[str, frozenset[str]]  # by kind


def names_of(devno: str, sysfs: Sysfs, run: Commander) -> Names:
    """Give all names for ever that a device has; raises OSError when it is gone.

    A partition has none of its disk's.  A device of dmcopy's own has none at all.  What a label
    file gives is not among them: `label.Labels`.
    """
    known = sysfs.identity(devno)
    if str(known.get("dm_uuid", "")).startswith(OURS):
        return {}
    told = udev.properties(devno) if udev.is_running() else {}
    found: dict[str, set[str]] = {}
    if "partition" in known:
        entry = partition(devno, sysfs, run)
        if entry.is_gpt:
            found = {"partuuid": {entry.uuid}, "partlabel": {entry.name}}
    elif {"dm_uuid", "md_uuid"} & known.keys() or str(known["kname"]).startswith("md"):
        md = "".join(c for c in told.get("MD_UUID", "") if c != ":")
        digits = str(known.get("md_uuid", "")).replace("-", "") or md
        grouped = ":".join(digits[at : at + 8] for at in range(0, len(digits), 8))
        found = {"dm_uuid": {str(known.get("dm_uuid", ""))}, "md_uuid": {grouped}}
    else:
        # ID_WWN alone is the array's, not the LUN's
        wwn = told.get("ID_WWN_WITH_EXTENSION") or told.get("ID_WWN", "")
        serials = (
            told.get(name, "") for name in ("ID_SERIAL", "ID_SERIAL_SHORT", "ID_SCSI_SERIAL")
        )
        found = {
            "wwn": {str(known.get("wwn", "")), wwn},
            "serial": {str(known.get("serial", "")), *serials},
        }
    return {
        kind: frozenset(plain(kind, value) for value in values if value)
        for kind, values in found.items()
    }


def is_called(names: Names, place: Place) -> bool:
    """Tell whether a device with these *names* is the one that *place* means."""
    return place.value in names.get(place.kind, ())


class Present:
    """The devices that are there at one moment; each is looked at once."""

    def __init__(self, sysfs: Sysfs, run: Commander, runtime: Path) -> None:
        """*runtime*: the directory of ours below /run."""
        self._sysfs = sysfs
        self._run = run
        self._labels = Labels(sysfs, run, runtime)
        self._names: dict[str, Names] | None = None

    def find(self, place: Place) -> list[str]:
        """Give the devices, by devno, that *place* means; more than one where there are twins."""
        if place.kind == LABEL:
            return self._labels.find(place.value)
        if self._names is None:
            self._names = {}
            for devno in sorted(os.listdir(self._sysfs.root / "dev" / "block")):
                try:
                    if self._sysfs.size(devno):
                        self._names[devno] = names_of(devno, self._sysfs, self._run)
                except OSError:  # it has just gone
                    continue
        return [devno for devno, names in self._names.items() if is_called(names, place)]

    def path_of(self, place: Place) -> str:
        """Give the path of the one device that *place* means; raises `Refused`."""
        found = self.find(place)
        if not found:
            raise Refused(f"no device with {place} is there", way_out="attach it")
        if len(found) > 1:
            names = " and ".join(self._sysfs.node(devno) for devno in found)
            raise Refused(
                f"{names} both have {place}: which one is meant cannot be told",
                way_out="detach one of them, or name the policy's by what it alone has",
            )
        return self._sysfs.node(found[0])
