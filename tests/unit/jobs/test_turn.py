"""Jobs that wait for their turn: never more than the limit at a time, whatever becomes of them."""

from __future__ import annotations

import threading
from pathlib import Path

from dmcopy.jobs.turn import turn


def _refuse_to_wait(_most: int) -> None:
    raise AssertionError("there was a turn")


def test_without_a_limit_nobody_waits(tmp_path: Path) -> None:
    with turn(tmp_path, lambda: None, _refuse_to_wait), turn(tmp_path, lambda: None, print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_never_more_than_the_limit_and_all_come_to_their_turn(tmp_path: Path) -> None:
    lock, now, most, done = threading.Lock(), 0, 0, 0
    pause = threading.Event()

    def nap(_seconds: float) -> None:
        pause.wait(0.001)

    def work() -> None:
        nonlocal now, most, done
        with turn(tmp_path, lambda: 3, lambda _: None, sleep=nap):
            with lock:
                now, done = now + 1, done + 1
                most = max(most, now)
            pause.wait(0.005)
            with lock:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (most, done) == (3, 20)


def test_it_is_said_once_that_a_job_waits_and_a_higher_limit_lets_it_go(tmp_path: Path) -> None:
    said: list[int] = []
    limit = 1

    def sleep(_seconds: float) -> None:
        nonlocal limit
        slept.append(1)
        if len(slept) == 5:
            limit = 2

    slept: list[int] = []
    with (
        turn(tmp_path, lambda: limit, _refuse_to_wait),
        turn(tmp_path, lambda: limit, said.append, sleep=sleep),
    ):
        assert said == [1]
        assert len(slept) == 5


def test_turn_ends_with_what_went_wrong_in_it(tmp_path: Path) -> None:
    try:
        with turn(tmp_path, lambda: 1, _refuse_to_wait):
            raise ValueError
    except ValueError:
        pass
    with turn(tmp_path, lambda: 1, _refuse_to_wait):
        pass
