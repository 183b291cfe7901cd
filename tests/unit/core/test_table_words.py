"""Tables and targets: word for word, in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.table import Row, Table
from dmcopy.core.target import Opaque, Target
from dmcopy.core.targets.delay import Delay, DelayStatus, Path
from dmcopy.core.targets.error import Error
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.core.targets.striped import Striped
from dmcopy.core.targets.zero import Zero
from dmcopy.units import Sectors

# From the status strings and the constructions of KERNEL.md, as Linux 6.1 prints them.
KNOWN = [
    ("0 2048 linear 1:0 2048", Linear(Sectors(2048), "1:0", Sectors(2048))),
    ("0 64 snapshot-origin 254:0", SnapshotOrigin(Sectors(64), "254:0")),
    ("0 64 snapshot 254:0 254:1 P 8", Snapshot(Sectors(64), "254:0", "254:1", Sectors(8))),
    (
        "0 64 snapshot 254:0 254:1 PO 8",
        Snapshot(Sectors(64), "254:0", "254:1", Sectors(8), "PO"),
    ),
    ("0 64 zero ", Zero(Sectors(64))),
    ("0 64 error ", Error(Sectors(64))),
    (
        "0 64 delay 254:1 0 0 254:1 0 700 254:1 0 0",
        Delay(
            Sectors(64),
            tuple(Path("254:1", Sectors(0), delay) for delay in (0, 700, 0)),
        ),
    ),
    (
        "0 64 striped 2 8 7:0 0 7:1 32",
        Striped(Sectors(64), Sectors(8), (("7:0", Sectors(0)), ("7:1", Sectors(32)))),
    ),
]
FOREIGN = [
    "0 64 mirror core 1 2048 2 254:0 0 254:1 0 1 handle_errors",
    "0 64 raid raid1 5 0 region_size 2048 rebuild 1 2 254:0 254:1 254:2 254:3",
    "0 64 snapshot 254:0 254:1 P 8 2 discard_zeroes_cow discard_passdown_origin",
    "0 64 snapshot 254:0 254:1 X 8",
    "0 64 linear 1:0",
    "0 64 linear 1:0 007",
    "0 64 linear 1:0 -7",
    "0 64 delay 254:1 0",
    "0 64 striped 3 8 7:0 0 7:1 32",
    "0 64 striped",
    "0 64 error some words",
]


@pytest.mark.parametrize(("line", "target"), KNOWN)
def test_what_the_kernel_prints_is_understood(line: str, target: Target) -> None:
    table = Table.parse(line + "\n")
    assert table == Table.of(target)
    assert str(table) == line.strip()
    assert hash(table) == hash(Table.of(target))


@pytest.mark.parametrize("line", FOREIGN)
def test_what_is_not_understood_is_kept_word_for_word(line: str) -> None:
    table = Table.parse(line)
    assert isinstance(table.rows[0].target, Opaque)
    assert str(table) == line
    assert table.kinds() == {line.split()[2]}


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=6)
numbers = st.integers(0, 1 << 60)
kinds = st.sampled_from(
    ["linear", "striped", "snapshot", "snapshot-origin", "zero", "error", "delay", "x"]
)


@given(st.lists(st.tuples(st.integers(1, 1 << 50), kinds, st.lists(words | numbers.map(str)))))
def test_any_table_is_given_back_word_for_word(rows: list[tuple[int, str, list[str]]]) -> None:
    start, lines = 0, []
    for length, kind, args in rows:
        lines.append(" ".join([str(start), str(length), kind, *args]))
        start += length
    table = Table.parse("\n".join(lines))
    assert str(table) == "\n".join(lines)
    assert table.length == start
    assert Table.parse(str(table)) == table


@pytest.mark.parametrize(
    "text",
    [
        "8 64 zero",
        "0 64 zero\n65 1 zero",
        "0 64 zero\n32 64 zero",
        "0 0 zero",
        "0 064 zero",
        "0 -64 zero",
        "0 64",
        "No devices found",
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Table.parse(text)


def test_an_empty_table_is_false_and_maps_nothing() -> None:
    table = Table.parse("")
    assert not table
    assert (len(table), table.length, str(table)) == (0, 0, "")


def test_targets_are_laid_end_to_end() -> None:
    first, second = Linear(Sectors(8), "1:0", Sectors(0)), SnapshotOrigin(Sectors(16), "254:3")
    table = Table.of(first, second)
    assert table.rows == (Row(Sectors(0), first), Row(Sectors(8), second))
    assert table.devices() == {"1:0", "254:3"}


def test_devices_of_a_foreign_target_are_its_words_that_are_device_numbers() -> None:
    assert Table.parse(FOREIGN[0]).devices() == {"254:0", "254:1"}


def test_a_snapshot_that_counts_is_valid() -> None:
    status = SnapshotStatus.parse("64/2048 32")
    assert status == (64, 2048, 32, "ok")
    assert status.is_valid


@pytest.mark.parametrize(
    "text", ["Invalid", "Overflow", "Merge failed", "Unknown", "", "64/2048", "ok", "-1/2 3"]
)
def test_a_snapshot_that_says_anything_else_is_not_valid(text: str) -> None:
    # "ok" is our word, not the kernel's: it must not pass for a usage
    assert not SnapshotStatus.parse(text).is_valid


def test_a_gate_says_what_it_holds() -> None:
    assert DelayStatus.parse("0 2 0") == (0, 2, 0)
    with pytest.raises(ValueError, match="2 arguments"):
        DelayStatus.parse("0 2")
