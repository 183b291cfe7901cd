"""What the journal of systemd is told of jobs, and what subscribers get."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmcopy.agent.watch import MESSAGES, Watch, job_of
from dmcopy.jobs.overview import JobView
from dmcopy.stack.hold import seconds_of

BEGUN = {"begun": {"begin_time": "2026-01-31T23:59:59.000000001Z"}}
Told = list[tuple[str, Mapping[str, str]]]


class Job(JobView):
    """A view with nothing in the kernel; *words* are laid over what is printed of it."""

    def __init__(self, name: str, **words: Any) -> None:  # Any: JSON
        super().__init__(job=name, state="copying", pid=None, remains=(), record=None)
        object.__setattr__(self, "words", words)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        words = self.__dict__["words"]
        return {**super().as_json(), "created": 0.0, "source": "/dev/a", **words}


def over(**words: object) -> dict[str, object]:
    return {"state": "ended", "ended": {"error": None, "bytes_total": 5, "seconds": 1.0, **words}}


def _watch(tmp_path: Path, looks: list[list[JobView]], told: Told) -> Watch:
    def look() -> list[JobView]:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    return Watch(
        look, tmp_path / "told", seconds=0.01, tell=lambda text, fields: told.append((text, fields))
    )


def _run(tmp_path: Path, *looks: list[JobView]) -> Told:
    told: Told = []
    watch = _watch(tmp_path, list(looks), told)
    with watch.listening():
        watch.start()
        seen = 0
        while seen < len(looks) + 1:
            seen, _ = watch.wait(seen, 5.0)
    watch.stop()
    return told


def test_job_is_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    now = time.time()
    warning = {"at": now + 3600, "event": "warning", "job": "a", "message": "nearly full"}
    told = _run(
        tmp_path,
        [],
        [Job("a", pid=7)],
        [Job("a", pid=7, **BEGUN)],
        [Job("a", pid=7, log=[warning], **BEGUN)],
        [Job("a", log=[warning], **BEGUN, **over())],
    )
    assert [text for text, _ in told] == [
        "job a: runs, pid 7",
        "job a: warning: nearly full",
        "job a: copied 5 bytes",
    ]
    kinds = [fields["MESSAGE_ID"] for _, fields in told]
    assert kinds == [MESSAGES["begun"], MESSAGES["warning"], MESSAGES["ended"]]
    assert {fields["DMCOPY_JOB"] for _, fields in told} == {"a"}
    assert told[0][1]["DMCOPY_BEGIN_TIME"] == BEGUN["begun"]["begin_time"]
    assert {fields["DMCOPY_SOURCE"] for _, fields in told} == {"/dev/a"}


def test_what_came_into_the_log_while_it_looked_is_told_by_the_next_look(tmp_path: Path) -> None:
    warning: dict[str, Any] = {
        "event": "warning",
        "job": "a",
        "message": "nearly full",
    }  # Any: JSON
    told: Told = []
    looks = 0

    def look() -> list[JobView]:
        nonlocal looks
        looks += 1
        if looks == 1:
            return []
        # the log was read right before
        log = [] if looks == 2 else [warning]
        warning.setdefault("at", time.time())
        return [Job("a", pid=7, log=log, **BEGUN)]

    watch = Watch(
        look, tmp_path / "told", seconds=0.01, tell=lambda text, fields: told.append((text, fields))
    )
    with watch.listening():
        watch.start()
        watch.wait(3, 5.0)
    watch.stop()
    assert [text for text, _ in told] == ["job a: runs, pid 7", "job a: warning: nearly full"]


def test_what_is_old_is_not_told_again_by_the_next_agent(tmp_path: Path) -> None:
    now = time.time()
    warning = {"at": now + 3600, "event": "warning", "job": "a", "message": "nearly full"}
    assert len(_run(tmp_path, [], [Job("a", pid=7, log=[warning], **BEGUN)])) == 2
    assert _run(tmp_path, [Job("a", pid=7, log=[warning], **BEGUN)]) == []


def test_what_ended_while_there_was_no_agent_is_told(tmp_path: Path) -> None:
    (tmp_path / "told").write_text("1000.0\n")
    old, new = Job("old", **over(), created=900.0), Job("new", **over(), created=1100.0)
    assert [text for text, _ in _run(tmp_path, [old, new])] == ["job new: copied 5 bytes"]


def test_what_began_while_there_was_no_agent_is_told(tmp_path: Path) -> None:
    (tmp_path / "told").write_text(f"{seconds_of(BEGUN['begun']['begin_time']) - 1}\n")
    assert [text for text, _ in _run(tmp_path, [Job("a", pid=7, **BEGUN)])] == [
        "job a: runs, pid 7"
    ]
    assert _run(tmp_path, [Job("a", pid=7, **BEGUN)]) == []


def test_first_agent_leaves_word_from_when_on_the_next_tells(tmp_path: Path) -> None:
    before = time.time()
    assert _run(tmp_path, []) == []
    assert before <= float((tmp_path / "told").read_text()) <= time.time()


def test_interruption_and_failure_are_told_apart(tmp_path: Path) -> None:
    (told, said), (why, _) = _run(
        tmp_path,
        [],
        [Job("a", pid=1, **BEGUN), Job("b", pid=2, **BEGUN)],
        [Job("a", can_resume=True), Job("b", **over(error="no space"), pid=None)],
    )[2:]
    assert told == "job a: interrupted; go on: dmcopy resume a"
    assert said["PRIORITY"] == "4"
    assert why == "job b: no space"


def test_job_that_is_over_has_what_it_ended_with() -> None:
    job = job_of(Job("a", **over(exit_status=0, digest="sha256:1", verified=True)).as_json())
    assert (job["exit_status"], job["digest"], job["verified"]) == (0, "sha256:1", True)
    assert job["bytes_total"] == 5
    assert not job["running"]
