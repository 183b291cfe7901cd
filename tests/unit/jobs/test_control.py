"""One dmcopy asks another: over a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs import control
from dmcopy.jobs.control import Asked, Desk, ask, ask_running
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.spec import Places

JOB = "a" * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 30) / "jobs"  # longer than an address of a socket may be


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    with Desk(folder, JOB) as desk:
        yield desk


def serve(desk: Desk, work: Callable[[Asked], None]) -> threading.Thread:
    def wait() -> None:
        while True:
            for asked in desk.asked():
                work(asked)
                return

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_question_and_answer(desk: Desk, folder: Path) -> None:
    seen: list[Any] = []

    def work(asked: Asked) -> None:
        seen.append((asked.verb, asked.request["rate"]))
        asked.answer(now=7)

    thread = serve(desk, work)
    assert ask(folder, JOB, "set", timeout=5, rate=3) == {"ok": True, "now": 7}
    thread.join()
    assert seen == [("set", 3)]


def test_refusal_says_why(desk: Desk, folder: Path) -> None:
    thread = serve(desk, lambda asked: asked.refuse("it is running"))
    with pytest.raises(Refused, match="it is running"):
        ask(folder, JOB, "resume", timeout=5)
    thread.join()


def test_nobody_there_is_an_error_that_names_the_job(folder: Path) -> None:
    folder.mkdir(parents=True)
    with pytest.raises(DmcopyError, match=f"runs job {JOB} does not answer"):
        ask(folder, JOB, "pause", timeout=1)


def test_job_that_has_ended_since_it_was_seen_is_told_so(tmp_path: Path) -> None:
    places = Places(tmp_path / "state", tmp_path / "run")

    def ends(asked: Asked) -> None:
        del asked  # its connection is closed with the desk, as by a process that ends

    with JobLock(places.locks, JOB), Desk(places.desks, JOB) as desk:
        thread = serve(desk, ends)
        with pytest.raises(DmcopyError, match="does not answer") as caught:
            ask_running(places, JOB, "pause", timeout=5)
        thread.join()
    assert not isinstance(caught.value, Refused), "it is there, and says nothing"
    with pytest.raises(Refused, match=f"job {JOB} does not run any more"):
        ask_running(places, JOB, "pause", timeout=5)


def test_no_answer_is_an_error_in_time(desk: Desk, folder: Path) -> None:
    with pytest.raises(DmcopyError, match="does not answer"):
        ask(folder, JOB, "pause", timeout=0.05)


def test_asking_nothing_never_waits(desk: Desk) -> None:
    assert list(desk.asked()) == []


def test_nonsense_silence_and_hang_up_do_no_harm(
    desk: Desk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_LINE_SECONDS", 0.05)
    with control._address(folder, JOB) as address:
        for said in (b"\xff\xfe{", b"[1]\n", b"", json.dumps({"do": "x"}).encode() + b"\n"):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.connect(address)
            one.sendall(said)
            asked = list(desk.asked())
            one.close()
            assert [request.verb for request in asked] == (["x"] if b"x" in said else [])
            for request in asked:
                request.answer()  # to nobody


def test_socket_of_a_killed_process_is_replaced_and_gone_at_the_end(folder: Path) -> None:
    with Desk(folder, JOB):
        left = next(iter(folder.iterdir()))
        with Desk(folder, JOB):
            assert list(folder.iterdir()) == [left]
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o077 == 0
