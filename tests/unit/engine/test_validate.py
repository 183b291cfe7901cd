"""What the kernel may say, and what it means for the point in time."""

from __future__ import annotations

import pytest

from dmcopy.engine.validate import IdleValidator, Layer, SnapshotValidator
from dmcopy.errors import DmMissing, PointInTimeLost

TABLE = b"0 2048 snapshot-origin 254:1\n"


class FakeProbe:
    def __init__(self, status: bytes = b"", table: bytes = b"") -> None:
        self.said = {"status": status, "table": table}
        self.error: Exception | None = None

    def status(self) -> bytes:
        if self.error:
            raise self.error
        return self.said["status"]

    def table(self) -> bytes:
        if self.error:
            raise self.error
        return self.said["table"]


def validator(
    status: bytes = b"0 2048 snapshot 16/80 8", table: bytes = TABLE
) -> SnapshotValidator:
    return SnapshotValidator(FakeProbe(status=status), FakeProbe(table=table), TABLE.strip())


def test_good_status_and_our_table_pass_and_tell_the_fill() -> None:
    one = validator()
    assert one.cow is None
    one.check()
    assert one.cow == (16, 80)


@pytest.mark.parametrize(
    "said",
    ["Invalid", "Overflow", "Merge failed", "Unknown", "", "16/80", "16/80 8 more", "-1/80 8"],
)
def test_any_other_status_is_point_in_time_lost_in_the_kernels_words(said: str) -> None:
    one = validator(status=f"0 2048 snapshot {said}".encode())
    with pytest.raises(PointInTimeLost, match=f"the kernel says '0 2048 snapshot {said}".strip()):
        one.check()


@pytest.mark.parametrize("said", ["0 2048 linear 254:1 0", "0 2048 error ", ""])
def test_status_of_another_target_is_point_in_time_lost(said: str) -> None:
    with pytest.raises(PointInTimeLost):
        validator(status=said.encode()).check()


@pytest.mark.parametrize(
    "table",
    [
        b"0 2048 linear 254:1 0\n",
        b"0 2048 snapshot-origin 254:9\n",
        b"0 1024 linear 254:1 0\n1024 1024 snapshot-origin 254:1\n",
        b"",
    ],
)
def test_replaced_origin_table_is_point_in_time_lost(table: bytes) -> None:
    with pytest.raises(PointInTimeLost, match="table was replaced"):
        validator(table=table).check()


TWO_LINES = b"0 8 linear 254:1 0\n8 2040 snapshot-origin 254:1"


def test_only_tables_that_were_announced_are_ours() -> None:
    origin = FakeProbe(table=TABLE)
    one = SnapshotValidator(FakeProbe(status=b"0 2048 snapshot 16/80 8"), origin, TABLE)
    one.allow([TABLE, TWO_LINES])
    one.check()
    origin.said["table"] = TWO_LINES + b"\n"
    one.check()
    one.allow([TWO_LINES])
    one.check()
    for table in (TABLE, TWO_LINES.splitlines()[1], TWO_LINES + b"\n" + TABLE):
        origin.said["table"] = table
        with pytest.raises(PointInTimeLost, match="the origin's table was replaced"):
            one.check()


def test_strangers_table_below_the_origin_is_noticed_too() -> None:
    gate = FakeProbe(table=TWO_LINES)
    one = validator()
    one.allow([TABLE], [Layer("gate", gate, [TWO_LINES, TABLE])])
    one.check()
    gate.said["table"] = b"0 2048 linear 254:1 0"
    with pytest.raises(PointInTimeLost, match="the gate's table was replaced"):
        one.check()
    gate.error = DmMissing("read the table of", "gate", "no such device")
    with pytest.raises(PointInTimeLost, match="gate cannot be asked"):
        one.check()
    one.allow([TABLE])
    one.check()


def test_swap_that_is_announced_during_a_check_is_not_taken_for_a_strangers() -> None:
    class Swapping(FakeProbe):
        def table(self) -> bytes:
            if self.said["table"] == TABLE:
                self.said["table"] = TWO_LINES
                one.allow([TABLE, TWO_LINES])
            return super().table()

    origin = Swapping(table=TABLE)
    one = SnapshotValidator(FakeProbe(status=b"0 2048 snapshot 16/80 8"), origin, TABLE)
    one.check()


def test_blanks_do_not_make_a_table_another_one() -> None:
    validator(table=b"0 2048 snapshot-origin 254:1 ").check()


def test_device_that_went_away_is_point_in_time_lost() -> None:
    snapshot, origin = FakeProbe(), FakeProbe(table=TABLE)
    snapshot.error = DmMissing("read the status of", "x", "no such device")
    with pytest.raises(PointInTimeLost, match=r"snapshot cannot be asked.*no such device"):
        SnapshotValidator(snapshot, origin, TABLE).check()


def test_snapshot_lost_after_the_last_segment_does_not_matter() -> None:
    validator(status=b"0 2048 snapshot Invalid").finish()


def test_write_to_an_idle_device_is_point_in_time_lost() -> None:
    count = [7]
    one = IdleValidator(lambda: count[0], 7, "/dev/x")
    one.check()
    one.finish()
    count[0] = 9
    with pytest.raises(PointInTimeLost, match=r"/dev/x was idle.*\(2 writes"):
        one.check()
    with pytest.raises(PointInTimeLost):
        one.finish()


def test_idle_device_that_went_away_is_point_in_time_lost() -> None:
    def gone() -> int:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(PointInTimeLost, match="went away"):
        IdleValidator(gone, 0, "/dev/x").check()
