"""What is said to systemd and its journal, read back from real sockets."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from dmcopy.kernel import systemd


def _datagrams(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(path))
    listening.settimeout(1)
    return listening


def test_notify_says_each_word_on_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _datagrams(tmp_path / "notify") as listening:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1", "STATUS=watching")
        assert listening.recv(100) == b"READY=1\nSTATUS=watching"


def test_nobody_listens_and_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "not there"))
    systemd.notify("READY=1")
    systemd.journal("said to nobody", {}, path=str(tmp_path / "not there"))


def test_entry_with_lines_goes_with_its_length(tmp_path: Path) -> None:
    with _datagrams(tmp_path / "journal") as listening:
        systemd.journal("two\nlines", {"DMCOPY_JOB": "a=b"}, path=str(tmp_path / "journal"))
        length = struct.pack("<Q", 9)
        assert listening.recv(200) == b"MESSAGE\n" + length + b"two\nlines\nDMCOPY_JOB=a=b\n"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("30000000", "", 30.0), ("30000000", "self", 30.0), ("30000000", "1", None), ("", "", None)],
)
def test_watchdog_is_ours_only(
    usec: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert systemd.watchdog_seconds() == seconds
