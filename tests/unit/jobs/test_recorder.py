"""A journal that cannot be written for a while: nothing is lost, and nothing is out of order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, Interrupted
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.recorder import Recorder
from dmcopy.jobs.state import State
from dmcopy.units import Sectors


class Full:
    """A journal on a disk that is full while *full*."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.full = False

    def __getattr__(self, name: str) -> object:
        method = getattr(self._journal, name)
        if name == "state":
            return method

        def outer(*args: object, **kwargs: object) -> object:
            if self.full:
                raise DmcopyError("cannot write the journal: database or disk is full")
            return method(*args, **kwargs)

        return outer


def run(start: int, length: int) -> list[tuple[Extent, str | None]]:
    return [(Extent(Sectors(start), Sectors(length)), None)]


def test_what_could_not_be_written_is_made_up_for_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        full = Full(journal)
        record = Recorder(full, "a", said.append)  # type: ignore[arg-type]  # stands in for it
        record.move(State.BEGUN)
        full.full = True
        record.move(State.COPYING)
        record.commit(run(0, 8), {"bytes_cow": 1})
        record.progress({"bytes_done": 1})
        record.commit(run(0, 16), {"bytes_cow": 2})
        assert record.is_behind
        assert len(said) == 1
        assert "the copy goes on, but could not be resumed from here" in said[0]
        assert journal.state("a") == State.BEGUN
        full.full = False
        record.move(State.COPIED)
        assert not record.is_behind
        assert said[1:] == ["the journal can be written again, and has everything"]
        assert journal.state("a") == State.COPIED
        assert [row.extent.length for row in journal.done("a")] == [16]
        found = journal.record("a")
        assert found is not None
        assert found.facts == {"counts": {"bytes_cow": 2}}


def test_state_that_it_has_already_is_no_mistake(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        record = Recorder(journal, "a", pytest.fail)
        record.move(State.BEGUN)
        record.move(State.COPYING)
        record.move(State.COPYING)
        assert journal.state("a") == State.COPYING


def test_interruption_is_no_failure_of_the_journal(tmp_path: Path) -> None:
    """A signal that comes while an entry is written is raised when it has been."""

    def raise_it(number: int, frame: object) -> None:
        raise Interrupted("interrupted by SIGINT")

    class Slow(Full):
        def __getattr__(self, name: str) -> object:
            if name == "move":
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getattr__(name)

    before = signal.signal(signal.SIGINT, raise_it)
    try:
        with Journal(tmp_path / "j") as journal:
            journal.define("a", {})
            record = Recorder(Slow(journal), "a", pytest.fail)  # type: ignore[arg-type]  # as above
            with pytest.raises(Interrupted):
                record.move(State.BEGUN)
            assert journal.state("a") == State.BEGUN
            assert not record.is_behind
    finally:
        signal.signal(signal.SIGINT, before)
