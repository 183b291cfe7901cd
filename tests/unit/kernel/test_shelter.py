"""The marks that our udev rule obeys."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.kernel import udev
from dmcopy.kernel.shelter import RULES, Shelter, installed_rule

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shelter(tmp_path: Path) -> Shelter:
    return Shelter(tmp_path, folders=[str(ROOT / "udev/rules.d")])


def test_hidden_is_a_file_that_names_the_job(shelter: Shelter, tmp_path: Path) -> None:
    shelter.hide("8:16", "one")
    shelter.hide("8:32", "two")
    assert (tmp_path / "hidden/8:16").read_text() == "one"
    assert shelter.hidden_by("one") == ["8:16"]
    shelter.unhide("8:16")
    shelter.unhide("8:16")
    assert shelter.hidden_by("one") == []


def test_twin_is_kept_by_each_of_its_uuids(shelter: Shelter, tmp_path: Path) -> None:
    shelter.keep_twin("8:16", ["old"])
    shelter.keep_twin("8:16", ["a", "b"])
    assert sorted(path.name for path in (tmp_path / "twins/8:16").iterdir()) == ["a", "b"]
    assert shelter.is_twin("8:16")
    shelter.forget_twin("8:16")
    shelter.forget_twin("8:16")
    assert not shelter.is_twin("8:16")


def test_marks_are_what_the_shipped_rule_looks_for() -> None:
    text = (ROOT / "udev/rules.d" / RULES[0]).read_text()
    for mark in ("hidden/$major:$minor", "hidden/$env{DM_UUID}", "twins/$major:$minor/"):
        assert f'"/run/dmcopy/{mark}' in text


@pytest.mark.parametrize("rule", RULES)
def test_shipped_rules_obey(rule: str) -> None:
    found = installed_rule(rule, [str(ROOT / "nothing"), str(ROOT / "udev/rules.d")])
    assert found is not None
    assert found.obeys


def test_older_rule_hides_a_newer_one(tmp_path: Path) -> None:
    (tmp_path / RULES[0]).write_text('ENV{DM_UUID}!="DMCOPY-?*"\n')
    found = installed_rule(RULES[0], [str(tmp_path), str(ROOT / "udev/rules.d")])
    assert found is not None
    assert not found.obeys


def test_works_only_where_udev_looks(
    shelter: Shelter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(udev, "is_running", lambda: True)
    assert not shelter.works, "the marks are elsewhere"
    assert Shelter(Path("/run/dmcopy"), folders=[str(ROOT / "udev/rules.d")]).works
    assert not Shelter(Path("/run/dmcopy"), folders=[str(tmp_path)]).works
