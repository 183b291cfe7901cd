"""The promises of `Dm`, kept by both backends under a real kernel.

The witness is dmsetup itself, by subprocess, and sysfs.  Runs with udev and without it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmcopyError, DmFailed, DmMissing
from dmcopy.kernel.command import Commander
from dmcopy.kernel.cookie import Cookies, udev_runs
from dmcopy.kernel.dm import Dm, DmInfo, DmStatus, suspended
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.dmsetup import Dmsetup

pytestmark = pytest.mark.lab

MIB = 1 << 20
PREFIX = f"dmct-{os.getpid()}"


def name(what: str) -> str:
    return f"{PREFIX}-{what}"


def uuid(what: str) -> str:
    return f"DMCOPY-{PREFIX}-{what}"


def witness(*words: str) -> str:
    done = subprocess.run(["dmsetup", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def our_names() -> set[str]:
    return {line.split()[0] for line in witness("ls").splitlines() if line.startswith(PREFIX)}


def cookies_left() -> list[str]:
    rows = Path("/proc/sysvipc/sem").read_text().splitlines()[1:]
    return [row for row in rows if int(row.split()[0]) >> 16 == 0x0D4D]


def node(info: DmInfo | None) -> str:
    assert info is not None
    return f"/dev/dm-{info.devno.partition(':')[2]}"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    left = our_names()
    for _ in range(3):  # a device below another one goes in the next round
        for each in our_names():
            subprocess.run(["dmsetup", "resume", each], capture_output=True, check=False)
            subprocess.run(["dmsetup", "remove", "--retry", each], capture_output=True, check=False)
    assert not left
    assert not cookies_left()
    assert not [entry for entry in os.listdir("/dev/mapper") if entry.startswith(PREFIX)]


@pytest.fixture(params=["ioctl", "dmsetup"])
def dm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Dm]:
    if request.param == "dmsetup":
        yield Dmsetup(Commander(), retry=1.0)
        return
    cookies = Cookies(tmp_path / "cookies")
    backend = DmIoctl(cookies=cookies, retry=1.0)
    yield backend
    backend.close()
    assert cookies.leftover() == []


@pytest.fixture
def ioctl(tmp_path: Path) -> Iterator[DmIoctl]:
    backend = DmIoctl(cookies=Cookies(tmp_path / "cookies"), retry=1.0)
    yield backend
    backend.close()


def loop(path: Path, size: int) -> str:
    path.touch()
    os.truncate(path, size)
    argv = ["losetup", "--find", "--show", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """Give major:minor of a disk of 8 MiB."""
    path = loop(tmp_path / "disk", 8 * MIB)
    rdev = os.stat(path).st_rdev
    yield f"{os.major(rdev)}:{os.minor(rdev)}"
    subprocess.run(["losetup", "--detach", path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """Give major:minor of a disk of 128 KiB."""
    path = loop(tmp_path / "small", 128 << 10)
    rdev = os.stat(path).st_rdev
    yield f"{os.major(rdev)}:{os.minor(rdev)}"
    subprocess.run(["losetup", "--detach", path], check=True)


def linear(disk: str, start: int = 0, length: int = 2048) -> Table:
    return Table.parse(f"0 {length} linear {disk} {start}")


# asking


def test_versions_are_the_drivers(dm: Dm) -> None:
    said = witness("version").split("Driver version:")[1].strip()
    assert ".".join(str(part) for part in dm.version()) == said
    targets = witness("targets").split()
    assert {f"{kind} v{a}.{b}.{c}" for kind, (a, b, c) in dm.targets().items()} == {
        f"{kind} {version}" for kind, version in zip(targets[::2], targets[1::2], strict=True)
    }


def test_missing_device_is_none_or_missing(dm: Dm) -> None:
    absent = name("absent")
    assert dm.info(absent) is None
    assert dm.find(uuid("absent")) is None
    for call in (dm.clear, dm.suspend, dm.resume, dm.remove, dm.table, dm.status, dm.deps):
        with pytest.raises(DmMissing):
            call(absent)
    with pytest.raises(DmMissing):
        dm.load(absent, Table.parse("0 8 zero"))
    with pytest.raises(DmMissing):
        dm.rename(absent, name("new"))
    with pytest.raises(DmMissing):
        dm.message(absent, 0, "x")
    with pytest.raises(DmMissing):
        dm.wait(absent, 0, timeout=1)


@pytest.mark.parametrize("odd", ["", "a/b", "a b", "..", "a\nb", "x" * 128, "control", "ü"])
def test_odd_name_is_refused(dm: Dm, odd: str) -> None:
    with pytest.raises(DmFailed, match="not a dm name"):
        dm.create(odd, "")
    with pytest.raises(DmFailed, match="not a dm name"):
        dm.info(odd)


def test_name_like_an_option_is_a_name(dm: Dm) -> None:
    assert dm.info("--help") is None


def test_devices_are_listed(dm: Dm, disk: str) -> None:
    made = {dm.create(name(what), uuid(what), linear(disk)) for what in ("a", "b")}
    listed = {info for info in dm.devices() if info.name.startswith(PREFIX)}
    assert {(info.name, info.uuid, info.devno) for info in listed} == {
        (info.name, info.uuid, info.devno) for info in made
    }
    for what in ("a", "b"):
        dm.remove(name(what))
    assert not [info for info in dm.devices() if info.name.startswith(PREFIX)]


def test_device_is_found_by_its_whole_uuid(dm: Dm, disk: str) -> None:
    made = dm.create(name("a"), uuid("a"), linear(disk))
    found = dm.find(uuid("a"))
    assert found is not None
    assert (found.name, found.devno) == (name("a"), made.devno)
    assert dm.find(uuid("")) is None
    dm.remove(name("a"))


# creating and removing


def test_device_created_with_a_table_is_live(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    assert (info.name, info.uuid, info.target_count) == (name("a"), uuid("a"), 1)
    assert (info.live, info.inactive, info.suspended, info.read_only) == (True, False, False, False)
    assert Path(f"/sys/dev/block/{info.devno}/dm/name").read_text().strip() == name("a")
    assert Path(f"/sys/dev/block/{info.devno}/dm/uuid").read_text().strip() == uuid("a")
    dm.remove(name("a"))
    assert dm.info(name("a")) is None
    assert not os.path.exists(f"/sys/dev/block/{info.devno}")


def test_device_node_opens_and_its_link_comes_and_goes(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    link = f"/dev/mapper/{name('a')}"
    assert stat.S_ISBLK(os.stat(link).st_mode)
    assert os.stat(link).st_rdev == os.stat(node(info)).st_rdev
    assert os.path.islink(link) == udev_runs()
    with open(link, "rb") as file:
        assert len(file.read(4096)) == 4096
    dm.rename(name("a"), name("b"))
    assert not os.path.lexists(link)
    assert os.stat(f"/dev/mapper/{name('b')}").st_rdev == os.stat(node(info)).st_rdev
    dm.remove(name("b"))
    assert not os.path.lexists(f"/dev/mapper/{name('b')}")


def test_device_created_without_a_table_has_none(dm: Dm) -> None:
    info = dm.create(name("a"), uuid("a"))
    assert (info.live, info.inactive, info.target_count) == (False, False, 0)
    assert not dm.table(name("a"))
    assert not dm.table(name("a"), inactive=True)
    assert dm.status(name("a")) == []
    assert dm.deps(name("a")) == []
    dm.remove(name("a"))


def test_device_without_uuid_can_be_made(dm: Dm, disk: str) -> None:
    assert dm.create(name("a"), "", linear(disk)).uuid == ""
    dm.remove(name("a"))


def test_read_only_device_says_so(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk), read_only=True)
    assert info.read_only
    fd = os.open(node(info), os.O_RDWR)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(fd, b"x" * 4096, 0)
    os.close(fd)
    dm.remove(name("a"))


@pytest.mark.parametrize("bad", ["0 2048 linear 99:99 0", "0 2048 nosuchtarget x", "0 8 linear x"])
def test_bad_table_leaves_no_device(dm: Dm, bad: str) -> None:
    with pytest.raises(DmFailed) as caught:
        dm.create(name("a"), uuid("a"), Table.parse(bad))
    assert not isinstance(caught.value, DmMissing)
    assert dm.info(name("a")) is None


def test_table_that_names_a_missing_device_is_not_a_missing_dm_device(dm: Dm) -> None:
    dm.create(name("a"), uuid("a"))
    with pytest.raises(DmFailed) as caught:
        dm.load(name("a"), Table.parse("0 2048 linear 99:99 0"))
    assert not isinstance(caught.value, DmMissing)
    dm.remove(name("a"))


def test_name_and_uuid_are_given_once(dm: Dm, disk: str) -> None:
    dm.create(name("a"), uuid("a"), linear(disk))
    with pytest.raises(DmBusy):
        dm.create(name("a"), uuid("b"), linear(disk))
    with pytest.raises(DmBusy):
        dm.create(name("b"), uuid("a"), linear(disk))
    assert our_names() == {name("a")}
    assert str(dm.table(name("a"))) == f"0 2048 linear {disk} 0"
    dm.remove(name("a"))


def test_busy_device_is_not_removed(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    with open(node(info), "rb"):
        now = dm.info(name("a"))
        assert now is not None
        assert now.open_count == 1
        with pytest.raises(DmBusy):
            dm.remove(name("a"))
        assert dm.info(name("a")) is not None
    dm.remove(name("a"))


def test_device_that_is_let_go_of_in_time_is_removed(dm: Dm, disk: str) -> None:
    file = open(node(dm.create(name("a"), uuid("a"), linear(disk))), "rb")  # noqa: SIM115
    timer = threading.Timer(0.3, file.close)
    timer.start()
    dm.remove(name("a"))
    timer.join()
    assert dm.info(name("a")) is None


def test_deferred_remove_happens_at_the_last_close(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    with open(node(info), "rb"):
        dm.remove(name("a"), deferred=True)
        assert dm.info(name("a")) is not None
    end = time.monotonic() + 10
    while dm.info(name("a")) is not None and time.monotonic() < end:
        time.sleep(0.02)
    assert dm.info(name("a")) is None
    if udev_runs():
        subprocess.run(["udevadm", "settle"], check=True)


def test_renamed_device_keeps_uuid_and_number(dm: Dm, disk: str) -> None:
    made = dm.create(name("a"), uuid("a"), linear(disk))
    dm.rename(name("a"), name("b"))
    assert dm.info(name("a")) is None
    info = dm.info(name("b"))
    assert info is not None
    assert (info.uuid, info.devno) == (uuid("a"), made.devno)
    dm.remove(name("b"))


# tables


def test_loaded_table_waits_in_the_inactive_slot(dm: Dm, disk: str) -> None:
    first, second = linear(disk), linear(disk, 4096)
    dm.create(name("a"), uuid("a"), first)
    dm.load(name("a"), second)
    info = dm.info(name("a"))
    assert info is not None
    assert (info.live, info.inactive, info.suspended) == (True, True, False)
    assert (dm.table(name("a")), dm.table(name("a"), inactive=True)) == (first, second)
    dm.resume(name("a"))
    assert (dm.table(name("a")), bool(dm.table(name("a"), inactive=True))) == (second, False)
    dm.remove(name("a"))


def test_cleared_table_is_never_swapped_in(dm: Dm, disk: str) -> None:
    dm.create(name("a"), uuid("a"), linear(disk))
    dm.load(name("a"), linear(disk, 4096))
    dm.clear(name("a"))
    assert not dm.table(name("a"), inactive=True)
    dm.resume(name("a"))
    assert dm.table(name("a")) == linear(disk)
    dm.clear(name("a"))  # nothing there: nothing happens
    dm.remove(name("a"))


@pytest.mark.parametrize("lockfs", [True, False])
@pytest.mark.parametrize("flush", [True, False])
def test_suspended_device_holds_writes_until_resume(
    dm: Dm, disk: str, lockfs: bool, flush: bool
) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    fd = os.open(node(info), os.O_WRONLY | os.O_SYNC)
    written = threading.Event()

    def write() -> None:
        os.pwrite(fd, b"x" * 4096, 0)
        written.set()

    dm.suspend(name("a"), lockfs=lockfs, flush=flush)
    thread = threading.Thread(target=write)
    try:
        now = dm.info(name("a"))
        assert now is not None
        assert now.suspended
        assert Path(f"/sys/dev/block/{info.devno}/dm/suspended").read_text() == "1\n"
        thread.start()
        assert not written.wait(0.2)
    finally:
        dm.resume(name("a"), lockfs=lockfs, flush=flush)
    assert written.wait(10)
    thread.join()
    now = dm.info(name("a"))
    assert now is not None
    assert not now.suspended
    os.close(fd)
    dm.remove(name("a"))


def test_suspended_resumes_after_an_error(dm: Dm, disk: str) -> None:
    dm.create(name("a"), uuid("a"), linear(disk))
    with pytest.raises(KeyError), suspended(dm, name("a")):
        raise KeyError
    info = dm.info(name("a"))
    assert info is not None
    assert not info.suspended
    dm.remove(name("a"))


def test_table_and_status_are_what_dmsetup_prints(dm: Dm, disk: str, small_disk: str) -> None:
    tables = {
        "a": f"0 100 linear {disk} 8\n100 28 zero\n128 72 delay {disk} 0 10\n200 8 error",
        "b": f"0 2048 snapshot {disk} {small_disk} P 8",
        "c": f"0 4096 striped 2 16 {disk} 0 {disk} 4096",
    }
    for what, text in tables.items():
        dm.create(name(what), uuid(what), Table.parse(text))
        printed = lines(witness("table", name(what)))
        assert str(dm.table(name(what))).splitlines() == printed
        told = [" ".join(str(part) for part in row).rstrip() for row in dm.status(name(what))]
        assert told == lines(witness("status", name(what)))
        assert dm.status(name(what), flush=False) == dm.status(name(what))
    assert dm.status(name("b")) == [DmStatus(0, 2048, "snapshot", "16/256 16")]
    for what in tables:
        dm.remove(name(what))


def test_deps_are_the_devices_below(dm: Dm, disk: str, small_disk: str) -> None:
    dm.create(name("a"), uuid("a"), Table.parse(f"0 2048 snapshot {disk} {small_disk} P 8"))
    assert sorted(dm.deps(name("a"))) == sorted([disk, small_disk])
    dm.remove(name("a"))


def test_table_of_five_thousand_targets(dm: Dm, disk: str) -> None:
    text = "\n".join(f"{8 * n} 8 linear {disk} {8 * (n % 1000)}" for n in range(5000))
    table = Table.parse(text)
    info = dm.create(name("a"), uuid("a"), table)
    assert info.target_count == 5000
    assert str(dm.table(name("a"))) == text
    assert len(dm.status(name("a"))) == 5000
    dm.load(name("a"), linear(disk))
    dm.resume(name("a"))
    assert dm.table(name("a")) == linear(disk)
    dm.remove(name("a"))


# messages and events


def test_message_gives_its_answer(dm: Dm, disk: str) -> None:
    dm.create(name("a"), uuid("a"), linear(disk))
    assert dm.message(name("a"), 0, "@stats_create - /2") == "0"
    assert dm.message(name("a"), 0, "@stats_create - /4") == "1"
    listed = dm.message(name("a"), 0, "@stats_list").splitlines()
    assert [line.split()[0] for line in listed] == ["0:", "1:"]
    assert dm.message(name("a"), 0, "@stats_delete 0") == ""
    dm.remove(name("a"))


def test_message_that_the_target_does_not_know_fails(dm: Dm, disk: str) -> None:
    dm.create(name("a"), uuid("a"), linear(disk))
    with pytest.raises(DmFailed, match="Invalid argument"):
        dm.message(name("a"), 0, "nonsense")
    dm.remove(name("a"))


def test_wait_wakes_when_the_snapshot_overflows(dm: Dm, disk: str, small_disk: str) -> None:
    snapshot = Table.parse(f"0 16384 snapshot {disk} {small_disk} P 8")
    dm.create(name("snap"), uuid("snap"), snapshot)
    origin = dm.create(name("org"), uuid("org"), Table.parse(f"0 16384 snapshot-origin {disk}"))
    before = dm.info(name("snap"))
    assert before is not None

    def overflow() -> None:
        fd = os.open(node(origin), os.O_WRONLY | os.O_SYNC)
        os.pwrite(fd, b"x" * MIB, 0)
        os.close(fd)

    timer = threading.Timer(0.5, overflow)
    started = time.monotonic()
    timer.start()
    assert dm.wait(name("snap"), before.event_nr, timeout=30) == before.event_nr + 1
    assert 0.3 < time.monotonic() - started < 30
    timer.join()
    assert dm.status(name("snap"))[0].text == "Invalid"
    # what happened already is not waited for
    assert dm.wait(name("snap"), before.event_nr, timeout=30) == before.event_nr + 1
    dm.remove(name("org"))
    dm.remove(name("snap"))


def test_wait_ends_when_its_time_is_up(dm: Dm, disk: str) -> None:
    info = dm.create(name("a"), uuid("a"), linear(disk))
    started = time.monotonic()
    assert dm.wait(name("a"), info.event_nr, timeout=0.4) is None
    assert 0.3 < time.monotonic() - started < 15
    dm.remove(name("a"))


def test_control_device_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DmcopyError, match="No such file"):
        DmIoctl(str(tmp_path / "control")).version()


# what only the ioctl backend has


def test_probe_says_what_dmsetup_prints(ioctl: DmIoctl, disk: str, small_disk: str) -> None:
    info = ioctl.create(
        name("a"), uuid("a"), Table.parse(f"0 2048 snapshot {disk} {small_disk} P 8")
    )
    for probe in (ioctl.probe(uuid=uuid("a")), ioctl.probe(devno=info.devno)):
        for _ in range(3):
            assert probe.status() == b"0 2048 snapshot 16/256 16"
            assert probe.table().decode().splitlines() == lines(witness("table", name("a")))
    ioctl.remove(name("a"))
    for probe in (ioctl.probe(uuid=uuid("a")), ioctl.probe(devno=info.devno)):
        with pytest.raises(DmMissing):
            probe.status()
        with pytest.raises(DmMissing):
            probe.table()


def test_probe_grows_with_the_table(ioctl: DmIoctl, disk: str) -> None:
    text = "\n".join(f"{8 * n} 8 linear {disk} {8 * n}" for n in range(1000))
    ioctl.create(name("a"), uuid("a"), linear(disk))
    probe = ioctl.probe(uuid=uuid("a"))
    assert probe.table() == str(linear(disk)).encode()
    ioctl.load(name("a"), Table.parse(text))
    ioctl.resume(name("a"))
    assert probe.table() == text.encode()
    ioctl.remove(name("a"))


def test_probe_costs_some_tens_of_microseconds(ioctl: DmIoctl, disk: str, small_disk: str) -> None:
    ioctl.create(name("a"), uuid("a"), Table.parse(f"0 2048 snapshot {disk} {small_disk} P 8"))
    probe = ioctl.probe(uuid=uuid("a"))
    best = {}
    for call in (probe.status, probe.table):
        took = []
        for _ in range(2000):
            started = time.perf_counter()
            call()
            took.append(time.perf_counter() - started)
        best[call.__name__] = sorted(took)[len(took) // 2] * 1e6
    print(f"\nProbe: {best} us (median)")
    ioctl.remove(name("a"))
    assert max(best.values()) < 500  # 50 on an idle machine; a wide net for a busy one


def test_prepared_calls_hold_swap_and_release(ioctl: DmIoctl, disk: str) -> None:
    ioctl.create(name("a"), uuid("a"), linear(disk))
    look, hold = ioctl.prepare_info(name("a")), ioctl.prepare_suspend(name("a"))
    release, drop = ioctl.prepare_resume(name("a"), lockfs=False), ioctl.prepare_clear(name("a"))
    for _ in range(3):
        hold()
        look()
        assert look.suspended
        release()
        look()
        assert not look.suspended
    ioctl.load(name("a"), linear(disk, 4096))
    look()
    assert look.inactive
    drop()
    look()
    assert not look.inactive
    ioctl.load(name("a"), linear(disk, 4096))
    release()
    assert ioctl.table(name("a")) == linear(disk, 4096)
    if udev_runs():
        subprocess.run(["udevadm", "settle"], check=True)
    ioctl.remove(name("a"))
    for call in (look, hold, release, drop):
        with pytest.raises(DmMissing):
            call()


def test_prepared_hold_takes_no_time(ioctl: DmIoctl, disk: str) -> None:
    ioctl.create(name("a"), "", linear(disk))
    hold, release = ioctl.prepare_suspend(name("a")), ioctl.prepare_resume(name("a"))
    took = []
    for _ in range(200):
        started = time.perf_counter()
        hold()
        release()
        took.append(time.perf_counter() - started)
    print(f"\nsuspend + resume: {sorted(took)[100] * 1e6:.0f} us (median)")
    if udev_runs():
        subprocess.run(["udevadm", "settle"], check=True)
    ioctl.remove(name("a"))


def test_create_and_remove_with_udev_take_some_milliseconds(dm: Dm, disk: str) -> None:
    took: dict[str, list[float]] = {"create": [], "remove": []}
    for _ in range(5):
        started = time.perf_counter()
        dm.create(name("a"), uuid("a"), linear(disk))
        took["create"].append(time.perf_counter() - started)
        started = time.perf_counter()
        dm.remove(name("a"))
        took["remove"].append(time.perf_counter() - started)
    median = {verb: round(sorted(times)[2] * 1e3, 1) for verb, times in took.items()}
    print(f"\n{type(dm).__name__}, udev {udev_runs()}: {median} ms")


def test_killed_process_leaves_a_cookie_that_can_be_destroyed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from dmcopy.kernel.cookie import Cookies
with Cookies({str(tmp_path)!r}).cookie():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(["python3", "-c", code])
    process.wait()
    assert len(cookies_left()) == 1
    cookies = Cookies(tmp_path)
    assert [left.pid for left in cookies.leftover()] == [process.pid]
    with cookies.cookie():  # one in use, of a process that lives
        assert len(cookies.destroy_leftover()) == 1
        assert len(cookies_left()) == 1
    assert cookies.leftover() == []


def test_many_threads_share_one_backend(ioctl: DmIoctl, disk: str) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                what = f"{number}-{turn}"
                ioctl.create(name(what), uuid(what), linear(disk, 8 * number))
                assert ioctl.table(name(what)) == linear(disk, 8 * number)
                ioctl.remove(name(what))
        except BaseException as exc:  # handed to the test
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_backslash_names_of_others_are_found(ioctl: DmIoctl, disk: str) -> None:
    # libdm writes a blank in a name as \x20
    words = ["dmsetup", "create", "--manglename", "hex", f"{PREFIX}-a b"]
    subprocess.run(words, input=f"0 8 linear {disk} 0\n", text=True, check=True)
    info = ioctl.info(f"{PREFIX}-a\\x20b")
    assert info is not None
    for backend in (ioctl, Dmsetup(Commander())):
        found = backend.info(info.name)
        assert found is not None
        assert found.devno == info.devno
    with suppress(DmFailed):
        ioctl.remove(info.name)
