"""The module that copies: its options are those of the command, and what it decides to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final  # Any: JSON

import pytest
import yaml

from dmcopy.cli.main import parser
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.overview import view_of
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs
from tests.unit.ansible.collection import Ran, module, result_of

copying: Final = module("module_utils.copying")
dmcopy_copy: Final = module("modules.dmcopy_copy")

# of `dmcopy copy`: what the module decides itself (state, check mode), and pairs by another name
_OWN: Final = {
    "help",
    "json",
    "dry_run",
    "detach",
    "hold_start",
    "no_agent",
    "pair",
    "source",
    "destination",
}
PAIR: Final = {"source": "/dev/a", "destination": "image:/b"}
FULL: Final = {
    "name": "job", "cow": "1g", "cow_max": "2g", "on_full": "hold", "order": "hot",
    "gate": "segment", "via": "md-split", "md_resync": "wait", "chunk": "64k", "segment": "1m",
    "batch": "8m", "rate": "auto", "digest": "none", "hold_limit": 1.5, "freeze": "none",
    "hook_timeout": 9, "hook": ["x", "y z"], **dict.fromkeys(copying.FLAGS, True),
}  # fmt: skip


def _command() -> dict[str, argparse.Action]:
    commands = next(one for one in parser()._actions if isinstance(one.choices, dict))
    assert isinstance(commands.choices, dict)
    found = {}
    for action in commands.choices["copy"]._actions:
        name = max(action.option_strings, key=len, default=action.dest).lstrip("-")
        found[name.replace("-", "_")] = action
    return found


def test_each_option_of_the_command_is_one_of_the_module_and_has_its_choices() -> None:
    command, known = _command(), dmcopy_copy.arguments()
    assert command.keys() - known.keys() == _OWN - {"source", "destination"}
    for name, action in command.items():
        if name in known and action.choices is not None:
            assert known[name]["choices"] == list(action.choices), name


def test_words_are_what_the_command_understands() -> None:
    two = [PAIR, {"source": "/dev/c", "destination": "/d"}]
    for more in (PAIR, {"pairs": [PAIR]}, {"pairs": two}):
        words = copying.words_of({**FULL, **more})
        read = parser(["copy"]).parse_args(["copy", *words])
        assert (read.name, read.hook, read.hold_limit) == ("job", ["x", "y z"], 1.5)
        assert (read.retire, read.hook_directory, read.new_identity) == (False, False, True)
        if more == {"pairs": two}:
            assert read.pair == [["/dev/a", "image:/b"], ["/dev/c", "/d"]]
        else:
            assert (read.source, read.destination) == ("/dev/a", "image:/b")


def test_everything_that_is_returned_is_documented() -> None:
    documented = yaml.safe_load(dmcopy_copy.RETURN).keys()
    status: dict[str, Any] = {**dict.fromkeys(_STATUS), "begun": {}, "progress": {}, "ended": {}}
    returned = {*copying.planned_facts(_planned()), *copying.measured_facts(status)}
    assert returned - documented == set()
    assert set(copying.MEASURED) == set(copying.measured_facts(status))


# where a job is


class Record:
    """A journal with one job, and what ``dmcopy show --json`` says of it."""

    def __init__(self, folder: Path) -> None:
        self.host = Host(
            dm=None,
            sysfs=Sysfs(),
            run=Commander(),
            places=Places(folder / "state", folder / "run"),
        )

    def status(self, *states: State) -> dict[str, Any]:
        spec = CopySpec(name="job", source="/dev/a", destination="image:/b")
        with Journal(self.host.places.journal) as journal:
            journal.define("job", spec.as_json())
            for state in states:
                journal.move("job", state)
        return self.now()

    def now(self) -> dict[str, Any]:
        return view_of("job", self.host).as_json()


_COPYING: Final = (State.BEGUN, State.COPYING)
_STATUS: Final = (
    "source", "destination", "provider", "source_identity", "destination_identity", "segment_bytes",
    "state", "pid", "dead", "kept", "can_resume", "no_way_on", "not_now", "begun", "progress",
    "ended",
)  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path)


@pytest.mark.parametrize(
    ("states", "standing"),
    [
        ((*_COPYING, State.COPIED, State.ENDED), "finished"),
        ((*_COPYING, State.FAILED), "over"),
        ((State.CANCELLED,), "over"),
        (_COPYING, "stuck"),  # nobody works on it, and nothing to go on with was recorded
    ],
)
def test_standing_is_read_from_what_show_says(
    record: Record, states: tuple[State, ...], standing: str
) -> None:
    status = record.status(*states)
    assert status.keys() >= set(_STATUS)
    assert copying.standing_of(status) == standing


def test_standing_of_a_job_at_work(record: Record) -> None:
    record.status(*_COPYING)
    with JobLock(record.host.places.locks, "job"):
        assert copying.standing_of(record.now()) == "started"
    with Journal(record.host.places.journal) as journal:
        journal.move("job", State.PAUSED)
    with JobLock(record.host.places.locks, "job"):
        status = record.now()
        assert copying.standing_of(status) == "paused"
        working = {**status, "state": "copying"}
        assert copying.standing_of(working, [status, working]) == "started", "one of a group works"
        assert copying.standing_of(working, [status, status]) == "paused"


@pytest.mark.parametrize(
    ("standing", "actions"),
    [  # started, finished, paused, absent
        ("absent", ["copy", "copy", "held", None]),
        ("over", ["copy", "copy", "held", None]),
        ("started", [None, None, "pause", "cancel"]),
        ("paused", ["resume", "resume", None, "cancel"]),
        ("interrupted", ["resume", "resume", None, "cancel"]),
        ("stuck", ["refuse", "refuse", "refuse", "cancel"]),
        ("kept", [None, None, None, "cancel"]),
        ("finished", [None, None, None, None]),
    ],
)
def test_what_is_done_for_each_state(standing: str, actions: list[str | None]) -> None:
    states = ("started", "finished", "paused", "absent")
    assert [copying.action_of(state, standing) for state in states] == actions


def test_what_info_documents_of_a_job_is_in_what_show_says(record: Record) -> None:
    documented = yaml.safe_load(module("modules.dmcopy_info").RETURN)["jobs"]["contains"]
    assert documented.keys() <= record.status(State.CANCELLED).keys()


# the module


def _planned() -> dict[str, Any]:
    return {
        "event": "planned", "job": "job", "source": "/dev/a", "destination": "image:/b",
        "provider": "splice", "why": "", "bytes_total": 9 << 20, "chunk_bytes": 65536,
        "segment_bytes": 4 << 20, "cow": "a file", "cow_bytes": 1 << 20, "steps": ["dmsetup ..."],
        "hooks": [], "freezes": [], "volumes": [], "source_identity": {"devno": "254:0"},
        "destination_identity": {"path": "/b"},
    }  # fmt: skip


def _status(**known: Any) -> dict[str, Any]:
    ended = {
        "bytes_total": 9 << 20, "begin_time": "2026-01-31T00:00:00.000000001Z",
        "hold_seconds": [0.002],
        "digest": "abc", "verified": True, "seconds": 1.5, "bytes_source": 5, "bytes_cow": 1,
        "bytes_zero": 0, "exceptions": 1, "cow_used_bytes": 4096,
    }  # fmt: skip
    status = dict.fromkeys(_STATUS)
    return {
        **status, "source": "/dev/a", "destination": "image:/b", "segment_bytes": 4 << 20,
        "state": "ended", "dead": False, "kept": False, "ended": ended, **known,
    }  # fmt: skip


class Dmcopy:
    """Answers as the command does; `ran` is what was run."""

    def __init__(self, *records: dict[str, Any] | None, same: bool = True) -> None:
        self.records = list(records)
        self.same = same
        self.ran: list[str] = []
        self.fails: dict[str, Ran] = {}

    def __call__(self, argv: Sequence[str]) -> Ran:
        verb = "on-record" if "--on-record" in argv else argv[0]
        self.ran.append(verb)
        if verb in self.fails:
            return self.fails[verb]
        if verb == "on-record":
            status = self.records.pop(0)
            differs = [] if self.same else [{"word": "source", "recorded": "/x", "asked": "/dev/a"}]
            said = {"event": "on_record", "job": "job", "same": self.same, "differs": differs}
            return 0, json.dumps({**said, "status": status, "volumes": []}) + "\n", ""
        return (0, json.dumps(_planned()) + "\n", "") if verb in ("copy", "plan") else (0, "", "")


Do = Callable[..., dict[str, Any]]


@pytest.fixture
def do(capsys: pytest.CaptureFixture[str]) -> Do:
    def run(dmcopy: Dmcopy, *, check: bool = False, **params: object) -> dict[str, Any]:
        return result_of(
            "dmcopy_copy", dmcopy, lambda: capsys.readouterr().out, check=check,
            **{"name": "job", **params},
        )  # fmt: skip

    return run


def test_new_job_is_copied_and_waited_for_as_check_mode_said(do: Do) -> None:
    dmcopy, asked = Dmcopy(None, _status()), Dmcopy(None)
    done = do(dmcopy, **PAIR)
    predicted = do(asked, check=True, **PAIR)
    assert dmcopy.ran == ["on-record", "copy", "wait", "on-record"]
    assert asked.ran == ["on-record", "plan"]
    assert done.keys() - predicted.keys() == set(copying.MEASURED)
    assert {name: done[name] for name in predicted} == predicted
    assert (done["changed"], done["job_state"], done["segments"]) == (True, "finished", 3)
    assert done["commands"] == ["dmcopy copy --detach --json --name job /dev/a image:/b"]
    assert (done["hold_ms"], done["digest"], done["verified"]) == ([2.0], "abc", True)
    assert done["diff"]["before"] == {"job": "job", "state": "absent"}


def test_finished_job_is_left_alone(do: Do) -> None:
    for check in (False, True):
        dmcopy = Dmcopy(_status())
        done = do(dmcopy, check=check, **PAIR)
        assert dmcopy.ran == ["on-record"]
        assert (done["changed"], done["commands"], done["digest"]) == (False, [], "abc")
        assert done["diff"]["before"] == done["diff"]["after"]


def test_other_source_under_the_same_name_is_a_failure(do: Do) -> None:
    dmcopy = Dmcopy(_status(), same=False)
    done = do(dmcopy, **PAIR)
    assert done["failed"] is True
    assert "source is /x on record, and /dev/a was asked for" in done["msg"]
    assert dmcopy.ran == ["on-record"]


def test_name_of_a_failed_job_can_be_used_again(do: Do) -> None:
    dmcopy = Dmcopy(_status(state="failed"), _status(), same=False)
    assert do(dmcopy, **PAIR)["changed"] is True
    assert "copy" in dmcopy.ran


def test_interrupted_job_goes_on(do: Do) -> None:
    broken = _status(
        state="paused", dead=True, can_resume=True, ended=None, progress=None, begun=None
    )
    dmcopy = Dmcopy(broken, _status())
    done = do(dmcopy, verify=True, **PAIR)
    assert dmcopy.ran == ["on-record", "resume", "wait", "on-record"]
    assert done["commands"] == ["dmcopy resume --detach --verify job"]
    refused = do(Dmcopy({**broken, "not_now": "the disk is away"}), check=True, **PAIR)
    assert "cannot go on now: the disk is away" in refused["msg"]


def test_job_that_can_never_go_on_is_named_with_the_way_out(do: Do) -> None:
    stuck = _status(state="copying", dead=True, can_resume=False, no_way_on="it was written")
    done = do(Dmcopy(stuck), **PAIR)
    assert done["msg"] == "job job cannot go on: it was written; give it up: state=absent"
    dmcopy = Dmcopy(stuck, _status(state="cancelled"))
    assert do(dmcopy, state="absent")["commands"] == ["dmcopy cancel job"]


def test_job_at_work_is_waited_for_only_where_that_is_asked(do: Do) -> None:
    working = _status(state="copying", pid=7, ended=None, begun=None, progress=None)
    dmcopy = Dmcopy(working, _status())
    assert do(dmcopy, wait_timeout=5, **PAIR)["changed"] is True, "it had not finished, and has now"
    assert dmcopy.ran == ["on-record", "wait", "on-record"]
    for more in ({"wait": False}, {"state": "started"}):
        dmcopy = Dmcopy(working)
        assert do(dmcopy, **more, **PAIR)["changed"] is False
        assert dmcopy.ran == ["on-record"]


def test_what_the_command_says_is_the_failure(do: Do) -> None:
    for verb, check in (("copy", False), ("plan", True), ("wait", False)):
        dmcopy = Dmcopy(None, _status())
        dmcopy.fails[verb] = (3, "", "noise\ndmcopy: /b carries an ext4 signature; do this\n")
        done = do(dmcopy, check=check, **PAIR)
        assert (done["failed"], done["exit_status"]) == (True, 3)
        assert done["msg"] == "/b carries an ext4 signature; do this"


def test_nothing_is_guessed_for_a_job_that_there_is_not(do: Do) -> None:
    assert "say source and destination" in do(Dmcopy(None))["msg"]
    assert do(Dmcopy(None), state="absent")["changed"] is False
