"""The modules that tell and wrap: what they run, and what they make of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any  # JSON

import pytest

from tests.unit.ansible.collection import Ran, result_of


class Dmcopy:
    """Answers with lines of JSON; `ran` is what was run."""

    def __init__(self, **answers: Ran) -> None:
        self.answers = answers
        self.ran: list[str] = []

    def __call__(self, argv: Sequence[str]) -> Ran:
        self.ran.append(" ".join(argv))
        return self.answers.get(argv[0].lstrip("-"), (0, "", ""))


def lines(*objects: dict[str, object]) -> str:
    return "".join(json.dumps(one) + "\n" for one in objects)


def test_jobs_are_told_without_their_logs_unless_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs: list[dict[str, Any]] = [
        {"event": "status", "job": name, "log": [{"at": 1}]} for name in ("a", "b")
    ]
    dmcopy = Dmcopy(list=(0, lines(*jobs), ""), version=(0, "dmcopy 1.2\n", ""))
    told = result_of("dmcopy_info", dmcopy, lambda: capsys.readouterr().out, job="b")
    assert told["jobs"] == [{"event": "status", "job": "b"}]
    assert (told["version"], told["wraps"], told["changed"]) == ("1.2", [], False)
    told = result_of("dmcopy_info", dmcopy, lambda: capsys.readouterr().out, log=True)
    assert told["jobs"] == jobs


def test_what_is_missing_on_the_host_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    check = {"event": "check", "name": "udev rule", "ok": False}
    dmcopy = Dmcopy(doctor=(1, lines(check), ""))
    told = result_of(
        "dmcopy_info", dmcopy, lambda: capsys.readouterr().out, gather_subset=["checks"]
    )
    assert told["checks"] == [check]
    assert dmcopy.ran == ["--version", "doctor --json"]
    dmcopy = Dmcopy(list=(1, "", "dmcopy: must be run as root: it works on block devices\n"))
    told = result_of("dmcopy_info", dmcopy, lambda: capsys.readouterr().out)
    assert told["msg"].startswith("must be run as root")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("changes", [True, False])
def test_wrap_is_made_where_the_plan_says_so(
    capsys: pytest.CaptureFixture[str], *, check: bool, changes: bool
) -> None:
    planned = {
        "event": "wrap_planned", "name": "data", "changes": changes, "under": "/dev/sdb1",
        "identity": {"partuuid": "x"}, "size_bytes": 4096,
    }  # fmt: skip
    answers = [(0, lines(planned), ""), (0, "mount /dev/mapper/data in place of it\n", "")]
    ran: list[str] = []

    def dmcopy(argv: Sequence[str]) -> Ran:
        ran.append(" ".join(argv))
        return answers.pop(0)

    told = result_of(
        "dmcopy_wrap", dmcopy, lambda: capsys.readouterr().out, check=check, name="data",
        device="/dev/sdb1", patience=3,
    )  # fmt: skip
    command = "wrap /dev/sdb1 data --patience 3"
    expected = [f"dmcopy {command}"] if changes else []
    assert (told["changed"], told["commands"]) == (changes, expected)
    plan = "wrap /dev/sdb1 data --dry-run --json"
    assert ran == [plan, *([command] if changes and not check else [])]
    assert ("said" in told) is (changes and not check)
    states = (told["diff"]["before"]["state"], told["diff"]["after"]["state"])
    assert states == ("absent" if changes else "present", "present")
