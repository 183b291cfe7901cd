"""Whether LVM can make a snapshot of a volume that is in use, and of which kind.

Thick volumes get a COW device in their group, thin ones a snapshot in their pool.  What was not
proven is refused, with the reason and the way out; so is what LVM itself would refuse in the middle
of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dmcopy.errors import CommandFailed, Refused
from dmcopy.kernel.dm import DmInfo
from dmcopy.kernel.lvm import Lvm, Volume
from dmcopy.stack.names import TAG

# lv_layout, of which a volume has several: "raid,raid1"
_PROVEN: Final = frozenset(
    {"linear", "striped", "raid", "raid0", "raid1", "raid5", "raid6", "raid10"}
    | {"raid5_la", "raid5_ls", "raid5_ra", "raid5_rs", "raid5_n"}
    | {"raid6_zr", "raid6_nr", "raid6_nc", "raid6_n_6", "raid6_ls_6", "raid6_la_6"}
)
_THIN: Final = frozenset({"thin", "sparse"})
_FULL_PERCENT: Final = 95.0  # of a thin pool: a snapshot makes it fuller
_IDLE_WAY_OUT: Final = "stop what uses it: an idle volume is copied whatever it is made of"


def volume_of(path: str, info: DmInfo, lvm: Lvm) -> Volume:
    """Give the volume that *info* is, if LVM can make a snapshot of it; raises `Refused`.

    *path* is how the user called it.  Starts an LVM command, which takes some tenths of a second.
    """
    if not lvm.is_installed:
        raise Refused(
            f"{path} is an LVM logical volume in use, and LVM's tools are not installed",
            way_out="install lvm2",
        )
    if info.uuid.count("-") > 1:  # LVM-<ids>-<layer>
        raise Refused(
            f"{path} is a hidden part of a logical volume",
            way_out="copy the volume that the application uses",
        )
    try:
        beside = lvm.beside(info.uuid)
    except CommandFailed as exc:
        raise Refused(f"{path}: {exc}", way_out="see what lvs says of it") from exc
    volume = next((one for one in beside if one.uuid == info.uuid), None)
    if volume is None:
        raise Refused(
            f"{path} is a logical volume in use, but LVM does not show it",
            way_out="let LVM see its devices: lvmdevices, and devices/filter in lvm.conf",
        )
    _refuse_group(path, volume)
    _refuse_kind(path, volume)
    _refuse_copied(path, volume, beside)
    return volume


def _refuse_group(path: str, volume: Volume) -> None:
    if volume.is_shared:
        raise Refused(
            f"{path} is in the volume group {volume.vg}, which several hosts share (lvmlockd)",
            way_out=_IDLE_WAY_OUT,
        )
    if volume.missing:
        raise Refused(
            f"the volume group {volume.vg} lacks {volume.missing} of its devices, so LVM makes no "
            "snapshot in it",
            way_out=f"bring them back, or see: vgs -o +devices {volume.vg}; "
            f"vgreduce --removemissing {volume.vg}",
        )


def _refuse_kind(path: str, volume: Volume) -> None:
    if "thicksnapshot" in volume.roles:
        raise Refused(
            f"{path} is a snapshot, and LVM makes none of a snapshot",
            way_out=f"copy its origin, {volume.vg}/{volume.origin}, or stop what uses it",
        )
    odd = volume.layout - _THIN if volume.is_thin else volume.layout - _PROVEN
    if odd:
        raise Refused(
            f"{path} is of the kind {','.join(sorted(volume.layout))}, of which a copy while it is "
            "in use is not proven",
            way_out=_way_out(volume),
        )


def _way_out(volume: Volume) -> str:
    if "cache" in volume.layout or "writecache" in volume.layout:
        return f"take the cache off (lvconvert --splitcache {volume.full_name}), or {_IDLE_WAY_OUT}"
    return _IDLE_WAY_OUT


def _refuse_copied(path: str, volume: Volume, beside: Sequence[Volume]) -> None:
    for one in beside:
        if one.origin != volume.name:
            continue
        job = next((t.removeprefix(f"{TAG}-job-") for t in one.tags if t != TAG and TAG in t), "")
        if TAG in one.tags:
            raise Refused(
                f"{path} is being copied already, by job {job or '?'} (snapshot {one.full_name})",
                way_out=f"wait for it (dmcopy status {job}); if it died: dmcopy rescue {job}",
            )
    if volume.is_thin:
        _refuse_full_pool(path, volume, beside)


def _refuse_full_pool(path: str, volume: Volume, beside: Sequence[Volume]) -> None:
    """A full pool fails the application's writes, and a snapshot fills it."""
    pool = next((one for one in beside if one.name == volume.pool), None)
    if pool is None:
        return
    for what, percent in (("data", pool.used), ("metadata", pool.metadata)):
        if percent is not None and percent > _FULL_PERCENT:
            raise Refused(
                f"the thin pool {pool.full_name} of {path} has {percent:g} % of its {what} in use: "
                "a snapshot would fill it up, and then the application's writes fail",
                way_out=f"make it larger: lvextend {pool.full_name}",
            )
