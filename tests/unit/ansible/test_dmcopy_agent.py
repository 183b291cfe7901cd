"""The module that sets the agent: what it writes, and that a fault changes nothing."""

from __future__ import annotations

import grp
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final  # Any: JSON

import pytest

from tests.unit.ansible.collection import Ran, Run, result_of

NEW: Final = "no-such-group"
ALL: Final = {
    "group": "root", "metrics_listen": "127.0.0.1:9273", "metrics_textfile": "/a/dmcopy.prom",
}  # fmt: skip

Do = Callable[..., dict[str, Any]]


class Host:
    """Reads the settings as ``dmcopy agent --check``, and makes groups."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.read: list[dict[str, Any]] = []
        self.made: list[str] = []

    def __call__(self, argv: Sequence[str], environ: dict[str, str] | None = None) -> Ran:
        if environ is None:
            assert list(argv[:-1]) == ["/bin/groupadd", "--system", "--"]
            self.made.append(argv[-1])
            return 0, "", ""
        assert list(argv) == ["agent", "--check"]
        path = Path(environ["DMCOPY_CONFIG_DIR"], "agent.toml")
        self.read.append(tomllib.loads(path.read_text()))
        return (2, "", f"dmcopy: {path}: {self.fault}\n") if self.fault else (0, "", "")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMCOPY_CONFIG_DIR", str(tmp_path))
    return tmp_path / "agent.toml"


@pytest.fixture
def do(capsys: pytest.CaptureFixture[str]) -> Do:
    def run(host: Run | None, *, check: bool = False, **params: object) -> dict[str, Any]:
        read = lambda: capsys.readouterr().out  # noqa: E731
        return result_of("dmcopy_agent", host, read, check=check, **params)

    return run


def test_file_says_what_is_given_and_is_written_once(file: Path, do: Do) -> None:
    host = Host()
    predicted = do(host, check=True, **ALL)
    assert not file.exists()
    done = do(host, **ALL)
    assert (predicted["changed"], done["changed"], do(host, **ALL)["changed"]) == (
        True,
        True,
        False,
    )
    assert predicted["diff"] == done["diff"]
    expected = {name.replace("_", "-"): value for name, value in ALL.items()}
    assert tomllib.loads(file.read_text()) == expected
    assert host.read == [expected, expected]
    assert file.stat().st_mode & 0o777 == 0o644
    assert do(host, group="root")["changed"] is True
    assert tomllib.loads(file.read_text()) == {"group": "root"}, "what is left out is not set"
    assert do(host, state="absent")["changed"] is True
    assert (file.exists(), do(host, state="absent")["changed"]) == (False, False)
    assert host.made == []


def test_group_that_is_not_there_is_made_when_the_rest_is_right(file: Path, do: Do) -> None:
    host = Host()
    predicted = do(host, check=True, group=NEW)
    assert host.made == []
    done = do(host, group=NEW)
    assert host.made == [NEW]
    assert (predicted["group_made"], done["group_made"]) == (True, True)
    assert predicted["content"] == done["content"]
    assert tomllib.loads(file.read_text()) == {"group": NEW}
    # dmcopy would say that there is no such group
    assert host.read == [{}, {}]


@pytest.mark.parametrize("check", [True, False])
def test_fault_changes_nothing(file: Path, do: Do, *, check: bool) -> None:
    host = Host("metrics-listen: no")
    file.write_text("was = 'there'\n")
    done = do(host, check=check, group=NEW, metrics_listen="0.0.0.0:1")
    assert (done["failed"], done["exit_status"]) == (True, 2)
    assert done["msg"] == f"{file}: metrics-listen: no"
    assert (file.read_text(), host.made) == ("was = 'there'\n", [])


@pytest.mark.parametrize("name", ["", "-x", "a b", "X", "x" * 33])
def test_what_cannot_name_a_group_is_refused(file: Path, do: Do, name: str) -> None:
    host = Host()
    assert "cannot name a group" in do(host, check=True, group=name)["msg"]
    assert host.read == []


def test_host_without_dmcopy_is_told_in_check_mode_what_would_be_there(file: Path, do: Do) -> None:
    predicted = do(None, check=True, group=grp.getgrgid(0).gr_name)
    assert predicted["changed"] is True
    assert "has not read agent.toml" in str(predicted["warnings"])
    assert "required executable" in do(None, group="root")["msg"]
    assert not file.exists()
