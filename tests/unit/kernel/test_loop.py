"""Setting up a loop device against a pretended kernel; tests/lab has the real one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from dmcopy.kernel import loop
from dmcopy.kernel.loop import LoopDevice


class Kernel:
    """Answers the ioctls; *busy* times another process takes the free device first."""

    def __init__(self, *, busy: int = 0, old: bool = False) -> None:
        self.busy, self.old = busy, old
        self.asked: list[int] = []
        self.flags = 0

    def ioctl(self, _fd: int, request: int, argument: int | bytes = 0) -> int:
        self.asked.append(request)
        if request == loop.LOOP_CTL_GET_FREE:
            return 5
        if request in (loop.LOOP_CONFIGURE, loop.LOOP_SET_FD) and self.busy:
            self.busy -= 1
            raise OSError(errno.EBUSY, "busy")
        if request == loop.LOOP_CONFIGURE:
            if self.old:
                raise OSError(errno.EINVAL, "invalid")
            assert isinstance(argument, bytes)
            assert len(argument) == 304  # sizeof(struct loop_config)
            assert struct.unpack_from("=I", argument, 4) == (512,)
            (self.flags,) = struct.unpack_from("=I", argument, 8 + 52)
        if request == loop.LOOP_SET_STATUS64:
            assert isinstance(argument, bytes)
            assert len(argument) == 232  # sizeof(struct loop_info64)
            (self.flags,) = struct.unpack_from("=I", argument, 52)
        return 0


@pytest.fixture
def dev(tmp_path: Path) -> str:
    (tmp_path / "loop-control").touch()
    (tmp_path / "loop5").touch()
    (tmp_path / "file").write_bytes(bytes(4096))
    return str(tmp_path)


def attach(kernel: Kernel, dev: str, monkeypatch: pytest.MonkeyPatch, **how: Any) -> LoopDevice:
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return LoopDevice.attach(f"{dev}/file", dev=dev, **how)


def test_direct_io_and_autoclear_are_asked_for(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    with attach(kernel, dev, monkeypatch) as device:
        assert device.path == f"{dev}/loop5"
    assert kernel.flags == loop.LO_FLAGS_DIRECT_IO | loop.LO_FLAGS_AUTOCLEAR
    assert loop.LOOP_CLR_FD not in kernel.asked  # the last close does it


def test_read_only_and_lasting_when_told_so(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    device = attach(kernel, dev, monkeypatch, direct=False, autoclear=False, read_only=True)
    assert kernel.flags == loop.LO_FLAGS_READ_ONLY
    device.detach()
    device.detach()
    assert kernel.asked.count(loop.LOOP_CLR_FD) == 1


def test_lost_race_for_the_free_device_is_run_again(
    dev: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(busy=3)
    attach(kernel, dev, monkeypatch).detach()
    assert kernel.asked.count(loop.LOOP_CTL_GET_FREE) == 4


def test_race_that_is_always_lost_ends(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="taken by others"):
        attach(Kernel(busy=1000), dev, monkeypatch)
    assert len(os.listdir("/proc/self/fd")) == before


def test_kernel_without_loop_configure_is_asked_in_steps(
    dev: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(old=True)
    attach(kernel, dev, monkeypatch).detach()
    assert kernel.asked[2:] == [
        loop.LOOP_SET_FD,
        loop.LOOP_SET_STATUS64,
        loop.LOOP_SET_DIRECT_IO,
    ]


def test_device_can_be_left_to_its_other_users(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    device = attach(kernel, dev, monkeypatch, autoclear=False)
    device.leave()
    assert loop.LOOP_CLR_FD not in kernel.asked


def test_device_is_told_that_its_file_has_grown(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    before = len(os.listdir("/proc/self/fd"))
    loop.set_capacity(f"{dev}/loop5")
    assert kernel.asked == [0x4C07]
    assert len(os.listdir("/proc/self/fd")) == before
