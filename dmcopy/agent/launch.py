"""How the agent has something done: by the command line, in a process of its own.

A job must outlive whoever started it, and hooks may do what the agent may not.  Where systemd
runs each is a service of its own, an instance of ``dmcopy-job@.service``: neither a restart nor an
upgrade of the agent, nor the end of a login, nor what is forbidden to the agent reaches it.  Where
that unit is not installed it gets a scope (systemd.scope(5)): a control group of its own, but our
limits.  Without systemd ``--detach`` alone has to do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmcopy.agent.request import ANSWERED, Asked, Request
from dmcopy.errors import DmcopyError, EndedElsewhere, UsageError
from dmcopy.jobs.spec import USUAL_RUNTIME, Places
from dmcopy.kernel import systemd
from dmcopy.kernel.command import Commander
from dmcopy.kernel.own_code import helper

log = logging.getLogger(__name__)

_PROGRAM: Final = tuple(helper("dmcopy"))
_ASK_SECONDS: Final = 660.0  # longer than any verb waits by itself
_BEGIN_SECONDS: Final = 7 * 86400.0  # a begin time may wait for the resync of an array
_ALONE: Final = ("--detach", "--no-agent", "--json")
_OURS: Final = (*_ALONE, "--dry-run")
_STATUSES: Final = range(256)
_LOOK_SECONDS: Final = 5.0
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")


class Said(NamedTuple):
    """What a command said: its events, and its exit status is 0."""

    events: tuple[dict[str, Any], ...]  # Any: JSON

    def of_kind(self, name: str) -> dict[str, Any] | None:  # Any: JSON
        """Give the last event called *name*."""
        return next((one for one in reversed(self.events) if one.get("event") == name), None)


class Launcher:
    """Runs the command line's own words."""

    def __init__(
        self, run: Commander, *, in_scope: bool | None = None, asked: Path | None = None
    ) -> None:
        """*in_scope*: jobs get a control group of systemd's; None: where systemd runs.

        *asked* is where the unit looks for what it is to do (`unit_looks_in`); None: no unit.
        """
        self._run = run
        self._in_scope = systemd.is_running() if in_scope is None else in_scope
        self._asked = asked

    def ask(self, *words: str, directory: str | None = None) -> Said:
        """Run a command to its end, as a child of ours: with our limits.

        Raises `EndedElsewhere` with its message and exit status when that is not 0.
        """
        return self._said([*_at(directory), *_PROGRAM, *words], _ASK_SECONDS)

    def have(self, *words: str, directory: str | None = None) -> Said:
        """Do as `ask`, but in the unit where there is one: for what works on devices."""
        instance = _instance(words[0])
        if self._has_unit(instance):
            return self._by_unit(instance, words, directory, _ASK_SECONDS)
        return self.ask(*words, directory=directory)

    def copy(self, words: Sequence[str], *, directory: str | None = None) -> Said:
        """Start ``dmcopy copy`` with *words*; gives its events up to the begin time.

        Raises what `ask` does: then nothing was begun.
        """
        refuse_ours(words)
        name = _name_in(words)
        return self._job(name, ["copy", *_ALONE, *words], directory)

    def resume(self, job: str, *, verify: bool = False, queue: bool = False) -> Said:
        """Go on with *job*, which no process works on; gives its events up to where it does."""
        more = [word for word, is_said in (("--verify", verify), ("--queue", queue)) if is_said]
        return self._job(job, ["resume", *_ALONE, *more, job], None)

    def policy(self, name: str) -> None:
        """Run the policy *name*; returns when its begin time is fixed."""
        self._job(name, ["policy", "run", "--detach", name], None)

    def _job(self, name: str | None, words: Sequence[str], directory: str | None) -> Said:
        instance = _instance(name)
        if self._has_unit(instance):
            return self._by_unit(instance, words, directory, _BEGIN_SECONDS)
        argv = [*_at(directory), *_PROGRAM, *words]
        if self._in_scope:
            argv = [
                "systemd-run", "--scope", "--quiet", "--collect", f"--unit=dmcopy-job-{instance}",
                f"--description=dmcopy {name or 'copy'}", "--", *argv,
            ]  # fmt: skip
        return self._said(argv, _BEGIN_SECONDS)

    def _has_unit(self, instance: str) -> bool:
        if not self._in_scope or self._asked is None:
            return False
        return self._shown(_unit(instance), "LoadState") != "not-found"

    def _shown(self, unit: str, name: str) -> str:
        words = ("systemctl", "show", f"--property={name}", "--value", "--", unit)
        return self._run.run(*words, ok=_STATUSES, changes=False).stdout.strip()

    def _by_unit(
        self, instance: str, words: Sequence[str], directory: str | None, timeout: float
    ) -> Said:
        """Have systemd start the unit, which is started when it says so: at the begin time."""
        assert self._asked is not None
        _refuse_directory(directory)
        unit = _unit(instance)
        try:
            with Asked(self._asked, instance, Request.of(tuple(words), directory)) as asked:
                why = self._start(unit, timeout)
                events = _events(asked.answer())
        except OSError as exc:
            raise DmcopyError(f"{unit} cannot be asked: {exc}") from exc
        at = next((at for at, one in enumerate(events) if one.get("event") == ANSWERED), None)
        if at is None:  # it was killed, or did not even start
            raise EndedElsewhere(f"{why or unit + ' ended'}; see: journalctl -u {unit}", 1)
        said, status = Said(tuple(events[:at])), int(events[at]["exit_status"])
        if status != 0:
            ended = said.of_kind("ended") or {}
            message = events[at]["message"] or ended.get("error") or f"exit status {status}"
            raise EndedElsewhere(str(message), status)
        return said

    def _start(self, unit: str, timeout: float) -> str:
        """Start *unit*, and wait until it has; gives what systemd said when it did not.

        An upgrade of systemd ends the wait of systemctl, and nothing else.
        """
        done = self._run.run("systemctl", "start", "--", unit, ok=_STATUSES, timeout=timeout)
        end = time.monotonic() + timeout
        # "": systemd does not answer just now
        while done.status != 0 and self._shown(unit, "ActiveState") in ("activating", ""):
            if time.monotonic() > end:
                break
            time.sleep(_LOOK_SECONDS)
        return next(iter(done.stderr.splitlines()), "").rstrip(".")

    def _said(self, argv: Sequence[str], timeout: float) -> Said:
        done = self._run.run(*argv, ok=_STATUSES, timeout=timeout)
        if done.status != 0:
            message = _last_line(done.stderr) or f"exit status {done.status}"
            raise EndedElsewhere(message, done.status)
        return Said(tuple(_events(done.stdout)))


def unit_looks_in(places: Places) -> Path | None:
    """Give where ``dmcopy-job@.service`` looks for what it is to do, None when that is not ours.

    It has the places of all units: ours, if systemd has started us as well, or the usual ones.
    """
    ours = os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
    return places.asked if ours or places.runtime == USUAL_RUNTIME else None


def refuse_ours(words: Sequence[str]) -> None:
    """Raise `UsageError` for words that are the agent's to say."""
    for word in words:
        if word in _OURS:
            raise UsageError(f"{word} is not for the agent: it starts jobs in the background")


def _at(directory: str | None) -> list[str]:
    _refuse_directory(directory)
    # relative destinations begin where the caller is
    return [] if directory is None else ["env", f"--chdir={directory}"]


def _refuse_directory(directory: str | None) -> None:
    if directory is None:
        return
    if not Path(directory).is_absolute():
        raise UsageError(f"the directory {directory} is not absolute")
    if not Path(directory).is_dir():
        raise UsageError(f"there is no directory {directory}")


def _name_in(words: Sequence[str]) -> str | None:
    for before, word in zip(["", *words], words, strict=False):
        if before == "--name":
            return word
        if word.startswith("--name="):
            return word.partition("=")[2]
    return None


def _instance(name: str | None) -> str:
    """Make what a unit is called beside others, of what stands in a unit's name as it is.

    With a suffix: an earlier run of the same job may be on its way out still.
    """
    plain = _ODD.sub("-", name or "")[:100].strip("-")
    return "-".join(part for part in (plain, secrets.token_hex(4)) if part)


def _unit(instance: str) -> str:
    return f"dmcopy-job@{instance}.service"


def _last_line(text: str) -> str:
    """Give what a command said when it failed, without its name."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("dmcopy: ") if lines else ""


def _events(text: str) -> list[dict[str, Any]]:  # Any: JSON
    found = []
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            found.append(said)
    return found
