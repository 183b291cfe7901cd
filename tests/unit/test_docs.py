"""What the documentation says of the code is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dmcopy.cli.main import COMMANDS
from dmcopy.core import events

ROOT = Path(__file__).parents[2]
WRONG = (ROOT / "docs/what-can-go-wrong.rst").read_text()


def test_each_fault_is_backed_by_tests_that_exist() -> None:
    found = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = re.findall(r"``(test_\w+)``", WRONG)
    assert set(named) - found == set()
    assert len(named) >= 40


def test_each_fault_names_a_test() -> None:
    faults = re.findall(r"^(\S[^\n]*)\n((?:    [^\n]*\n)+)", WRONG, re.MULTILINE)
    assert len(faults) >= 25
    assert [title for title, text in faults if "``test_" not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_in_the_readme(command: str) -> None:
    assert f"``dmcopy {command}" in (ROOT / "README.rst").read_text()


def test_each_event_and_its_fields_are_documented() -> None:
    text = (ROOT / "docs/json.rst").read_text()
    words = set(re.findall(r"\w+", text))
    for event in events.KINDS.values():
        assert f"``{event.event}``" in text
        for name in event.__dataclass_fields__:
            assert name in words, f"{event.event}: {name}"
