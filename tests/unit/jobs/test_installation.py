"""The data files that come with the program, and what units are made of them."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.installation import Unit, program, shipped, units

ROOT = Path(__file__).parents[3]
_SHARE = {"rules.d": "share/dmcopy/udev", "systemd": "share/dmcopy/systemd",
          "tmpfiles.d": "share/dmcopy/tmpfiles.d"}  # fmt: skip


def test_each_file_for_udev_and_systemd_is_installed_by_pip() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    said = setup["options.data_files"]
    for folder in sorted((ROOT / "udev").iterdir()):
        there = {path.relative_to(ROOT).as_posix() for path in folder.iterdir()}
        assert set(said[_SHARE[folder.name]].split()) == there


def test_files_of_a_checkout_go_before_those_of_the_prefix(tmp_path: Path) -> None:
    checkout, share = tmp_path / "udev", tmp_path / "share"
    with pytest.raises(Refused, match=f"there is no {share}/udev"):
        shipped(checkout, share)
    (share / "udev").mkdir(parents=True)
    (share / "udev/57-dmcopy.rules").touch()
    assert shipped(checkout, share).units == share / "systemd"
    (checkout / "rules.d").mkdir(parents=True)
    (checkout / "rules.d/57-dmcopy.rules").touch()
    assert shipped(checkout, share).units == checkout / "systemd"


def test_each_unit_calls_the_program_by_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "a.service").write_text(
        "# dmcopy\nExecStart=dmcopy wrap --up %i\nExecStopPost=-dmcopy rescue\n"
        "ExecStart=/bin/dmcopy dmcopy\nDescription=dmcopy x\n"
    )
    (unit,) = units(tmp_path, Path("/opt/dmcopy/bin/dmcopy"))
    assert unit.text == (
        "# dmcopy\nExecStart=/opt/dmcopy/bin/dmcopy wrap --up %i\n"
        "ExecStopPost=-/opt/dmcopy/bin/dmcopy rescue\n"
        "ExecStart=/bin/dmcopy dmcopy\nDescription=dmcopy x\n"
    )


def test_units_that_are_shipped_call_no_other_program() -> None:
    called = Path("/opt/dmcopy/bin/dmcopy")
    for unit in units(ROOT / "udev/systemd", called):
        lines = [line for line in unit.text.splitlines() if line.startswith("Exec")]
        lines = [line for line in lines if line != "ExecReload=/bin/kill -HUP $MAINPID"]
        if unit.name.endswith(".service"):
            assert lines
        assert all(f"{called} " in line for line in lines), unit.name


@pytest.mark.forks
def test_units_are_as_confined_as_the_documentation_says() -> None:
    text = (ROOT / "docs/packaging.rst").read_text()
    said = dict(re.findall(r"^``(dmcopy-[\w@-]+\.service)`` +(\d+\.\d) ", text, re.MULTILINE))
    assert said.keys() == {path.name for path in (ROOT / "udev/systemd").glob("*.service")}
    for file in [ROOT / "udev/systemd" / name for name in said]:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        (found,) = re.findall(r"Overall exposure level .*: (\d+\.\d) ", done.stdout)
        assert float(found) <= float(said[file.name]), file.name


@pytest.mark.parametrize(
    ("text", "wanted", "now"),
    [
        ("[Service]\nType=oneshot\n", False, False),
        ("[Service]\nType=oneshot\n[Install]\nWantedBy=x\n", True, False),
        ("[Service]\nType=oneshot\nExecStop=x\n[Install]\nWantedBy=x\n", True, True),
        ("[Service]\nType=notify\n[Install]\nWantedBy=x\n", True, True),
    ],
)
def test_what_is_enabled_and_what_is_started(text: str, wanted: bool, now: bool) -> None:
    unit = Unit("x.service", text)
    assert (unit.is_wanted, unit.is_for_now) == (wanted, now)
    assert not Unit("x@.service", text).is_wanted, "of a template there are instances"


def test_program_must_be_there_and_have_a_name_that_fits_in_a_unit(tmp_path: Path) -> None:
    with pytest.raises(DmcopyError, match=f"there is no {tmp_path}/dmcopy"):
        program(tmp_path)
    (tmp_path / "dmcopy").touch()
    assert program(tmp_path) == tmp_path / "dmcopy"
    odd = tmp_path / "100% mine"
    odd.mkdir()
    (odd / "dmcopy").touch()
    with pytest.raises(DmcopyError, match="plainer name"):
        program(odd)
