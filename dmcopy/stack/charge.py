"""What a keeper is charged with; how it is handed over, and kept on record while it matters.

The record is a file of the runtime directory, locked (flock(2)) by the keeper as long as it lives:
who gets the lock knows that the keeper is dead, and can do what it owed (`mend`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from dmcopy.stack.freezer import Freezer
from dmcopy.stack.hook import Hooks, Told

_THAW_SECONDS: Final = 10.0
_RECORD_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What is to be done around one instant; *limit* is how long file systems may be frozen."""

    job: str
    record: str  # path of the record
    hooks: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float  # seconds, of each side of a hook
    freeze: tuple[str, ...] = ()  # mount points, in this order
    hidden: tuple[str, ...] = ()  # ... that cannot be reached, behind another mount
    limit: float  # seconds

    @property
    def is_nothing(self) -> bool:
        """Tell whether no keeper is needed."""
        return not self.hooks and not self.freeze

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:  # Any: JSON
        """Read what `as_json` gave; raises KeyError and TypeError."""
        words = dict(said)
        words["hooks"] = tuple(tuple(hook) for hook in words["hooks"])
        words["freeze"], words["hidden"] = tuple(words["freeze"]), tuple(words["hidden"])
        return cls(**words)


class RecordFile:
    """The record of a charge, open and locked; `forget` when nothing is owed any more."""

    def __init__(self, charge: Charge) -> None:
        """Make it; raises OSError."""
        self._charge = charge
        self._path = Path(charge.record)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        unseen = self._path.with_name(f".{self._path.name}")  # until it is locked and whole
        self._fd = os.open(unseen, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.note(begun=0, freezing=False)
        unseen.rename(self._path)

    def note(self, *, begun: int, freezing: bool) -> None:
        """Put down how many hooks are owed their other side, and whether a thaw is owed."""
        said = {"begun": begun, "freezing": freezing, "charge": self._charge.as_json()}
        _write(self._fd, said)

    def forget(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _write(fd: int, said: Mapping[str, Any]) -> None:  # Any: JSON
    data = json.dumps(said).encode() + b"\n"  # what is behind it is of an earlier one
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError("the record could not be written whole")


class Mended(NamedTuple):
    """What became of a dead keeper's debts."""

    job: str
    done: list[str]
    left: list[str]


def mend(directory: Path, job: str | None = None, *, dry_run: bool = False) -> list[Mended]:
    """Do what killed keepers owed, of *job* or of all; those with nothing owed are left out.

    Thaws what they had frozen, and runs the *after* side of the hooks that they had started.
    What a suspended device is under must be resumed before: a thaw would wait for it.
    """
    paths = sorted(directory.glob("[!.]*")) if directory.is_dir() else []
    found = [_mend(path, job, dry_run=dry_run) for path in paths]
    return [one for one in found if one is not None]


def _mend(path: Path, job: str | None, *, dry_run: bool) -> Mended | None:
    done: list[str] = []
    left: list[str] = []
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        charge = _charge_in(fd)
        if job is not None and charge.job != job:
            return None
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = _said_in(fd)  # again: now nobody changes it
        if dry_run:
            left += [f"{point} to be thawed" for point in charge.freeze if said["freezing"]]
            left += [f"hook {hook[0]} after to be run" for hook in charge.hooks[: said["begun"]]]
            return Mended(charge.job, done, left)
        if said["freezing"]:
            _thaw(charge.freeze, done, left)
        frozen = bool(left)
        _run_after(charge, said["begun"], done, left)
        if frozen:  # to be tried again
            _write(fd, {**said, "begun": 0})
        else:
            path.unlink(missing_ok=True)
        return Mended(charge.job, done, left)
    except BlockingIOError:
        return None  # its keeper lives
    except (ValueError, KeyError, TypeError) as exc:
        return Mended(job or "?", [], [f"the record {path} of a keeper cannot be read: {exc}"])
    finally:
        os.close(fd)


def _said_in(fd: int) -> dict[str, Any]:  # Any: JSON
    said: dict[str, Any] = json.loads(
        os.pread(fd, _RECORD_BYTES, 0).split(b"\n", 1)[0]
    )  # Any: JSON
    return said


def _charge_in(fd: int) -> Charge:
    return Charge.from_json(_said_in(fd)["charge"])


def _thaw(points: Sequence[str], done: list[str], left: list[str]) -> None:
    for point in reversed(points):
        try:
            freezer = Freezer([point], freeze=lambda _: None)
        except OSError as exc:
            left.append(f"cannot thaw {point}: {exc.strerror}")
            continue
        freezer.freeze(_THAW_SECONDS)  # for us it is frozen
        if freezer.thaw(_THAW_SECONDS):
            left.append(f"{point} is frozen; run: fsfreeze --unfreeze {point}")
        else:
            done.append(f"thawed {point}")
            freezer.close()


def _run_after(charge: Charge, begun: int, done: list[str], left: list[str]) -> None:
    def tell(told: Told) -> None:
        if told.is_well:
            done.append(f"ran {told.name} after")
        else:
            left.append(f"hook {told.name} after: {told.message}")

    hooks = Hooks(charge.hooks, charge.environment, timeout=charge.timeout, tell=tell)
    hooks.begun = min(begun, len(charge.hooks))
    hooks.after("failed")
