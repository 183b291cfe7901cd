"""Logical volumes of ours: made, extended, found and removed by LVM's own tools.

What we make carries a tag, and only what carries it is removed.  Not for changing the tables
of anybody's LV: that is LVM's alone (KERNEL.md section 13).

Documents: lvmreport(7) for the JSON reports; lvcreate(8), lvextend(8), lvremove(8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dmcopy.errors import CommandFailed, DmcopyError, Refused
from dmcopy.kernel.command import Commander
from dmcopy.units import Bytes

_REPORT: Final = ("--reportformat", "json", "--units", "b", "--nosuffix")
_VG_FIELDS: Final = "vg_name,vg_extent_size,vg_free,pv_name"
_LV_FIELDS: Final = "vg_name,lv_name,lv_size,lv_tags,lv_kernel_major,lv_kernel_minor"
_FAILED: Final = 5  # ECMD_FAILED, lib/commands/errors.h: also when there is no such volume


class Vg(NamedTuple):
    """A volume group."""

    name: str
    extent: Bytes
    free: Bytes
    devices: tuple[str, ...]  # paths of its PVs


class Lv(NamedTuple):
    """A logical volume; *devno* is None while it is not active."""

    vg: str
    name: str
    size: Bytes
    tags: frozenset[str]
    devno: str | None

    @property
    def full_name(self) -> str:
        """``VG/LV``, as LVM's tools take it."""
        return f"{self.vg}/{self.name}"


class Lvm:
    """LVM's tools; each method may raise `CommandFailed` and `ProgramMissing`."""

    def __init__(self, run: Commander) -> None:
        self._run = run

    @property
    def is_installed(self) -> bool:
        """Tell whether the tools are there."""
        return self._run.find("lvs") is not None

    def vg(self, name: str) -> Vg:
        """Give a volume group; `CommandFailed` when there is none of that *name*."""
        rows = self._rows("vgs", _VG_FIELDS, name)
        if not rows:
            raise DmcopyError(f"vgs says nothing of volume group {name}")
        return Vg(
            name=rows[0]["vg_name"],
            extent=Bytes(int(rows[0]["vg_extent_size"])),
            free=Bytes(int(rows[0]["vg_free"])),
            devices=tuple(row["pv_name"] for row in rows),
        )

    def lv(self, vg: str, name: str) -> Lv | None:
        """Give a logical volume, None when there is none."""
        try:
            rows = self._rows("lvs", _LV_FIELDS, f"{vg}/{name}")
        except CommandFailed as exc:
            if exc.status != _FAILED:
                raise
            # The same status for "there is none" and for real trouble: then vgs fails too.
            self.vg(vg)
            return None
        return _lv(rows[0]) if rows else None

    def find(self, tag: str) -> list[Lv]:
        """List the logical volumes with *tag*, in all volume groups."""
        return [_lv(row) for row in self._rows("lvs", _LV_FIELDS, f"@{tag}")]

    def create(self, vg: str, name: str, *, extents: int, tags: Sequence[str]) -> None:
        """Make a linear LV of *extents*."""
        self._run.run(*create_argv(vg, name, extents=extents, tags=tags))

    def extend(self, vg: str, name: str, *, extents: int) -> None:
        """Make an LV longer: *extents* is what it has then.

        LVM holds the I/O of the LV for a moment (it is suspended and resumed).
        """
        self._run.run("lvextend", "--extents", str(extents), "--", f"{vg}/{name}")

    def remove(self, vg: str, name: str, *, tag: str) -> bool:
        """Remove an LV that carries *tag*; tells whether it was there.

        Raises `Refused` when it is there without the tag: then it is not ours.
        """
        found = self.lv(vg, name)
        if found is None:
            return False
        if tag not in found.tags:
            raise Refused(
                f"logical volume {found.full_name} does not carry the tag {tag}, so it is not "
                "removed",
                way_out=f"if it may be lost: lvremove {found.full_name}",
            )
        self._run.run("lvremove", "--force", "--yes", "--", found.full_name)
        return True

    def _rows(self, program: str, fields: str, what: str) -> list[Mapping[str, str]]:
        done = self._run.run(program, *_REPORT, "--options", fields, "--", what, changes=False)
        kind = program.removesuffix("s")
        try:
            return [row for part in json.loads(done.stdout)["report"] for row in part[kind]]
        except (ValueError, KeyError) as exc:
            raise DmcopyError(f"{program} gave no report on {what}: {exc}") from exc


def create_argv(vg: str, name: str, *, extents: int, tags: Sequence[str]) -> list[str]:
    """Give the command line that makes a linear LV.

    LVM zeroes its first 4 KiB before udev may look at it, so that an old signature brings
    no link under /dev/disk/by-* to life.
    """
    # fmt: off
    return [
        "lvcreate", "--yes", "--type", "linear", "--zero", "y", "--wipesignatures", "n",
        "--extents", str(extents), "--name", name,
        *(word for tag in tags for word in ("--addtag", tag)),
        "--", vg,
    ]
    # fmt: on


def _lv(row: Mapping[str, str]) -> Lv:
    major, minor = row["lv_kernel_major"], row["lv_kernel_minor"]
    return Lv(
        vg=row["vg_name"],
        name=row["lv_name"],
        size=Bytes(int(row["lv_size"])),
        tags=frozenset(tag for tag in row["lv_tags"].split(",") if tag),
        devno=None if major.startswith("-") else f"{major}:{minor}",
    )
