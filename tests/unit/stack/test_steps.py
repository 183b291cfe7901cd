"""The lines that a dry run shows."""

from __future__ import annotations

from dmcopy.core.table import Table
from dmcopy.stack.steps import CreateDevice, with_table
from tests.unit.fake_dm import FakeDm

ONE = Table.parse("0 8 linear 8:0 0")
TWO = Table.parse("0 8 linear 8:0 0\n8 8 linear 8:16 0")


def test_table_of_one_line_stands_in_the_command() -> None:
    assert with_table(["dmsetup", "load", "a b"], ONE) == (
        "dmsetup load 'a b' --table '0 8 linear 8:0 0'"
    )


def test_longer_table_goes_in_by_stdin() -> None:
    assert with_table(["dmsetup", "load", "x"], TWO) == f"dmsetup load x <<'END'\n{TWO}\nEND"


def test_device_is_created_and_removed_and_only_if_it_is_ours() -> None:
    dm = FakeDm()
    step = CreateDevice(dm, "dmcopy-j-snap", "DMCOPY-j-snap", lambda: ONE)
    assert step.devno() == "/dev/mapper/dmcopy-j-snap"
    step.undo()  # never done
    step.do()
    assert step.devno() == dm.all["dmcopy-j-snap"].devno
    step.undo()
    step.undo()
    assert dm.all == {}
    dm.add("dmcopy-j-snap", str(ONE), uuid="somebody else's")
    step.undo()
    assert list(dm.all) == ["dmcopy-j-snap"]
