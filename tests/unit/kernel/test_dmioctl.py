"""The ioctl backend against a kernel made of Python; the real one: tests/lab/test_dm_contract."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmFailed, DmMissing
from dmcopy.kernel import dmioctl, dmrequest
from dmcopy.kernel.cookie import UDEV_FLAGS, Cookies
from dmcopy.kernel.dm import DmStatus
from dmcopy.kernel.dmioctl import DmIoctl, Probe
from dmcopy.kernel.dmrequest import (
    DM_BUFFER_FULL_FLAG,
    DM_DEV_CREATE,
    DM_DEV_REMOVE,
    DM_DEV_STATUS,
    DM_DEV_SUSPEND,
    DM_NOFLUSH_FLAG,
    DM_SKIP_LOCKFS_FLAG,
    DM_STATUS_TABLE_FLAG,
    DM_SUSPEND_FLAG,
    DM_TABLE_CLEAR,
    DM_TABLE_LOAD,
    DM_TABLE_STATUS,
    dm_ioctl,
)

SPEC = struct.Struct("=QQiI16s")
Answer = Callable[[dm_ioctl, bytearray], None]


class Kernel:
    """Remembers each request's head and payload; answers by *answers*, or with an errno."""

    def __init__(self, answers: dict[int, Answer | int] | None = None) -> None:
        self.answers = answers or {}
        self.seen: list[tuple[int, dm_ioctl, bytes]] = []

    def __call__(self, fd: int, request: int, data: bytearray, mutate: bool) -> int:
        assert mutate
        head = dm_ioctl.from_buffer(data)
        assert head.data_size == len(data)
        payload = bytes(data[head.data_start :])
        self.seen.append((request, dm_ioctl.from_buffer_copy(data), payload))
        answer = self.answers.get(request)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        if answer is not None:
            answer(head, data)
        return 0

    def heads(self, request: int) -> list[dm_ioctl]:
        return [head for number, head, _ in self.seen if number == request]


def backend(kernel: Kernel, *, retry: float = 0.0) -> DmIoctl:
    return DmIoctl("/dev/null", call=kernel, retry=retry)


def targets(*rows: tuple[int, int, str, str]) -> Answer:
    """Answer as DM_TABLE_STATUS does: `next` counts from the first one."""

    def answer(head: dm_ioctl, data: bytearray) -> None:
        packed = bytearray()
        for start, length, kind, text in rows:
            body = text.encode() + b"\0"
            size = -(-(SPEC.size + len(body)) // 8) * 8
            packed += SPEC.pack(start, length, 0, len(packed) + size, kind.encode())
            packed += body.ljust(size - SPEC.size, b"\0")
        if head.data_start + len(packed) > head.data_size:
            head.flags |= DM_BUFFER_FULL_FLAG
            return
        head.target_count = len(rows)
        data[head.data_start : head.data_start + len(packed)] = packed

    return answer


@pytest.fixture(autouse=True)
def _no_udev(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(dmioctl, "udev_runs", lambda: False)
    monkeypatch.setattr(dmioctl, "DM_DIR", str(tmp_path))


def test_layout_is_that_of_the_header() -> None:
    assert ctypes.sizeof(dm_ioctl) == 312
    offsets = {name: getattr(dm_ioctl, name).offset for name, *_ in dm_ioctl._fields_}
    assert offsets == {
        "version": 0, "data_size": 12, "data_start": 16, "target_count": 20, "open_count": 24,
        "flags": 28, "event_nr": 32, "padding": 36, "dev": 40, "name": 48, "uuid": 176, "data": 305,
    }  # fmt: skip
    assert SPEC.size == 40
    assert dmrequest.DM_VERSION == 0xC138FD00
    assert dmrequest.DM_DEV_ARM_POLL == 0xC138FD10


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENXIO, DmMissing), (errno.EBUSY, DmBusy), (errno.EINVAL, DmFailed)],
)
def test_errno_says_which_error_it_is(number: int, kind: type[DmFailed]) -> None:
    dm = backend(Kernel({DM_TABLE_CLEAR: number}))
    with pytest.raises(kind, match="cannot clear dm device x") as caught:
        dm.clear("x")
    assert type(caught.value) is kind
    assert caught.value.errno == number


@pytest.mark.parametrize("odd", ["", "a/b", "a b", ".", "..", "a\0b", "x" * 128, "ü", "control"])
def test_odd_names_never_reach_the_kernel(odd: str) -> None:
    kernel = Kernel()
    dm = backend(kernel)
    for call in (dm.info, dm.clear, dm.suspend, dm.resume, dm.remove, dm.table, dm.prepare_resume):
        with pytest.raises(DmFailed, match="not a dm name"):
            call(odd)
    with pytest.raises(DmFailed, match="not a dm name"):
        dm.create(odd, "")
    assert kernel.seen == []


def test_backslash_is_met_in_foreign_names_but_not_made() -> None:
    kernel = Kernel()
    backend(kernel).info(r"a\x20b")
    assert kernel.seen[0][1].name == rb"a\x20b"
    with pytest.raises(DmFailed):
        backend(kernel).create(r"a\x20b", "")


def test_table_is_laid_out_as_the_kernel_reads_it() -> None:
    kernel = Kernel()
    backend(kernel).load("x", Table.parse("0 8 linear 7:0 16\n8 8 zero\n16 8 error"))
    ((request, head, payload),) = kernel.seen
    assert (request, head.target_count, head.name) == (DM_TABLE_LOAD, 3, b"x")
    at, found = 0, []
    for _ in range(3):
        assert at % 8 == 0
        start, length, _status, step, kind = SPEC.unpack_from(payload, at)
        text = payload[at + SPEC.size : payload.index(b"\0", at + SPEC.size)]
        found.append((start, length, kind.rstrip(b"\0"), text))
        at += step  # from the current one, unlike in an answer
    assert found == [(0, 8, b"linear", b"7:0 16"), (8, 8, b"zero", b""), (16, 8, b"error", b"")]


def test_answer_of_several_targets_is_read() -> None:
    rows = ((0, 8, "linear", "7:0 16"), (8, 8, "zero", ""), (16, 8, "snapshot", "7:0 7:1 P 8"))
    kernel = Kernel({DM_TABLE_STATUS: targets(*rows)})
    dm = backend(kernel)
    text = "0 8 linear 7:0 16\n8 8 zero\n16 8 snapshot 7:0 7:1 P 8"
    assert dm.table("x") == Table.parse(text)
    assert dm.status("x") == [DmStatus(*row) for row in rows]
    probe = Probe(0, uuid="DMCOPY-x", call=kernel)
    assert probe.table() == probe.status() == text.encode()


def test_buffer_grows_until_the_answer_fits() -> None:
    rows = [(8 * n, 8, "linear", f"7:0 {8 * n}") for n in range(3000)]
    kernel = Kernel({DM_TABLE_STATUS: targets(*rows)})
    dm = backend(kernel)
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    assert str(dm.table("x")) == text
    sizes = [head.data_size for head in kernel.heads(DM_TABLE_STATUS)]
    assert len(sizes) > 1
    assert sizes == sorted(sizes)
    dm.table("x")  # the size is remembered
    assert len(kernel.seen) == len(sizes) + 1
    assert Probe(0, devno="254:3", call=kernel).table() == text.encode()


def test_status_without_flush_says_so_to_the_kernel() -> None:
    kernel = Kernel({DM_TABLE_STATUS: targets()})
    dm = backend(kernel)
    dm.status("x", flush=False)
    dm.status("x")
    dm.status_of("DMCOPY-x")
    dm.table("x")
    flags = [head.flags for head in kernel.heads(DM_TABLE_STATUS)]
    assert flags == [DM_NOFLUSH_FLAG, 0, DM_NOFLUSH_FLAG, DM_NOFLUSH_FLAG | DM_STATUS_TABLE_FLAG]


def test_probe_looks_by_uuid_or_devno_alone() -> None:
    kernel = Kernel({DM_TABLE_STATUS: targets()})
    Probe(0, uuid="DMCOPY-x", call=kernel).status()
    Probe(0, devno="254:300", call=kernel).status()
    by_uuid, by_devno = kernel.heads(DM_TABLE_STATUS)
    assert (by_uuid.name, by_uuid.uuid, by_uuid.dev) == (b"", b"DMCOPY-x", 0)
    assert (by_devno.name, by_devno.uuid) == (b"", b"")
    assert by_devno.dev == os.makedev(254, 300)
    with pytest.raises(ValueError, match="uuid or for a devno"):
        Probe(0)
    with pytest.raises(DmMissing, match="DMCOPY-x"):
        Probe(0, uuid="DMCOPY-x", call=Kernel({DM_TABLE_STATUS: errno.ENXIO})).status()


def test_probe_is_not_misled_by_what_an_earlier_answer_left() -> None:
    """The kernel does not write the last byte of a target's name."""

    def answer(head: dm_ioctl, data: bytearray) -> None:
        kind, text = kinds[len(kernel.seen) - 1]
        at = head.data_start
        data[at : at + SPEC.size] = (
            SPEC.pack(0, 8, 0, 0, b"")[: SPEC.size - 16]
            + kind.ljust(15, b"\0")
            + data[at + SPEC.size - 1 : at + SPEC.size]
        )
        data[at + SPEC.size : at + SPEC.size + len(text) + 1] = text + b"\0"
        head.target_count = 1

    # what lies at the end of the field after the first answer is a letter of the second's
    kinds = [(b"linear", b"1:0 0"), (b"linear", b"1:0 0")]
    kernel = Kernel({DM_TABLE_STATUS: answer})
    probe = Probe(0, uuid="u", call=kernel)
    assert probe.table() == b"0 8 linear 1:0 0"
    probe._buffer[dmrequest.HEAD + SPEC.size - 1] = ord("t")
    assert probe.table() == b"0 8 linear 1:0 0"


LIVE = (0, 8, "linear", "1:0 0")


@pytest.mark.parametrize(
    ("then", "done"), [(LIVE, True), ((0, 8, "error", ""), False)], ids=["ours", "a stranger's"]
)
def test_exchange_drops_what_is_loaded_when_another_table_is_live(
    then: tuple[int, int, str, str], done: bool
) -> None:
    answers = iter([LIVE, then])

    def answer(head: dm_ioctl, data: bytearray) -> None:
        targets(next(answers))(head, data)

    kernel = Kernel({DM_TABLE_STATUS: answer})
    exchange = backend(kernel).prepare_exchange("x", Table.parse("0 8 linear 1:0 0"))
    kernel.seen.clear()
    assert exchange() is done
    dropped = [] if done else [DM_TABLE_CLEAR]
    assert [request for request, _, _ in kernel.seen] == [
        DM_DEV_SUSPEND, DM_TABLE_STATUS, *dropped, DM_DEV_SUSPEND,
    ]  # fmt: skip
    hold, release = kernel.heads(DM_DEV_SUSPEND)
    assert hold.flags & DM_SUSPEND_FLAG
    assert not release.flags & DM_SUSPEND_FLAG


def test_exchange_that_cannot_hold_leaves_nothing_loaded() -> None:
    kernel = Kernel({DM_TABLE_STATUS: targets(LIVE), DM_DEV_SUSPEND: errno.EINTR})
    exchange = backend(kernel).prepare_exchange("x", Table.parse("0 8 linear 1:0 0"))
    kernel.seen.clear()
    with pytest.raises(DmFailed):
        exchange()
    assert [request for request, _, _ in kernel.seen] == [DM_DEV_SUSPEND, DM_TABLE_CLEAR]


def test_flags_of_hold_and_release() -> None:
    kernel = Kernel()
    dm = backend(kernel)
    dm.suspend("x")
    dm.suspend("x", lockfs=False, flush=False)
    dm.prepare_resume("x", lockfs=False)()
    dm.prepare_resume("x", flush=False)()
    assert [head.flags for head in kernel.heads(DM_DEV_SUSPEND)] == [
        DM_SUSPEND_FLAG,
        DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG,
        DM_SKIP_LOCKFS_FLAG,
        DM_NOFLUSH_FLAG,
    ]


def test_prepared_call_asks_the_same_each_time() -> None:
    def spoil(head: dm_ioctl, _data: bytearray) -> None:
        head.flags = 0xFFFF
        head.name = b"other"
        head.event_nr = 99

    kernel = Kernel({DM_DEV_SUSPEND: spoil})
    hold = backend(kernel).prepare_suspend("x", lockfs=False)
    for _ in range(3):
        hold()
        assert (hold.suspended, hold.inactive, hold.event_nr) == (True, True, 99)
    asked = kernel.heads(DM_DEV_SUSPEND)
    assert {bytes(head) for head in asked} == {bytes(asked[0])}
    assert asked[0].name == b"x"


def test_prepared_call_for_a_missing_device_fails_before_the_hold() -> None:
    with pytest.raises(DmMissing):
        backend(Kernel({DM_DEV_STATUS: errno.ENXIO})).prepare_resume("x")


@pytest.mark.parametrize(("uuid", "flags"), [(b"DMCOPY-x", UDEV_FLAGS), (b"LVM-x", 0), (b"", 0)])
def test_only_events_of_ours_carry_flags(uuid: bytes, flags: int) -> None:
    def status(head: dm_ioctl, _data: bytearray) -> None:
        head.uuid = uuid

    kernel = Kernel({DM_DEV_STATUS: status})
    dm = backend(kernel)
    dm.resume("x")
    dm.prepare_resume("x")()
    dm.remove("x")
    events = [*kernel.heads(DM_DEV_SUSPEND), *kernel.heads(DM_DEV_REMOVE)]
    assert [head.event_nr for head in events] == [flags] * 3


def uevent(head: dm_ioctl, _data: bytearray) -> None:
    head.uuid = b"DMCOPY-x"
    head.flags = dmrequest.DM_UEVENT_GENERATED_FLAG


def test_change_is_made_although_there_is_no_cookie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dmioctl, "udev_runs", lambda: True)
    (tmp_path / "file").touch()
    kernel = Kernel({DM_DEV_STATUS: uevent, DM_DEV_REMOVE: uevent})
    cookies = Cookies(tmp_path / "file" / "cookies")
    DmIoctl("/dev/null", cookies=cookies, call=kernel).remove("x")
    assert [head.event_nr for head in kernel.heads(DM_DEV_REMOVE)] == [UDEV_FLAGS]
    assert "not waiting for udev" in caplog.text


@pytest.mark.parametrize("generated", [True, False])
def test_udev_is_waited_for_when_there_is_an_event(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    generated: bool,
) -> None:
    monkeypatch.setattr(dmioctl, "udev_runs", lambda: True)

    def answer(head: dm_ioctl, _data: bytearray) -> None:
        head.flags = dmrequest.DM_UEVENT_GENERATED_FLAG if generated else 0

    kernel = Kernel({DM_DEV_STATUS: uevent, DM_DEV_REMOVE: answer})
    cookies = Cookies(tmp_path, limit=0.1)
    DmIoctl("/dev/null", cookies=cookies, call=kernel).remove("x")
    (head,) = kernel.heads(DM_DEV_REMOVE)
    assert head.event_nr & ~0xFFFF == UDEV_FLAGS
    assert head.event_nr & 0xFFFF
    assert ("udev has not answered" in caplog.text) is generated
    assert cookies.leftover() == []


def test_half_made_device_is_removed() -> None:
    kernel = Kernel({DM_TABLE_LOAD: errno.EINVAL})
    with pytest.raises(DmFailed, match="cannot load a table into dm device x: Invalid argument"):
        backend(kernel).create("x", "DMCOPY-x", Table.parse("0 8 linear 7:0 0"))
    assert len(kernel.heads(DM_DEV_CREATE)) == len(kernel.heads(DM_DEV_REMOVE)) == 1


def test_existing_device_is_not_removed_when_create_fails() -> None:
    kernel = Kernel({DM_DEV_CREATE: errno.EBUSY})
    with pytest.raises(DmBusy):
        backend(kernel).create("x", "DMCOPY-x", Table.parse("0 8 zero"))
    assert kernel.heads(DM_DEV_REMOVE) == []


def test_missing_lower_device_is_not_a_missing_dm_device() -> None:
    with pytest.raises(DmFailed) as caught:
        backend(Kernel({DM_TABLE_LOAD: errno.ENXIO})).load("x", Table.parse("0 8 zero"))
    assert type(caught.value) is DmFailed


def test_busy_remove_is_tried_again_for_a_limited_time() -> None:
    kernel = Kernel({DM_DEV_REMOVE: errno.EBUSY})
    with pytest.raises(DmBusy):
        backend(kernel, retry=0.12).remove("x")
    assert 2 <= len(kernel.heads(DM_DEV_REMOVE)) <= 5


def test_missing_control_node_asks_for_the_module(tmp_path: object) -> None:
    dm = DmIoctl(f"{tmp_path}/control")
    with pytest.raises(DmFailed, match="dm-mod"):
        dm.version()
