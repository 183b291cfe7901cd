"""The module that writes policies: its TOML, and that a fault never gets into the directory."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final  # Any: JSON

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ansible.collection import Ran, module, result_of

toml: Final = module("module_utils.toml")

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
_word = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True).map(lambda word: word[:9])
_plain = st.one_of(_text, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(-1e6, 1e6))
_value = st.one_of(_plain, st.lists(_plain, max_size=3), st.dictionaries(_word, _plain, max_size=3))
_tables = st.lists(st.dictionaries(_word, _value, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(_word, st.one_of(_value, _tables), max_size=4))
def test_toml_reads_as_what_was_written(policy: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dumps(policy)) == policy


OFFSITE: Final = {
    "name": "offsite", "source": "/dev/mapper/data", "destination": {"wwn": "0x5000"}, "plug": True,
    "options": {"verify": True, "rate": "100m"},
}  # fmt: skip

Do = Callable[..., dict[str, Any]]


class Dmcopy:
    """Reads the policies as ``dmcopy policy check``; *fault* is what it says of offsite."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.real = folder
        self.fault = fault
        self.seen: dict[str, dict[str, Any]] = {}

    def __call__(self, argv: Sequence[str], environ: dict[str, str]) -> Ran:
        assert list(argv) == ["policy", "check"]
        folder = Path(environ["DMCOPY_CONFIG_DIR"])
        assert folder != self.real
        files = sorted((folder / "policies.d").iterdir())
        self.seen = {file.name: tomllib.loads(file.read_text()) for file in files}
        said = f"{folder}/policies.d/other.toml: a fault of its own\n"
        if self.fault:
            said += f"{folder}/policies.d/offsite.toml: {self.fault}\n"
        return 2, "", said


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMCOPY_CONFIG_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def do(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Do:
    def run(fault: str = "", *, check: bool = False, **more: object) -> dict[str, Any]:
        dmcopy = Dmcopy(config, fault)
        told = result_of(
            "dmcopy_policy", dmcopy, lambda: capsys.readouterr().out, check=check,
            **{name: value for name, value in {**OFFSITE, **more}.items() if value is not None},
        )  # fmt: skip
        return {**told, "seen": dmcopy.seen}

    return run


def test_policy_is_written_once_and_read_beside_the_others(config: Path, do: Do) -> None:
    file = config / "policies.d/offsite.toml"
    predicted = do(check=True)
    assert not file.exists()
    file.parent.mkdir(exist_ok=True)
    (file.parent / "other.toml").write_text("when = 1\n")
    done = do()
    assert (predicted["changed"], done["changed"], do()["changed"]) == (True, True, False)
    assert predicted["diff"] == done["diff"]
    assert file.read_text() == done["content"] == predicted["content"]
    assert tomllib.loads(file.read_text()) == {
        "source": "/dev/mapper/data", "destination": {"wwn": "0x5000"}, "when": {"on": ["plug"]},
        "verify": True, "rate": "100m",
    }  # fmt: skip
    assert sorted(done["seen"]) == ["offsite.toml", "other.toml"]
    assert file.stat().st_mode & 0o777 == 0o644
    assert do(state="absent")["changed"] is True
    assert (file.exists(), do(state="absent")["changed"]) == (False, False)


@pytest.mark.parametrize("check", [True, False])
def test_policy_with_a_fault_is_not_written(config: Path, do: Do, *, check: bool) -> None:
    done = do("option 'veryfy' is not known", check=check)
    assert done["failed"] is True
    assert done["faults"] == ["option 'veryfy' is not known"]
    assert not os.path.exists(config / "policies.d/offsite.toml")


def test_host_without_dmcopy_is_told_in_check_mode_what_would_be_there(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(*, check: bool) -> dict[str, Any]:
        read = lambda: capsys.readouterr().out  # noqa: E731
        return result_of("dmcopy_policy", None, read, check=check, **OFFSITE)

    predicted = do(check=True)
    assert predicted["changed"] is True
    assert "wwn" in predicted["diff"]["after"]
    assert "has not read policies.d/offsite.toml" in str(predicted["warnings"])
    assert "required executable" in do(check=False)["msg"]
    assert not (config / "policies.d").exists()


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".x"])
def test_name_leads_nowhere_else(do: Do, name: str) -> None:
    assert "cannot name a policy" in do(name=name)["msg"]


def test_group_has_a_table_for_each_volume(do: Do) -> None:
    pairs = [{"source": f"/dev/vg/{one}", "destination": {"serial": one}} for one in ("a", "b")]
    done = do(check=True, source=None, destination=None, pairs=pairs, calendar="daily")
    read = tomllib.loads(done["content"])
    assert read["pair"] == pairs
    assert read["when"] == {"on": ["plug"], "calendar": "daily"}
