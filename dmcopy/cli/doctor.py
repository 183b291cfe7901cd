"""``dmcopy doctor``: what is missing on this host, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from dmcopy import __version__
from dmcopy.cli.common import Commands, Context, consoles
from dmcopy.errors import DmcopyError, DmFailed
from dmcopy.jobs import installation
from dmcopy.jobs.host import Host
from dmcopy.jobs.overview import overview
from dmcopy.jobs.setup import Setup, Site
from dmcopy.jobs.wraps import views
from dmcopy.kernel import udev
from dmcopy.kernel.dmrequest import CONTROL
from dmcopy.kernel.shelter import RULES, installed_rule
from dmcopy.units import GIB, MIB, format_size

_UNITS: Final = ("dmcopy-wrap@.service", "dmcopy-wrap-note.service")
_UNIT_FOLDERS: Final = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_TOOLS: Final = {"wipefs": "util-linux", "modprobe": "kmod", "dmsetup": "dmsetup"}
_MEMLOCK: Final = 128 * MIB
_COW_ROOM: Final = 1 * GIB


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; *mend* is a command, or what to do."""

    event: str = "check"
    name: str
    ok: bool
    detail: str
    mend: str = ""
    needed: bool = True  # False: it works without, but worse


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="say what is missing on this host, and how to mend it",
        description="Look for everything that dmcopy needs on this host.  Changes nothing (it "
        "may load the kernel's dm modules).  Exit status 1 when something needed is missing.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="device that you want to copy: also look whether our state lies on it",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a check, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Make all checks; 1 when something needed is missing."""
    host = context.host(need_root=False)
    checks = list(_checks(host, arguments.source))
    if arguments.json:
        for check in checks:
            print(json.dumps(asdict(check)))
    else:
        _show(checks)
    return 0 if all(check.ok or not check.needed for check in checks) else 1


def _show(checks: list[Check]) -> None:
    out, _ = consoles()
    for check in checks:
        word = "ok" if check.ok else "MISSING" if check.needed else "advice"
        style = "green" if check.ok else "red" if check.needed else "yellow"
        out.print(f"{word:8}", style=style, end="")
        out.print(f"{check.name}: {check.detail}", markup=False)
        if not check.ok and check.mend:
            out.print(f"        mend: {check.mend}", markup=False)


def _checks(host: Host, source: str | None) -> Iterator[Check]:
    yield _root()
    yield Check(name="python", ok=True, detail=f"{sys.version.split()[0]}, dmcopy {__version__}")
    yield _device_mapper(host)
    if host.dm is not None and os.geteuid() == 0:
        yield _targets(host)
    for tool, package in _TOOLS.items():
        found = host.run.find(tool)
        yield Check(
            name=tool,
            ok=found is not None,
            detail=found or "is not installed",
            mend=f"apt-get install {package}",
            needed=tool == "wipefs",
        )
    yield _memlock()
    yield _state_directory(host)
    yield _cow_room(host)
    if source is not None:
        yield _state_not_on(host, source)
    yield _udev_rule()
    if os.geteuid() == 0:
        yield from _after_root(host)


def _after_root(host: Host) -> Iterator[Check]:
    """Look at jobs and devices, which only root can."""
    if not installation.is_managed() and (udev.is_running() or Site().has_systemd):
        yield _setup(host)
    if host.dm is not None:
        held = [info.name for info in host.dm.devices() if info.suspended]
        yield Check(
            name="suspended devices",
            ok=not held,
            detail=", ".join(held) or "none",
            mend=f"dmsetup resume {held[0]}" if held else "",
        )
    yield from _wraps(host)
    jobs = overview(host)
    waiting = [view.job for view in jobs if view.can_resume]
    yield Check(
        name="interrupted jobs",
        ok=not waiting,
        detail=", ".join(waiting) or "none",
        mend=f"dmcopy resume {waiting[0]}, or dmcopy cancel {waiting[0]}" if waiting else "",
    )
    dead = [view.job for view in jobs if view.is_dead and not view.can_resume]
    yield Check(
        name="dead jobs", ok=not dead, detail=", ".join(dead) or "none", mend="dmcopy rescue"
    )


def _wraps(host: Host) -> Iterator[Check]:
    """Look whether what is wrapped is up, and will be after a boot; nothing where nothing is."""
    try:
        found = views(host)
    except DmcopyError as exc:
        yield Check(name="wraps", ok=False, detail=str(exc), mend=f"edit {host.places.wraps}")
        return
    if not found:
        return
    ill = [view for view in found if not view.is_well]
    yield Check(
        name="wraps",
        ok=not ill,
        detail=", ".join(f"{view.name} is {view.state}" for view in ill or found),
        mend=f"dmcopy wrap --up {ill[0].name}" if ill else "",
    )
    units = [unit for unit in _UNITS if not any((Path(at) / unit).exists() for at in _UNIT_FOLDERS)]
    if Path("/run/systemd/system").is_dir():
        yield Check(
            name="wrap units",
            ok=not units,
            detail=f"{', '.join(units)} not installed" if units else "installed",
            mend=_install(),
        )


def _root() -> Check:
    ok = os.geteuid() == 0
    return Check(name="root", ok=ok, detail="yes" if ok else "no", mend="run it with sudo")


def _device_mapper(host: Host) -> Check:
    if host.dm is None:
        return Check(
            name="device-mapper",
            ok=False,
            detail=f"there is no {CONTROL}",
            mend="modprobe dm-mod (a kernel built without it cannot be helped)",
        )
    try:
        version = ".".join(map(str, host.dm.version()))
    except (DmFailed, OSError) as exc:
        return Check(name="device-mapper", ok=False, detail=str(exc), mend="run it as root")
    return Check(name="device-mapper", ok=True, detail=f"ioctl interface {version}")


def _targets(host: Host) -> Check:
    assert host.dm is not None
    wanted = {"linear", "snapshot", "snapshot-origin"}
    if wanted - host.dm.targets().keys() and host.run.find("modprobe"):
        host.run.run("modprobe", "--quiet", "dm-snapshot", ok=(0, 1))
    missing = sorted(wanted - host.dm.targets().keys())
    return Check(
        name="dm targets",
        ok=not missing,
        detail=f"no {', '.join(missing)}" if missing else ", ".join(sorted(wanted)),
        mend="modprobe dm-snapshot",
    )


def _memlock() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    ok = soft == resource.RLIM_INFINITY or soft >= _MEMLOCK or os.geteuid() == 0
    said = "unlimited" if soft == resource.RLIM_INFINITY else format_size(soft)
    return Check(
        name="memlock",
        ok=ok,
        detail=f"{said}{', which root may pass' if os.geteuid() == 0 else ''}",
        mend="ulimit -l unlimited",
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _state_directory(host: Host) -> Check:
    state = host.places.state
    place = _existing(state)
    ok = place.is_dir() and os.access(place, os.W_OK)
    return Check(
        name="state directory",
        ok=ok,
        detail=f"{state} {'can be written' if ok else 'cannot be written'}",
        mend="make it writable, or set DMCOPY_STATE_DIR",
    )


def _cow_room(host: Host) -> Check:
    stat = os.statvfs(_existing(host.places.cow_files))
    free = stat.f_bavail * stat.f_frsize
    return Check(
        name="room for COW files",
        ok=free >= _COW_ROOM,
        detail=f"{format_size(free)} free in {host.places.cow_files}; --cow auto takes up to half",
        mend="give a COW device with --cow, or set DMCOPY_STATE_DIR",
        needed=False,
    )


def _state_not_on(host: Host, source: str) -> Check:
    name = "state not on source"
    try:
        devno = host.sysfs.devno_of(source)
    except OSError as exc:
        return Check(name=name, ok=False, detail=f"{source}: {exc.strerror}", mend="name a device")
    under = host.sysfs.devices_of(str(_existing(host.places.state)))
    ok = devno not in under.union(*(host.sysfs.below(one) for one in under))
    return Check(
        name=name,
        ok=ok,
        detail=f"{host.places.state} {'does not lie' if ok else 'lies'} on {source}",
        mend="set DMCOPY_STATE_DIR to a place on another device",
    )


def _udev_rule() -> Check:
    name = "udev rule"
    if not udev.is_running():
        return Check(name=name, ok=True, detail="not needed, udev does not run")
    found = [installed_rule(rule) for rule in RULES]
    missing = [rule for rule, path in zip(RULES, found, strict=True) if path is None]
    old = [path for path in found if path is not None and not path.obeys]
    if missing:
        detail = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    elif old:
        detail = f"{old[0].path} is of an older dmcopy"
    else:
        detail = ", ".join(str(path.path) for path in found if path is not None)
    return Check(
        name=name, ok=not missing and not old, detail=detail, mend=_install(), needed=False
    )


def _setup(host: Host) -> Check:
    """Look whether what comes with this dmcopy for udev and systemd is on the host, as it comes."""
    try:
        setup = Setup(host, shipped=installation.shipped(), program=installation.program())
        missing = [
            step.what for step in setup.plan_setup() if step.action in ("install", "replace")
        ]
    except DmcopyError as exc:
        return Check(name="setup", ok=False, detail=str(exc), mend="dmcopy setup", needed=False)
    names = ", ".join(os.path.basename(path) for path in missing)
    return Check(
        name="setup",
        ok=not missing,
        detail=f"not as this dmcopy brings it: {names}" if missing else "all is there",
        mend="dmcopy setup",
        needed=False,
    )


def _install() -> str:
    """Give the command that installs rules and units."""
    return "apt-get install --reinstall dmcopy" if installation.is_managed() else "dmcopy setup"
