"""device-mapper by the dmsetup program: the witness of `dmioctl`, and its stand-in.

What it does can be read, and pasted into a shell.  Not for use while I/O is held: each call
starts a program.  One thing it cannot do: dmsetup marks each resume as the owner's own
(DM_UDEV_PRIMARY_SOURCE_FLAG) without the owner's other flags, so that udev shows again what
the owner of a foreign device had hidden.  Use `dmioctl` where that matters (LVM's ``-real``).

Follows: dmsetup(8); lvm2 libdm/ioctl/libdm-iface.c (messages), libdm/dm-tools/dmsetup.c.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from dmcopy.core.table import Table
from dmcopy.errors import CommandFailed, DmBusy, DmFailed, DmMissing
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.dm import OURS, DmInfo, DmStatus
from dmcopy.kernel.dmioctl import check_name
from dmcopy.kernel.dmrequest import failure
from dmcopy.kernel.patience import again

log = logging.getLogger(__name__)

_FIELDS: Final = "name,uuid,major,minor,open,events,segments,attr"
_SEPARATOR: Final = "/"  # in no name: the kernel does not allow it
_IOCTL: Final = re.compile(r"ioctl on .*failed: (?P<why>.+?)\s*$", re.MULTILINE)
_ABSENT: Final = re.compile(r"^Device (?:\S+ not found|does not exist\.?)$", re.MULTILINE)
_DRIVER: Final = re.compile(r"^Driver version:\s*(\d+)\.(\d+)\.(\d+)", re.MULTILINE)
_TARGET: Final = re.compile(r"^(\S+)\s+v(\d+)\.(\d+)\.(\d+)$", re.MULTILINE)
_DEVNO: Final = re.compile(r"\((\d+),\s*(\d+)\)")


def error_of(verb: str, name: str, exc: CommandFailed) -> DmFailed:
    """Give what dmsetup's words mean; the errno is told from the C library's text for it."""
    found = _IOCTL.search(exc.stderr)
    if found:
        numbers = {os.strerror(number): number for number in errno.errorcode}
        number = numbers.get(found["why"])
        if number is not None:
            return failure(verb, name, number)
    if _ABSENT.search(exc.stderr):
        return failure(verb, name, errno.ENXIO)
    said = [line for line in exc.stderr.splitlines() if line and line != "Command failed."]
    return DmFailed(verb, name, said[-1] if said else str(exc))


class Dmsetup:
    """`Dm` by dmsetup.  A remove that meets EBUSY is tried again for *retry* seconds."""

    def __init__(self, run: Commander, *, retry: float = 3.0) -> None:
        self._commander = run
        self._retry = retry

    # asking

    def version(self) -> tuple[int, int, int]:
        """Give the version of the driver's ioctl interface."""
        found = _DRIVER.search(self._ask("version", "", "version").stdout)
        if found is None:
            raise DmFailed("read the version of", "control", "dmsetup does not say it")
        return (int(found[1]), int(found[2]), int(found[3]))

    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Give the target kinds that the kernel has loaded, with their versions."""
        text = self._ask("list targets of", "", "targets").stdout
        return {kind: (int(a), int(b), int(c)) for kind, a, b, c in _TARGET.findall(text)}

    def devices(self) -> list[DmInfo]:
        """List all devices."""
        return self._infos()

    def info(self, name: str) -> DmInfo | None:
        """Give what the kernel knows of *name*, None when there is no such device."""
        return self._info("--", check_name("look at", name))

    def find(self, uuid: str) -> DmInfo | None:
        """Give the device with this exact *uuid*, None when there is none."""
        return self._info("--uuid", uuid) if uuid else None

    def _info(self, *which: str) -> DmInfo | None:
        try:
            infos = self._infos(*which)
        except DmMissing:
            return None
        return infos[0] if infos else None

    def _infos(self, *which: str) -> list[DmInfo]:
        # fmt: off
        options = ("-c", "--noheadings", "--separator", _SEPARATOR, "-o", _FIELDS)
        # fmt: on
        text = self._ask("look at", which[-1] if which else "", "info", *options, *which).stdout
        lines = (line.strip() for line in text.splitlines())
        # "No devices found" is said on stdout
        return [info_of(line) for line in lines if _SEPARATOR in line]

    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Give the live (or the *inactive*) table; empty when there is none."""
        slot = ("--inactive",) if inactive else ()
        verb = "read the table of"
        words = ("table", "--noflush", "--showkeys", *slot, "--", check_name(verb, name))
        return Table.parse(self._ask(verb, name, *words).stdout)

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        """Ask the targets of the live table; *flush* False never waits for I/O."""
        verb = "read the status of"
        how = () if flush else ("--noflush",)
        text = self._ask(verb, name, "status", *how, "--", check_name(verb, name)).stdout
        found = []
        for line in filter(None, text.splitlines()):  # an empty line: no live table
            start, length, kind, *rest = line.split(" ", 3)
            found.append(DmStatus(int(start), int(length), kind, "".join(rest).rstrip()))
        return found

    def deps(self, name: str) -> list[str]:
        """List the devices ("major:minor") that the live table uses."""
        verb = "read the dependencies of"
        words = ("deps", "-o", "devno", "--", check_name(verb, name))
        text = self._ask(verb, name, *words).stdout
        return [f"{major}:{minor}" for major, minor in _DEVNO.findall(text)]

    def message(self, name: str, sector: int, text: str) -> str:
        """Send *text* to the target at *sector*; give its answer, often empty."""
        verb = "send a message to"
        words = ("message", "--", check_name(verb, name), str(sector), *text.split())
        return self._change(verb, name, *words).stdout.rstrip("\n")

    def wait(self, name: str, event_nr: int, *, timeout: float) -> int | None:
        """Wait until the device's event number differs from *event_nr*.

        Gives the new number, or None when *timeout* seconds went by.
        """
        verb = "wait for"
        now = self._event_nr(name)
        if now != event_nr:
            return now
        words = ("wait", "--noflush", "--", check_name(verb, name), str(event_nr))
        try:
            self._commander.run(
                "dmsetup", "--manglename", "none", *words, timeout=timeout, changes=False
            )
        except CommandFailed as exc:
            if exc.status is None:
                return None
            raise error_of(verb, name, exc) from exc
        return self._event_nr(name)

    def _event_nr(self, name: str) -> int:
        info = self.info(name)
        if info is None:
            raise failure("wait for", name, errno.ENXIO)
        return info.event_nr

    # changing

    def create(
        self, name: str, uuid: str, table: Table | None = None, *, read_only: bool = False
    ) -> DmInfo:
        """Create a device; with a *table* also load it and resume (live on return).

        When it raises, there is no such device (a half made one is removed).
        """
        check_name("create", name, new=True)
        options = ["--uuid", uuid] if uuid else []
        options += ["--readonly"] if read_only else []
        if table is None:
            self._change("create", name, "create", *options, "--notable", "--", name)
        else:
            # a table that is refused: dmsetup removes the device again
            words = ("create", *options, "--", name)
            try:
                self._change("create", name, *words, stdin=f"{table}\n")
            except DmMissing as exc:
                # it is a device in the table that is missing
                raise DmFailed("create", name, exc.why, errno=exc.errno) from exc
        info = self.info(name)
        if info is None:
            raise failure("create", name, errno.ENXIO)
        log.info("created dm device %s (%s)", name, info.devno)
        return info

    def load(self, name: str, table: Table, *, read_only: bool = False) -> None:
        """Load *table* into the inactive slot; the live table goes on."""
        verb = "load a table into"
        options = ("--readonly",) if read_only else ()
        words = ("load", *options, "--", check_name(verb, name))
        try:
            self._change(verb, name, *words, stdin=f"{table}\n")
        except DmMissing as exc:
            if self.info(name) is None:
                raise
            # it is a device in the table that is missing
            raise DmFailed(exc.verb, name, exc.why, errno=exc.errno) from exc

    def clear(self, name: str) -> None:
        """Drop the table in the inactive slot; nothing happens when there is none."""
        self._change("clear", name, "clear", "--", check_name("clear", name))

    def suspend(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Hold all I/O; `resume` must follow."""
        words = ("suspend", *_hold_options(lockfs, flush), "--", check_name("suspend", name))
        self._change("suspend", name, *words)

    def resume(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Swap a loaded table in (suspending by itself if need be) and let I/O go on.

        One ioctl: no user code runs while I/O is held.  *lockfs* freezes a file system
        that is mounted directly on the device, *flush* False lets targets requeue.
        """
        info = self.info(name)
        # a foreign device keeps its read-ahead, and nobody waits for udev
        foreign = info is not None and not info.uuid.startswith(OURS)
        options = ("--noudevsync", "--readahead", "none") if foreign else ()
        self._change("resume", name, "resume", *_hold_options(lockfs, flush), *options, "--", name)

    def prepare_suspend(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        """Give a call that starts dmsetup: good for tests, not for a real hold."""
        return partial(self.suspend, name, lockfs=lockfs, flush=flush)

    def prepare_clear(self, name: str) -> Callable[[], object]:
        """Give a call that starts dmsetup: good for tests, not for a real hold."""
        return partial(self.clear, name)

    def prepare_resume(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        """Give a call that starts dmsetup: good for tests, not for a real hold."""
        if self.info(name) is None:
            raise failure("resume", name, errno.ENXIO)
        return partial(self.resume, name, lockfs=lockfs, flush=flush)

    def prepare_exchange(
        self, name: str, over: Table, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], bool]:
        """Give a call that starts dmsetup four times: good for tests, not for a real hold."""
        if self.info(name) is None:
            raise failure("resume", name, errno.ENXIO)

        def exchange() -> bool:
            self.suspend(name, lockfs=lockfs, flush=flush)
            same = self.table(name) == over
            if not same:
                self.clear(name)
            self.resume(name, lockfs=lockfs, flush=flush)
            return same

        return exchange

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """Remove the device; `DmBusy` while it is open, unless *deferred*."""
        options = ("--deferred",) if deferred else ()
        words = ("remove", *options, "--", check_name("remove", name))
        again(lambda: self._change("remove", name, *words), on=DmBusy, seconds=self._retry)
        log.info("removed dm device %s", name)

    def rename(self, name: str, new: str) -> None:
        """Give the device a new name; its uuid stays."""
        check_name("rename", name)
        check_name("rename", new, new=True)
        self._change("rename", name, "rename", "--", name, new)
        log.info("renamed dm device %s to %s", name, new)

    # the program itself

    def _ask(self, verb: str, name: str, *words: str) -> Completed:
        return self._dmsetup(verb, name, words, changes=False)

    def _change(self, verb: str, name: str, *words: str, stdin: str | None = None) -> Completed:
        return self._dmsetup(verb, name, words, changes=True, stdin=stdin)

    def _dmsetup(
        self, verb: str, name: str, words: tuple[str, ...], *, changes: bool,
        stdin: str | None = None,
    ) -> Completed:  # fmt: skip
        """Run it, with names as the kernel has them; raises `DmFailed` and its kin."""
        argv = ("dmsetup", "--manglename", "none", *words)
        try:
            return self._commander.run(*argv, stdin=stdin, changes=changes)
        except CommandFailed as exc:
            raise error_of(verb, name, exc) from exc


def _hold_options(lockfs: bool, flush: bool) -> tuple[str, ...]:
    return (*(() if lockfs else ("--nolockfs",)), *(() if flush else ("--noflush",)))


def info_of(line: str) -> DmInfo:
    """Read a line of ``dmsetup info -c`` with the fields of _FIELDS."""
    name, uuid, major, minor, opened, events, segments, attributes = line.split(_SEPARATOR)
    return DmInfo(
        name=name,
        uuid=uuid,
        devno=f"{major}:{minor}",
        open_count=int(opened),
        event_nr=int(events),
        target_count=int(segments),
        live="L" in attributes,
        inactive="I" in attributes,
        suspended="s" in attributes,
        read_only="r" in attributes,
    )
