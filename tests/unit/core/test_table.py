"""Tables and targets: read as the kernel prints them, given back word for word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.table import Row, Table
from dmcopy.core.target import Opaque, Target
from dmcopy.core.targets import TARGETS
from dmcopy.core.targets.delay import Delay, DelayStatus, Path
from dmcopy.core.targets.error import Error
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.core.targets.striped import Striped
from dmcopy.core.targets.zero import Zero
from dmcopy.units import Sectors

# From the status strings and the constructions of KERNEL.md, as Linux 6.1 prints them.
PRINTED = [
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
    "0 64 thin 254:4 0",
    "0 64 crypt aes-xts-plain64 :64:logon:cryptsetup:abc 0 254:0 32768",
]


LENGTH = st.integers(1, 1 << 40).map(Sectors)
OFFSET = st.integers(0, 1 << 40).map(Sectors)
DEVNO = st.builds(lambda a, b: f"{a}:{b}", st.integers(0, 4095), st.integers(0, 1 << 20))
CHUNK = st.integers(3, 11).map(lambda power: Sectors(1 << power))
PATH = st.builds(Path, DEVNO, OFFSET, st.integers(0, 10_000))
KNOWN: st.SearchStrategy[Target] = st.one_of(
    st.builds(Linear, LENGTH, DEVNO, OFFSET),
    st.builds(SnapshotOrigin, LENGTH, DEVNO),
    st.builds(Snapshot, LENGTH, DEVNO, DEVNO, CHUNK, st.sampled_from(["P", "PO", "N"])),
    st.builds(Zero, LENGTH),
    st.builds(Error, LENGTH),
    st.builds(
        Delay,
        LENGTH,
        st.sampled_from([1, 2, 3]).flatmap(
            lambda n: st.lists(PATH, min_size=n, max_size=n).map(tuple)
        ),
    ),
    st.builds(
        Striped,
        LENGTH,
        CHUNK,
        st.lists(st.tuples(DEVNO, OFFSET), min_size=1, max_size=4).map(tuple),
    ),
)
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9)
UNKNOWN = st.builds(
    Opaque,
    LENGTH,
    WORD.filter(lambda w: w not in {t.KIND for t in TARGETS}),
    st.lists(WORD).map(tuple),
)


@given(st.lists(KNOWN | UNKNOWN, max_size=6))
def test_table_survives_being_written_and_read(targets: list[Target]) -> None:
    table = Table.of(*targets)
    assert Table.parse(str(table)) == table
    assert table.length == sum(target.length for target in targets)


@pytest.mark.parametrize(("line", "target"), PRINTED)
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
        "x 64 zero",
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Table.parse(text)


def test_an_empty_table_is_false_and_maps_nothing() -> None:
    table = Table.parse("")
    assert not table
    assert (len(table), table.length, str(table)) == (0, 0, "")


def test_trailing_blanks_of_the_kernel_are_no_difference() -> None:
    assert Table.parse("0 64 zero \n") == Table.of(Zero(Sectors(64)))


def test_table_names_its_devices_and_kinds() -> None:
    table = Table.parse("0 8 linear 1:0 0\n8 8 mirror core 1 1024 2 254:0 0 254:1 0\n16 8 zero")
    assert table.devices() == {"1:0", "254:0", "254:1"}
    assert table.kinds() == {"linear", "mirror", "zero"}
    assert len(table) == 3


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
    "text",
    ["Invalid", "Overflow", "Merge failed", "Unknown", "", "64/2048", "ok", "-1/2 3", "what"],
)
def test_a_snapshot_that_says_anything_else_is_not_valid(text: str) -> None:
    # "ok" is our word, not the kernel's: it must not pass for a usage
    assert not SnapshotStatus.parse(text).is_valid


def test_a_gate_says_what_it_holds() -> None:
    assert DelayStatus.parse("0 2 0") == (0, 2, 0)
    with pytest.raises(ValueError, match="2 arguments"):
        DelayStatus.parse("0 2")
