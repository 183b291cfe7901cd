"""udev, where it runs and where it does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from dmcopy.kernel import udev


def test_udev_runs_where_its_control_socket_is(tmp_path: Path) -> None:
    assert not udev.is_running(str(tmp_path))
    (tmp_path / "control").touch()
    assert udev.is_running(str(tmp_path))


def test_without_udev_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    (tmp_path / "queue").touch()
    assert udev.settle(0, run=str(tmp_path))


def test_settle_waits_for_the_queue_and_not_longer_than_told(tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    queue = tmp_path / "queue"
    queue.touch()
    begun = time.monotonic()
    assert not udev.settle(0.05, run=str(tmp_path))
    assert 0.05 <= time.monotonic() - begun < 2
    timer = threading.Timer(0.1, queue.unlink)
    timer.start()
    assert udev.settle(5, run=str(tmp_path))
    timer.join()


def test_unknown_device_has_no_properties() -> None:
    assert udev.properties("4095:1048575") == {}
