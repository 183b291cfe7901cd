"""Wrap a device, unwrap it, and say which are wrapped.

A wrap is three things that go together: an entry in ``wraps.toml`` (which outlives a boot), the
udev rules that follow from it, and the dm device.  The entry comes first and goes last, so that a
process that is killed in between leaves what can be said again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from dmcopy.errors import DmcopyError, LeftBehind, Refused, UsageError
from dmcopy.jobs import stamps
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.wrap_config import Wrap, WrapConfig, check_wrap_name
from dmcopy.jobs.wrap_up import BroughtUp, bring_up, is_ours, jobs_on
from dmcopy.kernel import lasting
from dmcopy.kernel.blkdev import locked
from dmcopy.kernel.cookie import udev_runs
from dmcopy.kernel.dm import OURS, DmInfo
from dmcopy.kernel.lasting import Lasting
from dmcopy.kernel.mounttab import entries_about, holds
from dmcopy.stack.discover import block_device, in_use
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.steps import remove_device
from dmcopy.stack.wrap import under_wrap, wrap_name, wrap_uuid

_LASTING_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 90.0
_UDEV_SECONDS: Final = 60.0
# dm devices that may be wrapped: their owners load tables of their own, so none can be spliced
_WRAPPED_DM: Final = ("CRYPT-", "mpath-")


def config_of(host: Host) -> WrapConfig:
    """Give the file with the wraps of this host."""
    return WrapConfig(host.places.wraps, host.places.rules)


@contextmanager
def alone(host: Host, name: str, *, patience: float = _LOCK_SECONDS) -> Iterator[None]:
    """Be the only one that works on a wrap; raises `Refused` when another does for long.

    One lock for each: what one of them waits for may lie on another.
    """
    with _locked(host, f"wrap-{name}", patience):
        yield


@contextmanager
def _locked(host: Host, what: str, patience: float = _LOCK_SECONDS) -> Iterator[None]:
    path = host.places.runtime / f"{what}.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as exc:
        raise DmcopyError(f"cannot use {path}: {exc.strerror}") from exc
    with locked(str(path), patience):
        yield


def wrap(device: str, name: str, host: Host, *, patience: float) -> BroughtUp:
    """Wrap *device* from now on, and after each boot; raises `Refused`, `UsageError`.

    Done again it changes nothing.  A COW device of an unfinished job that is not there is
    waited for, *patience* seconds at most.
    """
    check_wrap_name(name)
    with _locked(host, "wraps"), alone(host, name):
        config = config_of(host)
        devno, wanted, advice, _ = _looked_at(device, name, host)
        before = config.text()
        known = config.find(name)
        try:
            if known is None:
                config.add(wanted)
            else:
                wanted = known
                config.write_rules()
            _tell_udev(host, devno)
            done = bring_up(wanted, host, patience=patience)
            done.said += advice
            return done
        except BaseException:
            if known is None:
                with signals_deferred():
                    config.restore(before)
                    _tell_udev(host, devno)
            raise


@dataclass(frozen=True, kw_only=True)
class WrapPlan:
    """What `wrap` or `unwrap` would do."""

    name: str
    changes: bool  # False: it is so already
    under: str | None  # /dev path
    wrap: Wrap | None

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy wrap --dry-run --json`` prints."""
        return {
            "event": "wrap_planned",
            "name": self.name,
            "changes": self.changes,
            "under": self.under,
            "identity": {self.wrap.under.kind: self.wrap.under.value} if self.wrap else None,
            "size_bytes": self.wrap.size if self.wrap else None,
        }


def plan_wrap(device: str, name: str, host: Host) -> WrapPlan:
    """Make every check of `wrap`, and say what it would do; changes nothing."""
    check_wrap_name(name)
    devno, wanted, _, is_up = _looked_at(device, name, host)
    known = config_of(host).find(name)
    return WrapPlan(
        name=name,
        changes=known is None or not is_up,
        under=f"/dev/{host.sysfs.kname(devno)}",
        wrap=known or wanted,
    )


def plan_unwrap(name: str, host: Host) -> WrapPlan:
    """Make every check of `unwrap`, and say what it would do; changes nothing."""
    check_wrap_name(name)
    known = config_of(host).find(name)
    info = _ours(name, host, known)
    if info is not None or known is not None:
        _refuse_jobs(name, host)
    devno = None
    if info is not None and host.dm is not None:
        _refuse_open(info, host)
        devno = under_wrap(host.dm, info)
    return WrapPlan(
        name=name,
        changes=info is not None or known is not None,
        under=_path_of(devno, host),
        wrap=known,
    )


def _looked_at(device: str, name: str, host: Host) -> tuple[str, Wrap, list[str], bool]:
    """Look at everything that a wrap needs; gives devno, wrap, advice, and whether it is up."""
    devno = block_device(device, host.sysfs, called=device)
    under, size = _name_of(devno, device, host), host.sysfs.size(devno)
    wanted = Wrap(name=name, under=under, size=size, device=device)
    _refuse_taken(wanted, config_of(host), host)
    info = host.dm.info(name) if host.dm is not None else None
    is_up = info is not None and info.live
    advice: list[str] = []
    if not is_up:
        _refuse_used(devno, device, host)
        advice = _refuse_boot(devno, device, name, host)
    return devno, wanted, advice, is_up


def _ours(name: str, host: Host, known: Wrap | None) -> DmInfo | None:
    """Give the dm device of a wrap; raises `Refused` for one that is nothing of ours."""
    info = host.dm.info(name) if host.dm is not None else None
    if info is None or is_ours(info, name):
        return info
    if known is None:
        raise Refused(f"{name} is a dm device and no wrap", way_out="see: dmcopy wrap")
    return None


def unwrap(name: str, host: Host) -> list[str]:
    """Take a wrap away for good; says what was done.  Raises `Refused` when it is in use.

    Done again, or for a name that never was one, it changes nothing.
    """
    check_wrap_name(name)
    with _locked(host, "wraps"), alone(host, name):
        config = config_of(host)
        known = config.find(name)
        info = _ours(name, host, known)
        said: list[str] = []
        if info is not None or known is not None:
            _refuse_jobs(name, host)
        devno = None
        if info is not None:
            devno = _take_down(info, host)
            said.append(f"removed /dev/mapper/{name}")
        if known is not None:
            config.remove(name)
            said.append(f"took {name} out of {config.path}")
            devno = devno or next(iter(lasting.find(known.under, host.sysfs, host.run)), None)
        if said and devno is not None:
            _tell_udev(host, devno)
        return said or [f"{name} is not wrapped"]


def up(name: str, host: Host, *, patience: float) -> BroughtUp:
    """Bring up a wrap that is in the file: what systemd has done when its device appears."""
    check_wrap_name(name)
    with alone(host, name):
        known = config_of(host).find(name)
        if known is None:
            raise UsageError(f"there is no wrap {name} in {host.places.wraps}")
        return bring_up(known, host, patience=patience)


@dataclass(frozen=True, kw_only=True)
class WrapView:
    """One wrap as it is now."""

    name: str
    state: str  # up | half made | down | missing
    under: str | None  # /dev path of the device under it
    wrap: Wrap | None  # None: up, but not in the file
    jobs: tuple[str, ...]  # unfinished, that its snapshot stands for

    @property
    def is_well(self) -> bool:
        """Tell whether it is up, and will be after a boot."""
        return self.state == "up" and self.wrap is not None

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy wrap --list --json`` prints."""
        wrap = self.wrap
        return {
            "event": "wrap",
            "name": self.name,
            "state": self.state,
            "configured": wrap is not None,
            "under": self.under,
            "identity": {wrap.under.kind: wrap.under.value} if wrap else None,
            "size_bytes": wrap.size if wrap else None,
            "jobs": list(self.jobs),
        }


def views(host: Host) -> list[WrapView]:
    """Give all wraps that the file or the kernel knows; changes nothing."""
    known = {wrap.name: wrap for wrap in config_of(host).read()}
    there: dict[str, DmInfo] = {}
    for info in host.dm.devices() if host.dm is not None else ():
        name = wrap_name(info.uuid)
        if name is not None:
            there[name] = info
    jobs = _jobs(host, [*known, *there])
    found = []
    for name in sorted({*known, *there}):
        one, device = known.get(name), there.get(name)
        state, devno = "missing", None
        if device is not None and host.dm is not None:
            state = "up" if device.live else "half made"
            devno = under_wrap(host.dm, device)
            if devno is not None and _path_of(devno, host) is None:
                state = "missing"
        elif one is not None and (at := lasting.find(one.under, host.sysfs, host.run)):
            state, devno = "down", at[0]
        found.append(
            WrapView(
                name=name,
                state=state,
                under=_path_of(devno, host),
                wrap=one,
                jobs=tuple(jobs.get(name, ())),
            )
        )
    return found


def _path_of(devno: str | None, host: Host) -> str | None:
    """Name what is under a wrap; None where nothing is, or it was pulled out from under it."""
    with suppress(FileNotFoundError):
        return f"/dev/{host.sysfs.kname(devno)}" if devno else None
    return None


def remove_half_made(host: Host) -> list[str]:
    """Remove the wraps that a killed process made and nobody ever saw; says which."""
    said: list[str] = []
    for info in host.dm.devices() if host.dm is not None else ():
        name = wrap_name(info.uuid)
        if name is None or info.live or host.dm is None:
            continue
        with suppress(Refused), alone(host, name, patience=0.0):  # else one is making it
            now = host.dm.info(info.name)
            if now is None or now.live:
                continue
            remove_device(host.dm, info.name, info.uuid)
            said.append(f"removed the half made wrap {name}; bring it up: dmcopy wrap --up {name}")
    return said


def note(host: Host) -> list[str]:
    """Record what the file systems of wraps with interrupted jobs say; gives the jobs' names.

    After a boot, when they are mounted, and before they are unmounted: so that these mounts are
    not taken for a stranger's.
    """
    noted: list[str] = []
    if host.dm is None or not host.places.journal.exists():
        return noted
    for view in views(host):
        if view.state != "up" or view.under is None:
            continue
        with Journal(host.places.journal, create=False) as journal:
            for job in view.jobs:
                stamps.keep(journal, job, stamps.read_stamp(view.under), seen=None)
                noted.append(job)
    return noted


def _jobs(host: Host, names: list[str]) -> dict[str, list[str]]:
    if not host.places.journal.exists():
        return {}
    with Journal(host.places.journal, read_only=True) as journal:
        return {name: [record.name for record in jobs_on(name, journal)] for name in names}


def _name_of(devno: str, device: str, host: Host) -> Lasting:
    """Give what the device is called for ever; raises `Refused` where that is not enough."""
    uuid = host.sysfs.dm_uuid(devno)
    if uuid.startswith(OURS):
        raise Refused(f"{device} is a device of a copy", way_out="wrap the application's device")
    if host.sysfs.dm_name(devno) and not uuid.startswith(_WRAPPED_DM):
        raise Refused(
            f"{device} is a dm device already, so it needs no wrap",
            way_out=f"copy it as it is: dmcopy copy {device} DESTINATION",
        )
    if not host.sysfs.size(devno):
        raise Refused(
            f"{device} has no sectors", way_out="if it is an md array: start it (mdadm --run)"
        )
    found = lasting.lasting(devno, host.sysfs, host.run)
    if found is None:
        raise Refused(
            f"{device} has no name that it keeps from boot to boot, so it could not be found again",
            way_out="put a GPT partition table on its disk (sfdisk) and wrap the partition: each "
            "of its partitions has a UUID",
        )
    twins = [one for one in lasting.find(found, host.sysfs, host.run) if one != devno]
    if twins:
        raise Refused(
            f"{device} and /dev/{host.sysfs.kname(twins[0])} are both {found}",
            way_out="wrap the multipath map over them, or detach the copy",
        )
    return found


def _refuse_taken(wanted: Wrap, config: WrapConfig, host: Host) -> None:
    for other in config.read():
        if other.under == wanted.under and other.name != wanted.name:
            raise Refused(
                f"{wanted.device} is wrapped already, as {other.name}",
                way_out=f"use that, or: dmcopy unwrap {other.name}",
            )
        if other.name == wanted.name and other.under != wanted.under:
            raise Refused(
                f"{other.name} is the wrap of another device ({other.under}; it was "
                f"{other.device})",
                way_out=f"take another name, or: dmcopy unwrap {other.name}",
            )
    info = host.dm.info(wanted.name) if host.dm is not None else None
    if info is not None and not is_ours(info, wanted.name):
        raise Refused(
            f"there is a dm device {wanted.name} already, and it is no wrap",
            way_out="take another name",
        )


def _refuse_used(devno: str, device: str, host: Host) -> None:
    if host.sysfs.is_read_only(devno):
        raise Refused(f"{device} is read-only", way_out="nobody writes to it: copy it as it is")
    parts = host.sysfs.partitions(devno)
    if parts:
        raise Refused(
            f"{device} has partitions, which would not be there in a wrap",
            way_out="wrap the partition",
        )
    users = in_use(devno, host.sysfs, lasting=_LASTING_SECONDS)
    if users:
        raise Refused(
            f"{device} is in use ({users[0]})",
            way_out="stop what uses it, and then wrap it; it can be used again at once, as "
            "/dev/mapper/NAME",
        )


def _refuse_boot(devno: str, device: str, name: str, host: Host) -> list[str]:
    """Raise `Refused` for what could not be put up at the next boot; gives advice for the rest."""
    advice = []
    state = str(host.places.state)
    for place in (state, str(host.places.config)):
        under = host.sysfs.devices_of(place)
        if devno in under.union(*(host.sysfs.below(one) for one in under)):
            raise _deadlock(device, place)
    for entry in entries_about(devno, host.sysfs, host.run):
        if entry.place != "/" and any(
            holds(entry.place, path) for path in (state, str(host.places.config))
        ):
            raise _deadlock(device, state, f" ({entry.file}: {entry.place})")
        if not entry.by_content:
            raise Refused(
                f"{entry.file} names {device} itself, which nobody could use any more: "
                f"'{entry.line}'",
                way_out=f"write /dev/mapper/{name}, or UUID=..., in place of {entry.named}, and "
                "wrap it then",
            )
        advice.append(
            f"{entry.file}: write /dev/mapper/{name} in place of {entry.named}, which leads to an "
            "unfinished copy as well, when the machine went down in mid-copy"
        )
    return advice


def _deadlock(device: str, place: str, where: str = "") -> Refused:
    return Refused(
        f"{place} lies on {device}{where}: a wrap is put up by what is in there, so it could "
        "never be at boot",
        way_out="keep it elsewhere: DMCOPY_STATE_DIR, DMCOPY_CONFIG_DIR",
    )


def _refuse_jobs(name: str, host: Host) -> None:
    jobs = _jobs(host, [name]).get(name, [])
    if jobs:
        raise Refused(
            f"job {jobs[0]} copies {name}, and has not ended",
            way_out=f"wait for it, or give it up: dmcopy cancel {jobs[0]}",
        )


def _refuse_open(info: DmInfo, host: Host) -> None:
    users = in_use(info.devno, host.sysfs, lasting=_LASTING_SECONDS)
    if users:
        raise Refused(
            f"/dev/mapper/{info.name} is in use ({users[0]})", way_out="stop what uses it"
        )


def _take_down(info: DmInfo, host: Host) -> str | None:
    """Remove the dm device of a wrap that nobody uses; gives what was under it, by devno."""
    assert host.dm is not None
    _refuse_open(info, host)
    devno = under_wrap(host.dm, info)
    try:
        remove_device(host.dm, info.name, wrap_uuid(info.name))
    except DmcopyError as exc:
        raise LeftBehind([str(exc)]) from exc
    return devno


def _tell_udev(host: Host, devno: str) -> None:
    """Have udev read the rules again, and look at the device under a wrap by them."""
    if not udev_runs():
        return
    try:
        node = host.sysfs.node(devno)
    except OSError:
        node = None
    seconds = _UDEV_SECONDS
    host.run.run("udevadm", "control", "--reload", timeout=seconds)
    if node is not None:
        argv = ["udevadm", "trigger", "--action=change", "--settle", f"--name-match={node}"]
        host.run.run(*argv, timeout=seconds)
