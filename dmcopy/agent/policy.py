"""Policies: ``/etc/dmcopy/policies.d/*.toml``, one a file: what is copied, where to, and when.

A policy is words of ``dmcopy copy`` in another form: `Policy.words` gives them, and every option
means what it means there.  What may go wrong when nobody looks is stricter: devices are named by
what they are called for ever, never by a kernel name; a word that is not known is an error; and
all errors of all files are told, not the first one.

Not for: which devices are there, and whether a policy is to run now (`triggers`).
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmcopy.errors import UsageError
from dmcopy.jobs.spec import Places

# Options of ``dmcopy copy`` by their long names; what is not here is not for a policy (the name is
# the policy's, the output is its caller's, and nobody would let go of --hold-start).
FLAGS: Final = frozenset(
    {"verify", "keep", "no-retire", "no-hooks", "overwrite-signature", "new-identity", "queue"}
)
VALUES: Final = frozenset(
    {
        "cow", "cow-max", "on-full", "order", "gate", "via", "md-resync", "chunk", "segment",
        "batch", "rate", "digest", "hold-limit", "freeze", "hook-timeout",
    }
)  # fmt: skip
LISTS: Final = frozenset({"hook"})
NOT_FOR_POLICIES: Final = frozenset(
    {"name", "pair", "dry-run", "detach", "no-agent", "json", "hold-start"}
)

JOB: Final = "{job}"  # in the path of an image: the name of the job, for each has one of its own
_OURS: Final = frozenset({"source", "destination", "pair", "when", "on-failure"})
_DEVICE: Final = ("wwn", "serial", "partuuid", "partlabel", "dm_uuid", "md_uuid")
LABEL: Final = "label"  # given by a file on the disk (`agent.label`), so never a source's
_PLUG: Final = "plug"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# what udev tells as it is: no space, no quote, nothing that it would have to encode
_PLAIN: Final = re.compile(r"[A-Za-z0-9:._/+=@,-]{3,200}")
_STABLE: Final = re.compile(r"/dev/(?!block/|char/)[^/]+/.+")
_WWN_PREFIX: Final = re.compile(r"^(wwn-)?(naa\.|eui\.|0x)")
_ROOT: Final = 0


class Place(NamedTuple):
    """A device by what names it for ever, or an image file by its path.

    *kind* is wwn, serial, partuuid, partlabel, dm_uuid, md_uuid, label, path or image.
    """

    kind: str
    value: str

    def __str__(self) -> str:
        return self.value if self.kind == "path" else f"{self.kind} {self.value}"

    @property
    def is_device(self) -> bool:
        """Tell whether it is a device that has to be found."""
        return self.kind in (*_DEVICE, LABEL)


class Pair(NamedTuple):
    """One volume, and where its copy goes."""

    source: Place
    destination: Place


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one file says."""

    name: str
    path: Path
    pairs: tuple[Pair, ...]
    on_plug: bool
    calendar: str | None
    options: tuple[str, ...]  # words of ``dmcopy copy``
    on_failure: tuple[str, ...]  # a program and its arguments

    def job(self, at: datetime) -> str:
        """Give the name of a job that begins *at* (UTC)."""
        return f"{self.name}-{at:%Y%m%d-%H%M%S}"

    def is_job(self, job: str) -> bool:
        """Tell whether a job of that name is one of this policy's."""
        return re.fullmatch(re.escape(self.name) + r"-\d{8}-\d{6}", job) is not None

    def words(self, job: str, device_of: Callable[[Place], str]) -> list[str]:
        """Give the words of the command line that copy it as *job*.

        *device_of* gives the path of a device that is there, and may raise.
        """
        pairs = [
            (_source(pair.source, device_of), _destination(pair.destination, job, device_of))
            for pair in self.pairs
        ]
        words = ["copy", "--name", job, *self.options]
        if len(pairs) == 1:
            return [*words, *pairs[0]]
        return [*words, *(word for pair in pairs for word in ("--pair", *pair))]

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy policy list --json`` prints."""
        return {
            "event": "policy",
            "policy": self.name,
            "file": str(self.path),
            "pairs": [
                {"source": str(pair.source), "destination": str(pair.destination)}
                for pair in self.pairs
            ],
            "on": [_PLUG] if self.on_plug else [],
            "calendar": self.calendar,
            "options": list(self.options),
            "on_failure": list(self.on_failure),
        }


def _source(place: Place, device_of: Callable[[Place], str]) -> str:
    return place.value if place.kind == "path" else device_of(place)


def _destination(place: Place, job: str, device_of: Callable[[Place], str]) -> str:
    if place.kind == "image":
        return "image:" + place.value.replace(JOB, job)
    return "block:" + device_of(place)


class Loaded(NamedTuple):
    """The policies of the files that are right, and what is wrong with the others."""

    policies: tuple[Policy, ...]
    faults: tuple[str, ...]


def read(places: Places) -> Loaded:
    """Read all policies, in the order of their names; a file with a fault gives no policy."""
    folder = places.policies
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return Loaded((), ())
    except OSError as exc:
        return Loaded((), (f"{folder}: {exc.strerror}",))
    policies: list[Policy] = []
    faults: list[str] = []
    for path in paths:
        found = _File(path)
        policy = found.read()
        faults += found.faults
        if policy is not None:
            policies.append(policy)
    return Loaded(tuple(policies), (*faults, *_contradictions(policies)))


def load(places: Places) -> list[Policy]:
    """Give all policies; raises `UsageError` that names every fault of every file."""
    loaded = read(places)
    if loaded.faults:
        raise UsageError("; ".join(loaded.faults))
    return list(loaded.policies)


def _contradictions(policies: Sequence[Policy]) -> list[str]:
    """Name the disks that more than one policy would write when they are plugged in."""
    owner: dict[Place, Policy] = {}
    faults = []
    for policy in policies:
        for pair in policy.pairs:
            if not policy.on_plug or not pair.destination.is_device:
                continue
            first = owner.setdefault(pair.destination, policy)
            if first is not policy:
                faults.append(
                    f"{policy.path}: destination {pair.destination} is that of {first.path} as "
                    "well, and both run when it is plugged in"
                )
    return faults


class _File:
    """One file; `faults` fills while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.faults: list[str] = []

    def _wrong(self, what: str) -> None:
        self.faults.append(f"{self._path}: {what}")

    def read(self) -> Policy | None:
        said = self._toml()
        if said is None:
            return None
        name = self._path.stem
        if _NAME.fullmatch(name) is None:
            self._wrong(
                "the file's name is the policy's: up to 80 letters, digits, '.', '_' and '-'"
            )
        words = {_key(key): value for key, value in said.items()}
        if len(words) != len(said):
            self._wrong("an option is there twice, with '-' and with '_'")
        self._refuse_unknown(words, {*_OURS, *FLAGS, *VALUES, *LISTS}, "")
        pairs = self._pairs(words)
        on_plug, calendar = self._when(words.get("when"))
        options = self._options(words)
        on_failure = self._on_failure(words.get("on-failure"))
        self._check_together(pairs, on_plug=on_plug, calendar=calendar)
        if self.faults:
            return None
        return Policy(
            name=name,
            path=self._path,
            pairs=tuple(pairs),
            on_plug=on_plug,
            calendar=calendar,
            options=tuple(options),
            on_failure=on_failure,
        )

    def _toml(self) -> dict[str, Any] | None:  # Any: TOML
        try:
            self._refuse_unsafe()
            return tomllib.loads(self._path.read_bytes().decode())
        except OSError as exc:
            self._wrong(str(exc.strerror))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            self._wrong(str(exc))
        return None

    def _refuse_unsafe(self) -> None:
        """What it says is done as root: nobody else may write it."""
        found = os.stat(self._path)
        if found.st_uid not in (_ROOT, os.geteuid()):
            self._wrong(f"it belongs to user {found.st_uid}; chown root {self._path}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            self._wrong(f"others than its owner can write to it; chmod go-w {self._path}")

    def _refuse_unknown(self, words: Iterable[str], known: Iterable[str], where: str) -> None:
        every = sorted(known)
        for word in words:
            if word in every:
                continue
            if word in NOT_FOR_POLICIES:
                self._wrong(f"{where}'{word}' is not for a policy")
                continue
            near = difflib.get_close_matches(word, every, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(every)}"
            self._wrong(f"{where}'{word}' is not known{hint}")

    # what, and where to

    def _pairs(self, words: Mapping[str, Any]) -> list[Pair]:  # Any: TOML
        alone = [key for key in ("source", "destination") if key in words]
        if "pair" not in words:
            pair = self._pair(words, "")
            return [pair] if pair is not None else []
        if alone:
            self._wrong(f"'{alone[0]}' beside [[pair]]: every pair has its own")
        tables = words["pair"]
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            self._wrong("pair: write [[pair]], with source and destination, once a volume")
            return []
        pairs = []
        for number, table in enumerate(tables, start=1):
            where = f"pair {number}: "
            self._refuse_unknown(table, ("source", "destination"), where)
            pairs.append(self._pair(table, where))
        return [pair for pair in pairs if pair is not None]

    def _pair(self, table: Mapping[str, Any], where: str) -> Pair | None:  # Any: TOML
        source = self._source(table.get("source"), where)
        destination = self._destination(table.get("destination"), where)
        if source is None or destination is None:
            return None
        if source == destination:
            self._wrong(f"{where}source and destination are the same")
        return Pair(source, destination)

    def _source(self, said: object, where: str) -> Place | None:
        if isinstance(said, str):
            if _STABLE.fullmatch(said):
                return Place("path", said)
            self._wrong(
                f"{where}source: '{said}' is not a name that a device keeps; write "
                "/dev/mapper/NAME, /dev/VG/LV or /dev/disk/by-..., or { "
                f"{_DEVICE[0]} = ... }}"
            )
            return None
        return self._identity(said, f"{where}source", _DEVICE)

    def _destination(self, said: object, where: str) -> Place | None:
        if isinstance(said, str):
            self._wrong(
                f"{where}destination: '{said}' is a path, which may lead to another disk one day; "
                f"write {{ wwn = ... }} (or {', '.join((*_DEVICE[1:], LABEL))}), "
                "or { image = ... }"
            )
            return None
        return self._identity(said, f"{where}destination", (*_DEVICE, LABEL, "image"))

    def _identity(self, said: object, where: str, kinds: Sequence[str]) -> Place | None:
        if said is None:
            self._wrong(f"{where} is missing")
            return None
        if not isinstance(said, dict):
            self._wrong(f"{where}: write {{ {kinds[0]} = ... }}")
            return None
        self._refuse_unknown(said, kinds, f"{where}: ")
        found = [(kind, value) for kind, value in said.items() if kind in kinds]
        if len(found) != 1:
            self._wrong(f"{where}: needs one of {', '.join(kinds)}")
            return None
        kind, value = found[0]
        if not isinstance(value, str):
            self._wrong(f"{where}: {kind} must be a string")
        elif kind == "image":
            if os.path.isabs(value) and not value.startswith("/dev/"):
                return Place(kind, value)
            self._wrong(f"{where}: image must be the whole path of a file")
        elif not is_plain(value):
            self._wrong(f"{where}: '{value}' cannot be a {kind}")
        else:
            return Place(kind, plain(kind, value))
        return None

    # when

    def _when(self, said: object) -> tuple[bool, str | None]:
        if not isinstance(said, dict):
            self._wrong('when is missing: when = { on = ["plug"] }, or { calendar = "daily" }')
            return False, None
        self._refuse_unknown(said, ("on", "calendar"), "when: ")
        on = said.get("on", [])
        calendar = said.get("calendar")
        if not isinstance(on, list) or any(word != _PLUG for word in on):
            self._wrong(f'when: on must be ["{_PLUG}"], not {on!r}')
            on = []
        if calendar is not None and (not isinstance(calendar, str) or not calendar.strip()):
            self._wrong("when: calendar must be a string, as in systemd.time(7)")
            calendar = None
        if not said:  # that it is only run by hand, or by a timer, is said: on = []
            self._wrong("when: neither on nor calendar says when")
        return bool(on), calendar

    def _check_together(
        self, pairs: Sequence[Pair], *, on_plug: bool, calendar: str | None
    ) -> None:
        places = [pair.destination for pair in pairs]
        if len({*places}) != len(places) or len({pair.source for pair in pairs}) != len(places):
            self._wrong("a source or destination is there twice")
        if on_plug and places and not any(place.is_device for place in places):
            self._wrong("when: on plug needs a destination that can be plugged in, not an image")
        if any(place.kind == "image" and JOB not in place.value for place in places):
            self._wrong(
                f"destination: an image is never overwritten, so its path needs {JOB}, as in "
                f"/backup/{JOB}.img"
            )

    # how

    def _options(self, words: Mapping[str, Any]) -> list[str]:  # Any: TOML
        found: list[str] = []
        for key in sorted(words):
            value = words[key]
            if key in FLAGS:
                if not isinstance(value, bool):
                    self._wrong(f"{key} must be true or false")
                elif value:
                    found.append(f"--{key}")
            elif key in LISTS:
                many = [value] if isinstance(value, str) else value
                if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
                    self._wrong(f"{key} must be a string, or a list of strings")
                    continue
                found += [f"--{key}={one}" for one in many]
            elif key in VALUES:
                if isinstance(value, bool) or not isinstance(value, str | int | float):
                    self._wrong(f"{key} must be a string or a number")
                else:
                    found.append(f"--{key}={value}")
        return found

    def _on_failure(self, said: object) -> tuple[str, ...]:
        if said is None:
            return ()
        try:
            words = shlex.split(said) if isinstance(said, str) else said
        except ValueError as exc:
            self._wrong(f"on_failure: {exc}")
            return ()
        if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
            self._wrong("on_failure must be a command, as a string or a list of strings")
            return ()
        if not os.path.isabs(words[0]):
            self._wrong(f"on_failure: '{words[0]}' must be the whole path of a program")
        return tuple(words)


def _key(key: str) -> str:
    return key.replace("_", "-")


def is_plain(value: str) -> bool:
    """Tell whether udev and files would tell *value* as it is."""
    return _PLAIN.fullmatch(value) is not None


def plain(kind: str, value: str) -> str:
    """Give a name as it is compared: WWNs and UUIDs are written in several ways."""
    if kind == "wwn":
        return _WWN_PREFIX.sub("", value.lower())
    return value.lower() if kind in ("partuuid", "md_uuid") else value
