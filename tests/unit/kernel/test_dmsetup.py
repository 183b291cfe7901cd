"""The dmsetup backend: what it runs, and how it reads what dmsetup 1.02.185 really said."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmFailed, DmMissing
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.dm import DmInfo, DmStatus
from dmcopy.kernel.dmsetup import Dmsetup, info_of

DATA = Path(__file__).parents[2] / "data"
ABSENT = "Device does not exist.\nCommand failed.\n"


class Program:
    """Stands in for dmsetup: an answer (status, stdout, stderr) a verb."""

    def __init__(self, **answers: tuple[int, str, str]) -> None:
        self.answers = answers
        self.seen: list[tuple[tuple[str, ...], str | None]] = []

    def __call__(self, argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
        assert tuple(argv[:3]) == ("dmsetup", "--manglename", "none")
        self.seen.append((tuple(argv[3:]), stdin))
        status, stdout, stderr = self.answers.get(argv[3], (0, "", ""))
        timed_out = status == -9
        return Completed(tuple(argv), status, stdout, stderr, 0.0, timed_out)


def backend(program: Program) -> Dmsetup:
    return Dmsetup(Commander(program), retry=0.0)


def failed(verb: str, why: str) -> tuple[int, str, str]:
    return (1, "", f"device-mapper: {verb} ioctl on x  failed: {why}\nCommand failed.\n")


def test_info_lines_are_read() -> None:
    first, second = (DATA / "dmsetup-1.02.185-info.txt").read_text().splitlines()
    assert info_of(first) == DmInfo(
        "t1", "DMCOPY-t-x", "254:0", 0, 0, 1, True, False, False, False
    )  # fmt: skip
    assert info_of(second) == DmInfo("t2", "", "254:1", 0, 0, 0, False, False, False, False)
    held = info_of("a/b/254:0".replace("254:0", "254/0/2/7/3/LIsr"))
    assert (held.open_count, held.event_nr, held.target_count) == (2, 7, 3)
    assert (held.live, held.inactive, held.suspended, held.read_only) == (True,) * 4


def test_missing_device_is_none() -> None:
    dm = backend(Program(info=(1, "", ABSENT)))
    assert dm.info("x") is None
    assert dm.find("DMCOPY-x") is None


def test_no_device_at_all_is_an_empty_list() -> None:
    assert backend(Program(info=(0, "No devices found\n", ""))).devices() == []


@pytest.mark.parametrize(
    ("why", "kind", "number"),
    [
        ("No such device or address", DmMissing, errno.ENXIO),
        ("Device or resource busy", DmBusy, errno.EBUSY),
        ("Invalid argument", DmFailed, errno.EINVAL),
    ],
)
def test_words_of_dmsetup_become_the_errors_of_the_ioctl(
    why: str, kind: type[DmFailed], number: int
) -> None:
    with pytest.raises(DmFailed) as caught:
        backend(Program(remove=failed("remove", why))).remove("x")
    assert type(caught.value) is kind
    assert (caught.value.errno, caught.value.why) == (number, why)


def test_warning_about_udev_is_not_taken_for_the_reason() -> None:
    warning = "Udev is running and DM_DISABLE_UDEV environment variable is set. Bypassing udev"
    said = f"{warning}\nInvalid format on line 1 of table on stdin.\nCommand failed.\n"
    with pytest.raises(DmFailed, match="Invalid format on line 1"):
        backend(Program(load=(1, "", said))).load("x", Table.parse("0 8 zero"))


def test_table_goes_by_stdin_and_names_after_dashes() -> None:
    program = Program(info=(0, "x/DMCOPY-x/254/0/0/0/1/L--w\n", ""))
    table = Table.parse("0 8 zero\n8 8 error")
    dm = backend(program)
    dm.create("x", "DMCOPY-x", table)
    dm.load("x", table, read_only=True)
    dm.create("y", "")
    assert program.seen[0] == (("create", "--uuid", "DMCOPY-x", "--", "x"), f"{table}\n")
    assert program.seen[2] == (("load", "--readonly", "--", "x"), f"{table}\n")
    assert program.seen[3] == (("create", "--notable", "--", "y"), None)


@pytest.mark.parametrize(
    ("uuid", "extra"), [("DMCOPY-x", ()), ("LVM-x", ("--noudevsync", "--readahead", "none"))]
)
def test_foreign_device_is_resumed_without_udev(uuid: str, extra: tuple[str, ...]) -> None:
    program = Program(info=(0, f"x/{uuid}/254/0/0/0/1/L--w\n", ""))
    backend(program).resume("x", lockfs=False, flush=False)
    assert program.seen[-1][0] == ("resume", "--nolockfs", "--noflush", *extra, "--", "x")


def test_status_is_read_word_for_word() -> None:
    text = "0 100 linear \n100 8 snapshot 16/256 16\n108 8 snapshot Invalid\n"
    program = Program(status=(0, text, ""))
    assert backend(program).status("x", flush=False) == [
        DmStatus(0, 100, "linear", ""),
        DmStatus(100, 8, "snapshot", "16/256 16"),
        DmStatus(108, 8, "snapshot", "Invalid"),
    ]
    assert program.seen[0][0] == ("status", "--noflush", "--", "x")
    assert backend(Program(status=(0, "\n", ""))).status("x") == []


def test_versions_targets_and_deps_are_read() -> None:
    version = "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.47.0\n"
    targets = "striped          v1.6.0\nsnapshot-origin  v1.9.0\n"
    deps = "2 dependencies\t: (7, 1) (1, 0)\n"
    program = Program(version=(0, version, ""), targets=(0, targets, ""), deps=(0, deps, ""))
    dm = backend(program)
    assert dm.version() == (4, 47, 0)
    assert dm.targets() == {"striped": (1, 6, 0), "snapshot-origin": (1, 9, 0)}
    assert dm.deps("x") == ["7:1", "1:0"]
    assert backend(Program(deps=(0, "0 dependencies\t:\n", ""))).deps("x") == []


def test_wait_that_is_killed_by_its_limit_gives_none() -> None:
    info = (0, "x/DMCOPY-x/254/0/0/5/1/L--w\n", "")
    program = Program(info=info, wait=(-9, "", ""))
    assert backend(program).wait("x", 5, timeout=0.1) is None
    assert backend(program).wait("x", 4, timeout=0.1) == 5


def test_lower_device_that_is_missing_is_not_a_missing_dm_device() -> None:
    program = Program(
        info=(0, "x/DMCOPY-x/254/0/0/0/1/L--w\n", ""),
        load=failed("reload", "No such device or address"),
        create=failed("reload", "No such device or address"),
    )
    for call in (
        lambda: backend(program).load("x", Table.parse("0 8 zero")),
        lambda: backend(program).create("x", "DMCOPY-x", Table.parse("0 8 zero")),
    ):
        with pytest.raises(DmFailed) as caught:
            call()
        assert type(caught.value) is DmFailed
