"""Logical volumes: what LVM says of them, and those of ours, made and removed by LVM's own tools.

What we make carries a tag, and only what carries it is removed.  Not for changing the tables
of anybody's LV: that is LVM's alone, but for what KERNEL.md section 13 allows (`stack.lvm_begin`).

A command that changes something is given much time: killed in the middle it could leave a volume
suspended.  That nobody else has the volume group locked is looked at before (`lvm_lock`).

Documents: lvmreport(7) for the JSON reports; lvcreate(8), lvextend(8), lvremove(8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.errors import DmcopyError, Refused
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm_lock import wait_for_vg
from dmcopy.units import Bytes, Sectors, to_bytes

LVM_UUID: Final = "LVM-"  # what the dm uuid of every LV begins with

_REPORT: Final = ("--reportformat", "json", "--units", "b", "--nosuffix")
_VG_FIELDS: Final = "vg_name,vg_extent_size,vg_free,pv_name"
_LV_FIELDS: Final = "vg_name,lv_name,lv_size,lv_tags,lv_kernel_major,lv_kernel_minor"
_VOLUME_FIELDS: Final = (
    "vg_name,vg_uuid,vg_shared,vg_missing_pv_count,lv_name,lv_uuid,lv_layout,lv_role,lv_tags,"
    "origin,pool_lv,data_percent,metadata_percent"
)
_CHANGE_SECONDS: Final = 600.0
_GROUPS: Final = (6, 4, 4, 4, 4, 4, 6)  # of the letters of an LVM uuid, as reports write it
_LETTERS: Final = sum(_GROUPS)


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


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What LVM knows of somebody's volume.

    *layout* and *roles* are LVM's words (lvmreport(7), lv_layout and lv_role); *missing* counts the
    PVs that its group lacks; *used* and *metadata* are what is in use of its pool, in percent.
    """

    vg: str
    name: str
    uuid: str  # as the dm uuid has it, with "LVM-"
    layout: frozenset[str]
    roles: frozenset[str]
    tags: frozenset[str] = frozenset()
    origin: str = ""
    pool: str = ""
    is_shared: bool = False
    missing: int = 0
    used: float | None = None
    metadata: float | None = None

    @property
    def full_name(self) -> str:
        """``VG/LV``, as LVM's tools take it."""
        return f"{self.vg}/{self.name}"

    @property
    def is_thin(self) -> bool:
        """Tell whether it lies in a thin pool."""
        return "thin" in self.layout and "pool" not in self.layout


def dm_name(vg: str, lv: str, layer: str = "") -> str:
    """Give the dm name of an LV, or of a hidden *layer* of it (``real``, ``cow``)."""
    words = [word.replace("-", "--") for word in (vg, lv)]
    return "-".join([*words, *([layer] if layer else [])])


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
        """Give a logical volume, None when there is none; `CommandFailed` without the group."""
        words = ("--select", f"lv_name={name}", "--", vg)
        rows = self._report("lvs", _LV_FIELDS, words, f"{vg}/{name}")
        return _lv(rows[0]) if rows else None

    def find(self, tag: str) -> list[Lv]:
        """List the logical volumes with *tag*, in all volume groups."""
        return [_lv(row) for row in self._rows("lvs", _LV_FIELDS, f"@{tag}")]

    def beside(self, uuid: str) -> list[Volume]:
        """List the volumes of the group of the one with this dm *uuid*, hidden ones too.

        Empty when LVM does not see the group (lvmdevices(8), filters).
        """
        letters = uuid.removeprefix(LVM_UUID)
        return [_volume(row) for row in self._selected(f"vg_uuid={_hyphened(letters[:_LETTERS])}")]

    def create(self, vg: str, name: str, *, extents: int, tags: Sequence[str]) -> None:
        """Make a linear LV of *extents*."""
        self._change(vg, *create_argv(vg, name, extents=extents, tags=tags))

    def snapshot(
        self, vg: str, origin: str, name: str, *, extents: int, chunk: Sectors, tags: Sequence[str]
    ) -> None:
        """Make a snapshot of *origin* whose COW device has *extents*.

        LVM holds the I/O of the origin for a moment (it is suspended and resumed).
        """
        argv = snapshot_argv(vg, origin, name, extents=extents, chunk=chunk, tags=tags)
        self._change(vg, *argv)

    def thin_snapshot(self, vg: str, origin: str, name: str, *, tags: Sequence[str]) -> None:
        """Make a read-only snapshot of a thin *origin*, in its pool, and activate it.

        LVM holds the I/O of the origin for a moment (it is suspended and resumed).
        """
        self._change(vg, *thin_snapshot_argv(vg, origin, name, tags=tags))

    def extend(self, vg: str, name: str, *, extents: int) -> None:
        """Make an LV longer: *extents* is what it has then.

        LVM holds the I/O of the LV for a moment (it is suspended and resumed); of a snapshot, the
        I/O of its origin too.
        """
        self._change(vg, "lvextend", "--extents", str(extents), "--", f"{vg}/{name}")

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
        self._change(vg, "lvremove", "--force", "--yes", "--", found.full_name)
        return True

    def _change(self, vg: str, *argv: str) -> None:
        wait_for_vg(vg)
        self._run.run(*argv, timeout=_CHANGE_SECONDS)

    def _selected(self, selection: str) -> list[Mapping[str, str]]:
        words = ("--all", "--select", selection)
        return self._report("lvs", _VOLUME_FIELDS, words, selection)

    def _rows(self, program: str, fields: str, what: str) -> list[Mapping[str, str]]:
        return self._report(program, fields, ("--", what), what)

    def _report(
        self, program: str, fields: str, words: Sequence[str], what: str
    ) -> list[Mapping[str, str]]:
        done = self._run.run(program, *_REPORT, "--options", fields, *words, changes=False)
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
        "--extents", str(extents), "--name", name, *_tag_words(tags), "--", vg,
    ]
    # fmt: on


def snapshot_argv(
    vg: str, origin: str, name: str, *, extents: int, chunk: Sectors, tags: Sequence[str]
) -> list[str]:
    """Give the command line that makes a thick snapshot; *chunk* in sectors."""
    # fmt: off
    return [
        "lvcreate", "--yes", "--snapshot", "--setactivationskip", "n",
        "--chunksize", f"{to_bytes(chunk)}b", "--extents", str(extents), "--name", name,
        *_tag_words(tags), "--", f"{vg}/{origin}",
    ]
    # fmt: on


def thin_snapshot_argv(vg: str, origin: str, name: str, *, tags: Sequence[str]) -> list[str]:
    """Give the command line that makes a thin snapshot which nobody can write to."""
    # fmt: off
    return [
        "lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--permission", "r",
        "--name", name, *_tag_words(tags), "--", f"{vg}/{origin}",
    ]
    # fmt: on


def _tag_words(tags: Sequence[str]) -> list[str]:
    return [word for tag in tags for word in ("--addtag", tag)]


def _hyphened(letters: str) -> str:
    """Write an LVM uuid as reports do."""
    parts = []
    for length in _GROUPS:
        parts.append(letters[:length])
        letters = letters[length:]
    return "-".join(parts)


def _lv(row: Mapping[str, str]) -> Lv:
    major, minor = row["lv_kernel_major"], row["lv_kernel_minor"]
    return Lv(
        vg=row["vg_name"],
        name=row["lv_name"],
        size=Bytes(int(row["lv_size"])),
        tags=_words(row["lv_tags"]),
        devno=None if major.startswith("-") else f"{major}:{minor}",
    )


def _volume(row: Mapping[str, str]) -> Volume:
    uuids = (row["vg_uuid"] + row["lv_uuid"]).replace("-", "")
    return Volume(
        vg=row["vg_name"],
        name=row["lv_name"].strip("[]"),  # hidden ones are reported in brackets
        uuid=f"{LVM_UUID}{uuids}",
        layout=_words(row["lv_layout"]),
        roles=_words(row["lv_role"]),
        tags=_words(row["lv_tags"]),
        origin=row["origin"].strip("[]"),
        pool=row["pool_lv"].strip("[]"),
        is_shared=bool(row["vg_shared"]),
        missing=int(row["vg_missing_pv_count"] or 0),
        used=float(row["data_percent"]) if row["data_percent"] else None,
        metadata=float(row["metadata_percent"]) if row["metadata_percent"] else None,
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)
