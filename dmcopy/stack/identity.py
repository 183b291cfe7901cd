"""A new identity for a copy: UUIDs and labels that are not its source's.

Each kind by its own tool, on a private device (`stack.twin`), so that nobody sees the change
half done.  What is inside is done as well, as far as it can be reached: partitions, the LVs of
a volume group, the content of a RAID1 leg.  `check` says before a copy begins what cannot be
done; `renew` is what is done, and doing it again after a failure is right.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from dmcopy.errors import Refused
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.command import Commander
from dmcopy.kernel.content import Content, content_of, dos_partuuid
from dmcopy.stack.twin import Bench

_HOURS: Final = 48 * 3600.0  # a file system check reads all metadata; it must not be cut short
_FSCK_GOOD: Final = (0, 1, 2, 3)  # fsck(8): errors corrected, system should be rebooted
_LINEAR: Final = frozenset({"linear", "striped"})

EXT: Final = ("ext2", "ext3", "ext4")
_TOOLS: Final = {
    **dict.fromkeys(EXT, ("e2fsck", "tune2fs")),
    "xfs": ("xfs_admin", "unshare", "mount"),
    "btrfs": ("btrfstune", "btrfs"),
    "swap": ("swaplabel",),
    "LVM2_member": ("vgimportclone", "pvs", "lvs", "lvchange", "pvchange"),
    "linux_raid_member": ("mdadm",),
    "crypto_LUKS": ("cryptsetup",),
    "gpt": ("sfdisk",),
    "dos": ("sfdisk",),
}
# What a person types to do the same by hand; {} is the device.
BY_HAND: Final = {
    **dict.fromkeys(EXT, "e2fsck -f {} && tune2fs -U random {}"),
    "xfs": "mount -o nouuid {} DIR && umount DIR && xfs_admin -U generate {}",
    "btrfs": "btrfstune -u {}",
    "swap": "swaplabel -U $(uuidgen) {}",
    "LVM2_member": "vgimportclone --devices {} {}",
    "linux_raid_member": "mdadm --assemble --run --update=uuid /dev/mdN {}",
    "crypto_LUKS": "cryptsetup luksUUID --uuid $(uuidgen) {}",
    "gpt": "sfdisk --disk-id {} $(uuidgen), --part-uuid for each partition, and its content",
    "dos": "sfdisk --disk-id {} 0xNEW, and the content of each partition",
}


@dataclass
class Renewed:
    """What was changed, a line each, and what was left as it is, with the reason."""

    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def check(run: Commander, path: str, content: Content | None) -> Content:
    """Give *content* of *path* back; changes nothing.

    Raises `Refused` when there is none, or when it cannot get a new identity.
    """
    if content is None:
        raise Refused(
            f"{path} carries nothing that has an identity, as far as blkid can tell",
            way_out="leave --new-identity out",
        )
    _check_kind(run, path, content)
    for part in content.parts:
        if part.content is not None:
            _check_kind(run, f"partition {part.number} of {path}", part.content)
    if content.kind in _CHECKS:
        _CHECKS[content.kind](run, path)
    return content


def _check_kind(run: Commander, what: str, content: Content) -> None:
    if content.kind not in _TOOLS:
        raise Refused(
            f"{what} carries {content.kind}, whose identity dmcopy does not know how to change",
            way_out="leave --new-identity out, and change it by its own tool",
        )
    for tool in _TOOLS[content.kind]:
        if run.find(tool) is None:
            raise Refused(
                f"{what} carries {content.kind}, and {tool} is not installed",
                way_out="install it, or leave --new-identity out",
            )


def _check_ext(run: Commander, path: str) -> None:
    # e2fsck would look for the journal by its UUID, and replay the source's, which is in use
    said = run.run("tune2fs", "-l", "--", path, changes=False).stdout
    if re.search(r"^Journal (device|UUID):", said, re.MULTILINE):
        raise Refused(
            f"the file system on {path} has its journal on another device",
            way_out="leave --new-identity out",
        )


def _check_btrfs(run: Commander, path: str) -> None:
    said = run.run("btrfs", "inspect-internal", "dump-super", "--", path, changes=False).stdout
    found = re.search(r"^num_devices\s+(\d+)", said, re.MULTILINE)
    if found is None or int(found[1]) != 1:
        raise Refused(
            f"the btrfs on {path} has more than this one device",
            way_out="leave --new-identity out",
        )


def _check_pv(run: Commander, path: str) -> None:
    rows = _report(run, "pvs", path, "vg_name,pv_count,vg_missing_pv_count")
    if rows and rows[0]["vg_name"] and int(rows[0]["pv_count"]) != 1:
        raise Refused(
            f"volume group {rows[0]['vg_name']} on {path} has {rows[0]['pv_count']} physical "
            "volumes, and a copy of one of them is no volume group",
            way_out="leave --new-identity out; when all are copied: vgimportclone",
        )


def _check_member(run: Commander, path: str) -> None:
    level = _member(run, path).get("MD_LEVEL", "")
    if level != "raid1":
        raise Refused(
            f"{path} is a member of a {level or 'md'} array, which cannot be run from one member",
            way_out="leave --new-identity out; when all are copied: mdadm --assemble --update=uuid",
        )


_CHECKS: Final[dict[str, Callable[[Commander, str], None]]] = {
    **dict.fromkeys(EXT, _check_ext),
    "btrfs": _check_btrfs,
    "LVM2_member": _check_pv,
    "linux_raid_member": _check_member,
}


def renew(bench: Bench, path: str, content: Content, done: Renewed, what: str) -> None:
    """Give *content* of *path*, which passed `check`, a new identity; *what* says where that is.

    *done* is kept up to date, so that it is right when this raises.
    """
    for line in _RENEW[content.kind](bench, path, content, done):
        done.changed.append(f"{what}: {line}" if what else line)
    with BlockDevice.open(path, write=True, direct=False) as device:
        device.flush()


def _renew_inside(bench: Bench, path: str, done: Renewed, what: str) -> None:
    """Renew what was found only now; what cannot be is told, and left as it is."""
    content = content_of(bench.run, path)
    if content is None:
        return
    try:
        check(bench.run, path, content)
    except Refused as exc:
        done.kept.append(f"{what} ({content}): {exc.why}")
        return
    renew(bench, path, content, done, what)


def _label(old: str, new_id: str, most: int) -> str:
    """Give a label that says where it comes from and is not *old*; *most* bytes at most."""
    end = f"-{new_id[:4]}"
    return old.encode()[: most - len(end)].decode(errors="ignore") + end


Steps = Iterator[str]


def _ext(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    del done
    new = str(uuid.uuid4())
    # replays the journal, and is what tune2fs asks for where checksums depend on the UUID
    bench.run.run("e2fsck", "-f", "-p", path, ok=_FSCK_GOOD, timeout=_HOURS)
    label = ("-L", _label(content.label, new, 16)) if content.label else ()
    bench.run.run("tune2fs", *label, "-U", new, path, timeout=_HOURS)
    yield f"{content.kind} UUID={new} (was {content.uuid}){_said(label)}"


def _xfs(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    del done
    new = str(uuid.uuid4())
    # A frozen XFS has something in its log on purpose (fs/xfs/xfs_log.c:xfs_log_quiesce, for the
    # unlinked inodes), and xfs_admin wants an empty one: only a mount replays it.  In a mount
    # namespace that ends with the program: nobody else sees it, and nothing can be left.
    bench.mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ("unshare", "--mount", "--propagation", "private")
    mount = ("mount", "-t", "xfs", "-o", "nouuid,nodev,noexec,nosuid", "--", path)
    bench.run.run(*private, *mount, str(bench.mounts), timeout=_HOURS)
    label = ("-L", _label(content.label, new, 12)) if content.label else ()
    bench.patiently("xfs_admin", *label, "-U", new, path)
    yield f"xfs UUID={new} (was {content.uuid}){_said(label)}"


def _btrfs(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    del done
    # -f asks nothing; -u, and no UUID of ours, goes on where an earlier one was killed
    bench.run.run("btrfstune", "-f", "-u", path, timeout=_HOURS)
    new = _now(bench, path)
    label = _label(content.label, new, 255) if content.label else ""
    if label:
        bench.run.run("btrfs", "filesystem", "label", path, label)
    yield f"btrfs UUID={new} (was {content.uuid}){_said(label)}"


def _swap(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    del done
    new = str(uuid.uuid4())
    label = ("-L", _label(content.label, new, 15)) if content.label else ()
    bench.run.run("swaplabel", *label, "-U", new, path)
    yield f"swap UUID={new} (was {content.uuid}){_said(label)}"


def _luks(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    new = str(uuid.uuid4())
    bench.run.run("cryptsetup", "--batch-mode", "luksUUID", "--uuid", new, path)
    done.kept.append("what is encrypted inside of LUKS: without its key nobody can look")
    yield f"LUKS UUID={new} (was {content.uuid})"


def _said(label: str | tuple[str, ...]) -> str:
    text = label if isinstance(label, str) else "".join(label[1:])
    return f", LABEL={text}" if text else ""


def _pv(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    (pv,) = _report(bench.run, "pvs", path, "vg_name")
    only = ("--devices", path)
    if not pv["vg_name"]:  # vgimportclone of LVM 2.03.16 crashes where there is no VG
        bench.run.run("pvchange", *only, "--uuid", path)
        yield f"physical volume UUID={_now(bench, path)} (was {content.uuid})"
        return
    name = f"{pv['vg_name'][:100]}_{secrets.token_hex(2)}"
    bench.run.run("vgimportclone", *only, "--basevgname", name, path)
    (pv,) = _report(bench.run, "pvs", path, "vg_name")
    yield f"physical volume UUID={_now(bench, path)} (was {content.uuid}), VG {pv['vg_name']}"
    rows = _report(bench.run, "lvs", path, "vg_name,lv_name,lv_layout,vg_uuid,lv_uuid,lv_dm_path")
    for row in rows:
        _lv(bench, path, row, done)


def _lv(bench: Bench, path: str, row: dict[str, str], done: Renewed) -> None:
    full_name = f"{row['vg_name']}/{row['lv_name']}"
    if row["lv_layout"] not in _LINEAR:
        done.kept.append(f"logical volume {full_name}: it is {row['lv_layout']}")
        return
    ident = "LVM-" + (row["vg_uuid"] + row["lv_uuid"]).replace("-", "")
    activate = ("lvchange", "--yes", "--devices", path, "--ignoreactivationskip", "--activate")
    with bench.hidden(ident):
        bench.run.run(*activate, "y", full_name)
        try:
            _renew_inside(bench, row["lv_dm_path"], done, f"logical volume {full_name}")
        finally:
            bench.patiently(*activate, "n", full_name)


def _report(run: Commander, tool: str, path: str, fields: str) -> list[dict[str, str]]:
    argv = (tool, "--devices", path, "--reportformat", "json", "--options", fields)
    said: Any = json.loads(run.run(*argv, changes=False).stdout)  # Any: JSON
    rows: list[dict[str, str]] = said["report"][0]["pv" if tool == "pvs" else "lv"]
    return rows


def _now(bench: Bench, path: str) -> str:
    found = content_of(bench.run, path)
    return found.uuid if found is not None else "?"


def _md(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    new = secrets.token_hex(16)
    new = ":".join(new[at : at + 8] for at in range(0, 32, 8))
    devno = bench.free_array()
    node = f"/dev/md{devno.partition(':')[2]}"
    assemble = ("mdadm", "--assemble", "--run", "--quiet")
    name = _member(bench.run, path).get("MD_NAME", "").rpartition(":")[2]
    with bench.hidden(devno):
        # the UUID first: mdadm does not take a member of an array that is active, the source's
        bench.run.run(*assemble, "--update=uuid", f"--uuid={new}", node, path)
        if name:  # /dev/disk/by-id/md-name-...; metadata 0.90 has none
            bench.stop_array(node)
            name = _label(name, new, 32)
            bench.run.run(*assemble, "--update=name", f"--name={name}", node, path)
        try:
            yield f"md member of array {new} (was {content.uuid}){f', name {name}' if name else ''}"
            _renew_inside(bench, node, done, "in the array")
        finally:
            bench.stop_array(node)


def _member(run: Commander, path: str) -> dict[str, str]:
    said = run.run("mdadm", "--examine", "--export", path, changes=False).stdout
    return {key: value for key, _, value in (line.partition("=") for line in said.splitlines())}


def _table(bench: Bench, path: str, content: Content, done: Renewed) -> Steps:
    is_gpt = content.kind == "gpt"
    new = str(uuid.uuid4()) if is_gpt else f"0x{secrets.randbelow(0xFFFFFFFE) + 1:08x}"
    # the kernel is not told: on a dm device there are no partitions
    quiet = ("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel")
    bench.run.run(*quiet, "--disk-id", path, new)
    yield f"{content.kind} PTUUID={new} (was {content.uuid})"
    for part in content.parts:
        if is_gpt:
            new = str(uuid.uuid4())
            bench.run.run(*quiet, "--part-uuid", path, str(part.number), new)
            label = _label(part.name, new, 36) if part.name else ""
            if label:
                bench.run.run(*quiet, "--part-label", path, str(part.number), label)
            yield f"partition {part.number} PARTUUID={new} (was {part.uuid}){_said(label)}"
        else:
            follows = dos_partuuid(new, part.number)
            yield f"partition {part.number} PARTUUID={follows} (was {part.uuid})"
        if part.content is not None:
            with bench.part(part) as node:
                check(bench.run, node, part.content)  # what only a look at it can tell
                renew(bench, node, part.content, done, f"partition {part.number}")


_RENEW: Final[dict[str, Callable[[Bench, str, Content, Renewed], Steps]]] = {
    **dict.fromkeys(EXT, _ext),
    "xfs": _xfs,
    "btrfs": _btrfs,
    "swap": _swap,
    "LVM2_member": _pv,
    "linux_raid_member": _md,
    "crypto_LUKS": _luks,
    "gpt": _table,
    "dos": _table,
}


def by_hand(content: Content, path: str) -> str:
    """Give the command line that does the same; "" where none is known."""
    return BY_HAND.get(content.kind, "").replace("{}", path)
