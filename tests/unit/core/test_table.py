"""Tables: read as the kernel prints them, given back word for word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.table import Table
from dmcopy.core.target import Opaque, Target
from dmcopy.core.targets import TARGETS
from dmcopy.core.targets.delay import Delay, DelayStatus, Path
from dmcopy.core.targets.error import Error
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.core.targets.striped import Striped
from dmcopy.core.targets.zero import Zero
from dmcopy.units import Sectors

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


@pytest.mark.parametrize(
    "text",
    [
        "0 131072 linear 1:0 0",
        "0 100 linear 254:0 0\n100 50 zero\n150 8 error",
        "0 2048 snapshot 254:0 254:1 P 8",
        "0 2048 snapshot-origin 254:0",
        "0 64 delay 254:0 0 0 254:0 0 700 254:0 0 0",
        "0 64 striped 2 128 254:0 0 254:1 384",
        # not known, or known but with words of their own: kept as they are
        "0 64 mirror core 1 1024 2 254:0 0 254:1 0",
        "0 64 raid raid1 5 0 region_size 2048 rebuild 1 2 254:2 254:0 254:3 254:1",
        "0 64 thin 254:4 0",
        "0 64 crypt aes-xts-plain64 :64:logon:cryptsetup:abc 0 254:0 32768",
        "0 64 linear 254:0 007",
        "0 64 error something ignored",
        "0 64 snapshot 254:0 254:1 X 8",
        "0 64 delay 254:0 0",
    ],
)
def test_table_of_the_kernel_is_kept_word_for_word(text: str) -> None:
    assert str(Table.parse(text)) == text


def test_trailing_blanks_of_the_kernel_are_no_difference() -> None:
    assert Table.parse("0 64 zero \n") == Table.of(Zero(Sectors(64)))


@pytest.mark.parametrize(
    "text",
    ["0 64", "x 64 zero", "0 64 zero\n65 1 zero", "0 64 zero\n63 1 zero", "5 64 zero", "0 0 zero"],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"table|number|end to end|sectors"):
        Table.parse(text)


def test_table_names_its_devices_and_kinds() -> None:
    table = Table.parse("0 8 linear 1:0 0\n8 8 mirror core 1 1024 2 254:0 0 254:1 0\n16 8 zero")
    assert table.devices() == {"1:0", "254:0", "254:1"}
    assert table.kinds() == {"linear", "mirror", "zero"}
    assert len(table) == 3


def test_empty_table_is_empty() -> None:
    assert not Table.parse("")
    assert str(Table()) == ""


@pytest.mark.parametrize(
    "text", ["Invalid", "Overflow", "Merge failed", "Unknown", "", "1/2", "what"]
)
def test_snapshot_that_says_anything_but_its_usage_is_not_valid(text: str) -> None:
    assert not SnapshotStatus.parse(text).is_valid


def test_snapshot_says_how_full_it_is() -> None:
    assert SnapshotStatus.parse("272/131456 256") == (272, 131456, 256, "ok")
    assert SnapshotStatus.parse("272/131456 256").is_valid


def test_delay_says_how_much_it_holds() -> None:
    assert DelayStatus.parse("0 2 1") == DelayStatus(reads=0, writes=2, flushes=1)
    with pytest.raises(ValueError, match="arguments"):
        DelayStatus.parse("0 2")
