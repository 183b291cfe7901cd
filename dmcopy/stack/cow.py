"""What the COW device is made of: block devices, a preallocated file, or an LV of ours.

The COW device takes the old content of every chunk that is written during the copy.  When
it is full the kernel drops the point in time (dm-snap.c:invalidate_snapshot), never a write.
Here are the words of the user and what was decided; `cow_plan` decides, `grow` makes it larger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypedDict

from dmcopy.errors import UsageError
from dmcopy.units import Bytes, Sectors, format_size, parse_size, sectors_down, to_bytes

COW_FORMS: Final = "auto|SIZE|FILE:SIZE|DEVICE[,DEVICE...]|vg:NAME[:SIZE]"
COW_HELP: Final = (
    "where the old content of what is written meanwhile is kept: a file (auto and SIZE: in the "
    "state directory), block devices that are filled one after the other, or an LV made in a "
    "volume group; auto and vg:NAME begin with an eighth of what could ever be needed, at least "
    "64 MiB, and grow when it is used up, to at most half of what was free (default: auto)"
)
COW_MAX_HELP: Final = (
    "how large a COW file or LV may become while the copy runs (default: one with a SIZE stays "
    "as it is)"
)

_DEVICES: Final = re.compile(r",(?=/dev/)")  # a device's name may have a comma of its own
_VG: Final = re.compile(r"vg:(?P<name>[A-Za-z0-9_+.][A-Za-z0-9_+.-]*)(?::(?P<size>.+))?")


@dataclass(frozen=True)
class CowSpec:
    """What the user asked for: *devices*, a *file* (with *size*), a volume group *vg*, a *size*
    alone, or nothing at all (auto); *most* is the largest size that growth may reach."""

    devices: tuple[str, ...] = ()
    file: str | None = None
    vg: str | None = None
    size: Bytes | None = None
    most: Bytes | None = None

    @classmethod
    def parse(cls, text: str) -> CowSpec:
        """Read one of `COW_FORMS`; raises `UsageError`."""
        if text == "auto":
            return cls()
        try:
            return cls(size=parse_size(text))
        except ValueError:
            pass
        if text.startswith("/dev/"):  # its name may have a colon, and no file is ever made there
            return cls(devices=tuple(_DEVICES.split(text)))
        volume = _VG.fullmatch(text)
        file, colon, size = text.rpartition(":")
        try:
            if volume is not None:
                asked = volume["size"]
                return cls(vg=volume["name"], size=parse_size(asked) if asked else None)
            if colon and file.startswith(("/", "./", "../")):
                return cls(file=file, size=parse_size(size))
        except ValueError:
            pass
        raise UsageError(
            f"'{text}' is not a COW device: say auto, a size (20g), a device or several "
            "(/dev/vg0/spare,/dev/sdx), a file and its size (/var/tmp/cow:20g), or a volume group "
            "(vg:vg0, vg:vg0:20g)"
        )

    @property
    def is_auto(self) -> bool:
        """Tell whether the user left it to us."""
        return not (self.devices or self.file or self.vg or self.size is not None)

    def __str__(self) -> str:
        if self.devices:
            return ",".join(self.devices)
        size = "" if self.size is None else str(self.size)
        if self.file:
            return f"{self.file}:{size}"
        if self.vg:
            return f"vg:{self.vg}" + (f":{size}" if size else "")
        return size or "auto"


@dataclass(frozen=True)
class CowDevice:
    """One block device of the user's; *length* is what we use of it."""

    path: str
    devno: str
    length: Sectors


@dataclass(frozen=True)
class CowDevices:
    """Block devices of the user's, used in this order: the next when the last is full."""

    devices: tuple[CowDevice, ...]

    @property
    def length(self) -> Sectors:
        """What there is in the beginning, in sectors."""
        return self.devices[0].length

    @property
    def most(self) -> Bytes:
        """How large it can become."""
        return to_bytes(Sectors(sum(device.length for device in self.devices)))

    @property
    def how(self) -> str:
        """Say how large it is and how large it can become."""
        sizes = (f"{one.path}, {format_size(to_bytes(one.length))}" for one in self.devices)
        return f"device {', then '.join(sizes)}"

    def __str__(self) -> str:
        word = "device" if len(self.devices) == 1 else "devices"
        return f"{word} {', '.join(device.path for device in self.devices)}"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        devices = [
            {"path": one.path, "devno": one.devno, "length_sectors": one.length}
            for one in self.devices
        ]
        return {"kind": "devices", "devices": devices}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CowDevices:  # Any: JSON
        """Read what `as_json` gave."""
        return cls(
            tuple(
                CowDevice(one["path"], one["devno"], Sectors(one["length_sectors"]))
                for one in record["devices"]
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What is made for the copy; *size* is what it begins with, *most* what it may become.

    Both are whole chunks; *why* says where *most* comes from.
    """

    size: Bytes
    most: Bytes
    chunk: Sectors
    why: str

    @property
    def length(self) -> Sectors:
        """What there is in the beginning, in sectors."""
        return sectors_down(self.size)

    @property
    def devices(self) -> tuple[CowDevice, ...]:
        """None of the user's."""
        return ()

    @property
    def how(self) -> str:
        """Say how large it is, how large it may become, and why."""
        grows = f", grows up to {format_size(self.most)}" if self.most > self.size else ""
        return f"{self}, {format_size(self.size)}{grows} ({self.why})"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return {
            "size_bytes": self.size,
            "most_bytes": self.most,
            "chunk_sectors": self.chunk,
            "why": self.why,
        }


class _Sizes(TypedDict):
    size: Bytes
    most: Bytes
    chunk: Sectors
    why: str


def _sizes_from_json(record: Mapping[str, Any]) -> _Sizes:  # Any: JSON
    return {
        "size": Bytes(record["size_bytes"]),
        "most": Bytes(record["most_bytes"]),
        "chunk": Sectors(record["chunk_sectors"]),
        "why": record["why"],
    }


@dataclass(frozen=True, kw_only=True)
class CowFileOnHost(_Made):
    """A file that does not exist yet, behind a loop device."""

    path: Path

    def __str__(self) -> str:
        return f"file {self.path}"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return {"kind": "file", "path": str(self.path), **super().as_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CowFileOnHost:  # Any: JSON
        """Read what `as_json` gave."""
        return cls(path=Path(record["path"]), **_sizes_from_json(record))


@dataclass(frozen=True, kw_only=True)
class _InVg(_Made):
    """What lies in a volume group; sizes are whole extents too."""

    vg: str
    name: str
    extent: Bytes

    def extents(self, size: Bytes) -> int:
        """Count the extents that *size* takes."""
        return -(-size // self.extent)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        mine = {"vg": self.vg, "name": self.name, "extent_bytes": self.extent}
        return mine | super().as_json()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:  # Any: JSON
        """Read what `as_json` gave."""
        extent = Bytes(record["extent_bytes"])
        sizes = _sizes_from_json(record)
        return cls(vg=record["vg"], name=record["name"], extent=extent, **sizes)


@dataclass(frozen=True, kw_only=True)
class CowLv(_InVg):
    """A logical volume that does not exist yet."""

    def __str__(self) -> str:
        return f"logical volume {self.vg}/{self.name}"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return {"kind": "lv", **super().as_json()}


@dataclass(frozen=True, kw_only=True)
class CowSnapshot(_InVg):
    """The COW device of a snapshot that LVM makes."""

    def __str__(self) -> str:
        return f"LVM snapshot {self.vg}/{self.name}"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return {"kind": "snapshot", **super().as_json()}


CowPlan = CowDevices | CowFileOnHost | CowLv | CowSnapshot

_KINDS: Final[
    Mapping[str, type[CowDevices] | type[CowFileOnHost] | type[CowLv] | type[CowSnapshot]]
] = {
    "devices": CowDevices,
    "file": CowFileOnHost,
    "lv": CowLv,
    "snapshot": CowSnapshot,
}


def cow_from_json(record: Mapping[str, Any]) -> CowPlan:  # Any: JSON
    """Read what a plan's ``as_json`` gave.

    Which loop device is under it, and how much of it is in use by now, is not in there: the
    table of the job's ``-cow`` device says so.
    """
    return _KINDS[record["kind"]].from_json(record)


def cow_file_name(job: str) -> str:
    """Give the name of a job's COW file in the state directory."""
    return f"dmcopy-{job}.cow"
