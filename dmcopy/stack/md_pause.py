"""Pauses what md does by itself - resync, recovery, check - and starts it again in every case.

Paused is ``sync_action`` = ``frozen``.  It would stay so for ever, and an array that is not whole
unprotected, so that three look after it: control, at the end; `md_keeper`, a process of its own,
when control is killed; and `start_left_again`, which `dmcopy rescue` and the next copy call, when
both were.  What an administrator had frozen before us is left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.md import Action, Array, Md
from dmcopy.kernel.own_code import helper
from dmcopy.stack import md_keeper
from dmcopy.stack.plan import signals_deferred

PAUSABLE: Final = (Action.RESYNC, Action.RECOVER, Action.CHECK, Action.REPAIR)
_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0


class Pause:
    """What one job has paused; from `begin` to `end`, which is called in every case.

    *folder* is for all jobs of the host, and goes with a boot.
    """

    def __init__(
        self,
        folder: Path,
        job: str,
        md: Md,
        *,
        start: Callable[..., Process] = start_process,
    ) -> None:
        self._record = folder / job
        self._md = md
        self._start = start
        self._fd: int | None = None
        self._process: Process | None = None

    def begin(self, arrays: Sequence[Array]) -> list[Array]:
        """Pause what these arrays do; gives them as they were, those that do something.

        What another job has paused stays so until both let go.  Raises `DmcopyError` and OSError;
        then nothing is paused.
        """
        folder = self._record.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with signals_deferred(), md_keeper.folder_locked(folder):
                found = self._found(arrays)
                if found:
                    self._write(found)
                for record in md_keeper.records(folder):  # but ours, which is locked now
                    if md_keeper.is_left(record):
                        md_keeper.put_back(record)
                if found:
                    self._start_keeper()
                    for array in found:
                        self._md.act(array.devno, Action.FROZEN)
        except BaseException:
            self.end()
            raise
        return found

    def _found(self, arrays: Sequence[Array]) -> list[Array]:
        """Give the arrays that are to be paused, or are, with what they did before that."""
        earlier: dict[tuple[str, str], str] = {}
        for record in md_keeper.records(self._record.parent):
            for array in md_keeper.arrays_in(record):
                earlier[array["devno"], array["uuid"]] = array["found"]
        found = []
        for one in arrays:
            now = self._md.read(one.devno)
            action = now.action
            if action == Action.FROZEN:  # by a job of ours, or by somebody whose business it is
                action = earlier.get((now.devno, now.uuid), action)
            if action in PAUSABLE:
                found.append(replace(now, action=action))
        return found

    def _write(self, found: Sequence[Array]) -> None:
        """Put on record what is going to be paused, and lock the record.

        At no moment is there something paused that is on no record: the new one takes the place of
        that of this job's last session, if it was killed.
        """
        md_keeper.put_back(self._record, keep=[array.devno for array in found], remove=False)
        arrays = [
            {"devno": a.devno, "uuid": a.uuid, "name": a.name, "found": str(a.action)}
            for a in found
        ]
        new = self._record.with_name(f".{self._record.name}")
        self._fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.pwrite(self._fd, json.dumps({"arrays": arrays}).encode(), 0)
        os.fsync(self._fd)
        new.replace(self._record)

    def _start_keeper(self) -> None:
        assert self._fd is not None
        argv = helper(md_keeper.__name__, str(self._record))
        self._process = self._start(argv, pass_fds=[self._fd])
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if line.strip() != b"ready":
            raise DmcopyError("who is to start a paused resync again did not start: not paused")

    def end(self) -> list[str]:
        """Start again what was paused; gives what could not be.  Once is enough."""
        left: list[str] = []
        with signals_deferred():
            if self._fd is not None:
                try:
                    with md_keeper.folder_locked(self._record.parent):
                        _, left = md_keeper.put_back(self._record)
                except OSError as exc:
                    left = [f"paused md arrays ({self._record}): {exc.strerror}"]
            process, self._process = self._process, None
            if process is not None:
                with suppress(BrokenPipeError):  # somebody killed it
                    # where something is left it may try as well
                    process.stdin.write(md_keeper.DONE if not left else b"")
                with suppress(BrokenPipeError):
                    process.stdin.close()
                try:
                    process.wait(timeout=_END_SECONDS)
                finally:
                    process.kill()
                    process.stdout.close()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        return left


def left_paused(folder: Path) -> Mapping[str, list[str]]:
    """Give what dead jobs left paused: in words, by job."""
    return {
        record.name: [
            f"the {array['found']} of {array['name']} is paused"
            for array in md_keeper.arrays_in(record)
        ]
        for record in md_keeper.records(folder)
        if md_keeper.is_left(record)
    }


def start_left_again(
    folder: Path, job: str | None = None
) -> dict[str, tuple[list[str], list[str]]]:
    """Start again what dead jobs, or only *job*, left paused: done, and left, by job."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    if not folder.is_dir():
        return found
    with signals_deferred(), md_keeper.folder_locked(folder):
        for record in md_keeper.records(folder):
            if job in (None, record.name) and md_keeper.is_left(record):
                found[record.name] = md_keeper.put_back(record)
    return found
