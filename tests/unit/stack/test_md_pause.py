"""A resync that is paused is started again, whoever of those who must do it is left.

The arrays are files in a directory: what is written to sync_action is what md would be told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Process
from dmcopy.kernel.md import Md
from dmcopy.stack import md_keeper
from dmcopy.stack.md_pause import Pause, left_paused, start_left_again
from tests.unit.kernel.tree import Tree

ONE, TWO = "9:1", "9:2"


class Host:
    """Two arrays, and processes that are not started."""

    def __init__(self, base: Path) -> None:
        self.tree = Tree(base)
        self.folder = base / "paused"
        self.md = Md(self.tree.sysfs())
        self.is_ready = True
        for number, devno in enumerate((ONE, TWO), 1):
            self.tree.disk(f"md{number}", devno)
            self.tree.write(devno, "md/array_state", "active")
            self.tree.write(devno, "md/uuid", f"uuid-{number}")
            self.tree.write(devno, "md/sync_action", "idle")

    def act(self, devno: str, action: str) -> None:
        self.tree.write(devno, "md/sync_action", action)

    def action(self, devno: str) -> str:
        return self.md.read(devno).action

    def start(self, argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> Process:
        assert md_keeper.__name__ in argv
        assert len(pass_fds) == 1
        read, write = os.pipe()
        os.write(write, b"ready\n" if self.is_ready else b"")
        os.close(write)
        fake = SimpleNamespace(
            stdin=open(os.devnull, "wb"),  # noqa: SIM115
            stdout=os.fdopen(read, "rb"),
            wait=lambda timeout=None: 0,
            kill=lambda: None,
        )
        return cast(Process, fake)

    def pause(self, job: str) -> Pause:
        return Pause(self.folder, job, self.md, start=self.start)

    def begin(self, pause: Pause, *devnos: str) -> list[str]:
        return [str(a.action) for a in pause.begin([self.md.read(d) for d in devnos])]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    real = md_keeper.put_back

    def put_back(
        record: Path, *, keep: Sequence[str] = (), remove: bool = True
    ) -> tuple[list[str], list[str]]:
        return real(record, keep=keep, remove=remove, root=str(made.tree.sys))

    monkeypatch.setattr(md_keeper, "put_back", put_back)
    return made


def die(pause: Pause) -> None:
    """Be killed, with the keeper: the lock of the record goes, and that is all."""
    assert pause._fd is not None
    os.close(pause._fd)


@pytest.mark.parametrize(
    ("found", "again"),
    [("resync", "idle"), ("recover", "idle"), ("check", "check"), ("repair", "repair")],
)
def test_each_is_paused_and_started_again_in_its_way(host: Host, found: str, again: str) -> None:
    host.act(ONE, found)
    pause = host.pause("a")
    assert host.begin(pause, ONE, TWO) == [found]
    assert host.action(ONE) == "frozen"
    assert host.action(TWO) == "idle"
    assert pause.end() == []
    assert host.action(ONE) == again
    assert pause.end() == []
    assert md_keeper.records(host.folder) == []


def test_record_is_there_before_anything_is_paused(host: Host) -> None:
    host.act(ONE, "resync")
    host.is_ready = False
    with pytest.raises(DmcopyError, match="did not start"):
        host.begin(host.pause("a"), ONE)
    assert host.action(ONE) == "resync"
    assert md_keeper.records(host.folder) == []


@pytest.mark.parametrize("action", ["idle", "reshape", "frozen"])
def test_nothing_else_is_paused(host: Host, action: str) -> None:
    host.act(ONE, action)
    pause = host.pause("a")
    assert host.begin(pause, ONE) == []
    pause.end()
    assert host.action(ONE) == action


def test_what_both_left_is_found_and_started_again(host: Host) -> None:
    host.act(ONE, "check")
    pause = host.pause("a")
    host.begin(pause, ONE)
    assert left_paused(host.folder) == {}, "it lives"
    assert start_left_again(host.folder) == {}
    die(pause)
    assert left_paused(host.folder) == {"a": ["the check of md1 is paused"]}
    assert start_left_again(host.folder, "b") == {}
    assert start_left_again(host.folder) == {"a": (["started the check of md1 again"], [])}
    assert host.action(ONE) == "check"
    assert start_left_again(host.folder) == {}


def test_two_jobs_on_one_array_and_the_last_one_starts_it(host: Host) -> None:
    host.act(ONE, "recover")
    first, second = host.pause("a"), host.pause("b")
    host.begin(first, ONE)
    assert host.begin(second, ONE) == ["recover"]
    first.end()
    assert host.action(ONE) == "frozen"
    second.end()
    assert host.action(ONE) == "idle"


def test_job_that_died_is_no_reason_to_leave_it_paused(host: Host) -> None:
    host.act(ONE, "resync")
    dead, alive = host.pause("a"), host.pause("b")
    host.begin(dead, ONE)
    host.begin(alive, ONE)
    die(dead)
    alive.end()
    assert host.action(ONE) == "idle"


def test_job_that_goes_on_knows_what_it_had_paused(host: Host) -> None:
    host.act(ONE, "check")
    host.act(TWO, "resync")
    dead = host.pause("a")
    host.begin(dead, ONE, TWO)
    die(dead)
    again = host.pause("a")
    assert host.begin(again, ONE) == ["check"]
    assert host.action(ONE) == "frozen"
    assert host.action(TWO) == "idle", "it is not below the source any more"
    again.end()
    assert host.action(ONE) == "check"


def test_next_copy_that_pauses_nothing_starts_what_was_left(host: Host) -> None:
    host.act(ONE, "resync")
    dead = host.pause("a")
    host.begin(dead, ONE)
    die(dead)
    assert host.begin(host.pause("b")) == []
    assert host.action(ONE) == "idle"


def test_what_somebody_else_set_meanwhile_stays(host: Host) -> None:
    host.act(ONE, "check")
    pause = host.pause("a")
    host.begin(pause, ONE)
    host.act(ONE, "repair")
    pause.end()
    assert host.action(ONE) == "repair"


def test_other_array_of_the_same_number_is_left_alone(host: Host) -> None:
    host.act(ONE, "resync")
    pause = host.pause("a")
    host.begin(pause, ONE)
    host.tree.write(ONE, "md/uuid", "another")
    pause.end()
    assert host.action(ONE) == "frozen"


def test_record_that_is_not_whole_is_cleared_away(host: Host) -> None:
    host.folder.mkdir()
    (host.folder / "a").write_text(json.dumps({"arrays": [1]})[:-3])
    assert start_left_again(host.folder) == {"a": ([], [])}
    assert md_keeper.records(host.folder) == []
