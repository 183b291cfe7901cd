"""``dmcopy setup``: puts rules, units and directories on a host, and takes them away again.

What was put is on record (``setup.json`` in the state directory): the digest of each file, the
units enabled, the directories made.  A file is ours for as long as it has a digest that is on
record; any other is an administrator's, and is left alone unless we are told.  The record names
what is about to be written before it is, so that a run that was killed is gone on with.

A run is planned first (`plan_setup`, `plan_undo`: a list of steps, which is the dry run as well)
and then done (`carry_out`); when a step fails those done are undone, last first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from dmcopy.errors import CommandFailed, DmcopyError, LeftBehind, ProgramMissing, Refused
from dmcopy.jobs import installation
from dmcopy.jobs.host import Host
from dmcopy.jobs.overview import overview
from dmcopy.jobs.wrap_config import replace_file
from dmcopy.jobs.wraps import views
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander

log = logging.getLogger(__name__)

_VERSION: Final = 1


def digest(data: bytes) -> str:
    """Give what a file is known by."""
    return hashlib.sha256(data).hexdigest()


class Step(Protocol):
    """One change; `undo` must hold when `do` was cut short."""

    action: str  # install | replace | remove | make | run | left
    what: str  # a path, or a command line

    def do(self, run: Commander) -> None: ...
    def undo(self, run: Commander) -> None: ...


def _content(path: Path) -> bytes | None:
    """Give what is in a file; None where there is none.  A link is no file of ours."""
    if path.is_symlink():
        return os.fsencode(f"-> {os.readlink(path)}")
    return path.read_bytes() if path.exists() else None


def _write(path: Path, data: bytes) -> None:
    replace_file(path, data)
    path.chmod(0o644)


class WriteFile:
    """Put a file, or one in place of another."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self._link = os.readlink(path) if path.is_symlink() else None
        self._before = None if self._link is not None else _content(path)
        is_new = self._before is None and self._link is None
        self.action = "install" if is_new else "replace"
        self.what = str(path)

    def do(self, _run: Commander) -> None:
        _write(self.path, self.data)

    def undo(self, _run: Commander) -> None:
        if self._before is not None:
            _write(self.path, self._before)
            return
        self.path.unlink(missing_ok=True)
        if self._link is not None:
            self.path.symlink_to(self._link)


class RemoveFile:
    """Remove a file that is as we put it."""

    action = "remove"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.what = str(path)
        self._before = path.read_bytes()

    def do(self, _run: Commander) -> None:
        self.path.unlink(missing_ok=True)

    def undo(self, _run: Commander) -> None:
        _write(self.path, self._before)


class MakeFolder:
    """Make a directory that is not there."""

    action = "make"

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self.what = str(path)
        self._mode = mode

    def do(self, _run: Commander) -> None:
        self.path.mkdir(exist_ok=True)
        self.path.chmod(self._mode)

    def undo(self, _run: Commander) -> None:
        if self.path.exists() and not any(self.path.iterdir()):
            self.path.rmdir()


class RemoveFolder:
    """Remove a directory that we made, if nothing is in it."""

    action = "remove"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.what = str(path)
        self._mode = path.stat().st_mode & 0o7777

    def do(self, _run: Commander) -> None:
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def undo(self, _run: Commander) -> None:
        self.path.mkdir(exist_ok=True)
        self.path.chmod(self._mode)


class Run:
    """Run a command; *back* is the one that undoes it."""

    action = "run"

    def __init__(self, *argv: str, back: Sequence[str] = (), is_reload: bool = False) -> None:
        self.argv = argv
        self.what = shlex.join(argv)
        self.is_reload = is_reload
        self._back = tuple(back)

    def do(self, run: Commander) -> None:
        run.run(*self.argv)

    def undo(self, run: Commander) -> None:
        if self._back:
            run.run(*self._back)


class Left:
    """Say what is left as it is, and why."""

    action = "left"

    def __init__(self, path: Path, why: str) -> None:
        self.what = f"{path}: {why}"

    def do(self, _run: Commander) -> None:
        pass

    def undo(self, _run: Commander) -> None:
        pass


class _Note:
    """Write the record, or remove it; nobody need be told."""

    action = ""
    what = ""

    def __init__(self, path: Path, record: Record | None) -> None:
        self._path = path
        self._record = record
        self._before = _content(path)

    def do(self, _run: Commander) -> None:
        _note(self._path, None if self._record is None else self._record.data())

    def undo(self, _run: Commander) -> None:
        _note(self._path, self._before)


def _note(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        replace_file(path, data)


@dataclass(frozen=True)
class Record:
    """What was put: for each file the digests that make it ours, enabled units, directories."""

    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    enabled: Sequence[str] = ()
    folders: Sequence[str] = ()

    def data(self) -> bytes:
        said = {
            "version": _VERSION,
            "files": {path: list(digests) for path, digests in sorted(self.files.items())},
            "enabled": list(self.enabled),
            "folders": list(self.folders),
        }
        return (json.dumps(said, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, path: Path) -> Record:
        """Read the record; an empty one where there is none.  Raises `DmcopyError`."""
        try:
            said: Any = json.loads(path.read_bytes())  # Any: JSON
            if said["version"] != _VERSION:
                raise DmcopyError(
                    f"{path} is of version {said['version']}, this dmcopy knows {_VERSION}"
                )
            files = {str(at): tuple(map(str, ours)) for at, ours in said["files"].items()}
            return cls(files, tuple(said["enabled"]), tuple(said["folders"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise DmcopyError(
                f"{path} cannot be read: {exc}; if it is lost, remove it, and run "
                "`dmcopy setup --replace-changed`"
            ) from exc

    def owns(self, path: Path) -> bool:
        """Tell whether the file is as we put it."""
        now = _content(path)
        return now is not None and digest(now) in self.files.get(str(path), ())


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where things go on this host, beside the places that dmcopy itself works with."""

    units: Path = Path("/etc/systemd/system")
    tmpfiles: Path = Path("/etc/tmpfiles.d")
    has_systemd: bool = field(default_factory=lambda: Path("/run/systemd/system").is_dir())
    has_udev: bool = field(default_factory=udev.is_running)


class Setup:
    """Plans what is to be done on a host; *program* is what the units shall call."""

    def __init__(
        self, host: Host, *, shipped: installation.Shipped, program: Path, site: Site | None = None
    ) -> None:
        self._host = host
        self._places = host.places
        self._shipped = shipped
        self._site = site or Site()
        self._units = list(installation.units(shipped.units, program))
        self._at = self._places.state / "setup.json"

    @property
    def has_systemd(self) -> bool:
        """Tell whether units can be installed."""
        return self._site.has_systemd

    def _pieces(self) -> Iterator[tuple[Path, bytes]]:
        """Give each file that shall be there."""
        for name, data in installation.files(self._shipped.rules):
            yield self._places.rules / name, data
        if self._site.has_systemd:
            for unit in self._units:
                yield self._site.units / unit.name, unit.text.encode()
            for name, data in installation.files(self._shipped.tmpfiles):
                yield self._site.tmpfiles / name, data

    def plan_setup(self, *, replace_changed: bool = False) -> list[Step]:
        """Give what is to be done so that all is there; nothing when it is.

        Raises `Refused` for a file that is there and is not as we put it, unless
        *replace_changed*.
        """
        record = Record.parse(self._at)
        folders = list(self._folders())
        pieces = dict(self._pieces())
        changed = {path: data for path, data in pieces.items() if _content(path) != data}
        foreign = [p for p in changed if _content(p) is not None and not record.owns(p)]
        if foreign and not replace_changed:
            raise Refused(
                f"{', '.join(map(str, foreign))} {'is' if len(foreign) == 1 else 'are'} not as "
                "dmcopy put it",
                way_out="look at it, then remove it, or run dmcopy setup --replace-changed; keep "
                "changes in drop-ins (systemctl edit UNIT), where nobody replaces them",
            )
        gone = [path for path in map(Path, record.files) if path not in pieces]
        old = [path for path in gone if record.owns(path) and self._is_in_reach(path)]
        enable = self._to_enable(record, changed)
        files = {path: [digest(data)] for path, data in pieces.items()
                 if path in changed or str(path) in record.files}  # fmt: skip
        now = Record(
            {str(path): ours for path, ours in files.items()}
            | {str(path): record.files[str(path)] for path in gone if path not in old},
            [*record.enabled, *(unit.name for unit in enable)],
            [*record.folders, *(str(step.path) for step in folders)],
        )
        steps: list[Step] = [
            *(WriteFile(path, data) for path, data in changed.items()),
            *(RemoveFile(path) for path in old),
        ]
        if not folders and not steps and not enable:
            return []
        return [
            *folders,
            _Note(self._at, self._meanwhile(record, now)),
            *self._disable([path.name for path in old], record),
            *steps,
            *self._reloads([*changed, *old]),
            *(Run("systemctl", "enable", *self._start(unit), unit.name,
                  back=("systemctl", "disable", *self._start(unit), unit.name))
              for unit in enable),
            _Note(self._at, now),
        ]  # fmt: skip

    @staticmethod
    def _start(unit: installation.Unit) -> tuple[str, ...]:
        return ("--now",) if unit.is_for_now else ()

    def _is_in_reach(self, path: Path) -> bool:
        """Tell whether it is for us to remove: units only where systemd is there to be told."""
        return self._site.has_systemd or path.parent == self._places.rules

    @staticmethod
    def _meanwhile(before: Record, after: Record) -> Record:
        """Give the record for the time in between: both what was and what shall be is ours."""
        files = {path: list(ours) for path, ours in before.files.items()}
        for path, ours in after.files.items():
            files[path] = [*dict.fromkeys([*files.get(path, ()), *ours])]
        return Record(files, after.enabled, after.folders)

    def _folders(self) -> Iterator[MakeFolder]:
        """Give the directories to be made; a parent before what is in it."""
        config = self._places.config
        wanted = {
            self._places.state: 0o700,
            config: 0o755,
            config / "hooks.d": 0o755,
            config / "policies.d": 0o755,
            self._places.rules: 0o755,
            **({self._site.units: 0o755, self._site.tmpfiles: 0o755} if self.has_systemd else {}),
        }
        made: set[Path] = set()
        for path, mode in wanted.items():
            for one in [*reversed(path.parents), path]:
                if one not in made and not one.exists():
                    made.add(one)
                    yield MakeFolder(one, mode if one == path else 0o755)

    def _to_enable(self, record: Record, changed: Mapping[Path, bytes]) -> list[installation.Unit]:
        """Give the units to enable: once; who disabled one since had a reason."""
        if not self._site.has_systemd:
            return []
        wanted = [u for u in self._units if u.is_wanted and u.name not in record.enabled]
        return [
            unit
            for unit in wanted
            if self._site.units / unit.name in changed or not self._is_enabled(unit.name)
        ]

    def _is_enabled(self, unit: str) -> bool:
        said = self._host.run.run(
            "systemctl", "is-enabled", unit, ok=range(256), changes=False
        ).stdout
        return said.strip() not in ("disabled", "", "not-found")

    def _reloads(self, paths: Sequence[Path]) -> Iterator[Run]:
        folders = {path.parent for path in paths}
        if self._places.rules in folders and self._site.has_udev:
            yield Run("udevadm", "control", "--reload", is_reload=True)
        if self._site.units in folders:
            yield Run("systemctl", "daemon-reload", is_reload=True)
        there = [p for p in paths if p.parent == self._site.tmpfiles]
        if any(path in dict(self._pieces()) for path in there):
            yield Run("systemd-tmpfiles", "--create", *(path.name for path in there))

    def _disable(self, names: Sequence[str], record: Record) -> Iterator[Run]:
        started = {unit.name for unit in self._units if unit.is_for_now}
        for name in names:
            if name in record.enabled and self._site.has_systemd:
                now = ("--now",) if name in started else ()
                back = ("systemctl", "enable", *now, name)
                yield Run("systemctl", "disable", "--now", name, back=back)

    def plan_undo(self) -> list[Step]:
        """Give what takes away what `plan_setup` put, and only that; nothing when there is none.

        Raises `Refused` while a job runs or is unfinished, or a device is wrapped: these need
        the rules and units.
        """
        record = Record.parse(self._at)
        if record == Record():
            return []
        self._refuse_in_use()
        there = [path for path in map(Path, record.files) if _content(path) is not None]
        ours = [path for path in there if record.owns(path)]
        left = [path for path in there if path not in ours]
        folders = [path for path in map(Path, reversed(record.folders)) if path.is_dir()]
        stays = {self._at, *ours}
        removed: set[Path] = set()
        kept: set[Path] = set()
        rest: list[Step] = []
        for folder in folders:
            others = {path for path in folder.iterdir() if path not in stays | removed}
            if others:
                kept.add(folder)
                if others - kept:
                    rest.append(Left(folder, f"{min(others - kept).name} is in it"))
            else:
                removed.add(folder)
                rest.append(RemoveFolder(folder))
        return [
            *self._disable(record.enabled, record),
            *(RemoveFile(path) for path in ours),
            *(Left(path, "changed since it was put there") for path in left),
            *(reload for reload in self._reloads(ours) if reload.is_reload),
            _Note(self._at, None),
            *rest,
        ]

    def _refuse_in_use(self) -> None:
        why = "its rules and units are needed"
        for view in overview(self._host):
            if view.pid is not None or view.leader is not None:
                raise Refused(
                    f"job {view.job} is running, {why}",
                    way_out=f"dmcopy wait {view.job}, or dmcopy cancel {view.job}",
                )
            if view.is_dead or view.is_kept:
                raise Refused(
                    f"job {view.job} is unfinished, {why}",
                    way_out=f"dmcopy resume {view.job}, or dmcopy cancel {view.job}",
                )
        for wrap in views(self._host):
            raise Refused(
                f"{wrap.under or wrap.name} is wrapped, {why}", way_out=f"dmcopy unwrap {wrap.name}"
            )


def carry_out(
    steps: Sequence[Step], run: Commander, tell: Callable[[Step], None] = lambda step: None
) -> None:
    """Do the steps, and `tell` of each; when one fails undo those done, and raise what it raised.

    Raises `LeftBehind` when an undo failed as well.
    """
    done: list[Step] = []
    try:
        for step in steps:
            done.append(step)
            step.do(run)
            log.info("%s %s", step.action, step.what)
            if step.action:
                tell(step)
    except BaseException as exc:
        left = _undo(done, run)
        if left:
            raise LeftBehind(left, mend="dmcopy setup, once that is mended") from exc
        if isinstance(exc, OSError):
            raise DmcopyError(f"cannot {done[-1].action} {done[-1].what}: {exc.strerror}") from exc
        raise


def _undo(done: Sequence[Step], run: Commander) -> list[str]:
    """Undo, last first; then have udev and systemd read again what is there now."""
    left: list[str] = []
    reloads = [step for step in done if isinstance(step, Run) and step.is_reload]
    for step in reversed(done):
        try:
            step.undo(run)
        except (OSError, CommandFailed, ProgramMissing) as exc:
            left.append(f"{step.what}: {exc}")
    for step in reloads:
        try:
            step.do(run)
        except (CommandFailed, ProgramMissing) as exc:
            left.append(f"{step.what}: {exc}")
    return left
