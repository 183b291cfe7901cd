"""Who only looks never meets a failure, whatever jobs do meanwhile."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from dmcopy.core.table import Table
from dmcopy.jobs import wraps
from dmcopy.jobs.glance import glance
from dmcopy.jobs.host import open_host
from dmcopy.jobs.look import look
from dmcopy.jobs.overview import overview
from dmcopy.jobs.spec import Places
from dmcopy.kernel.dm import DmInfo
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.dmrequest import dm_ioctl
from tests.lab.scene import Scene, fill_fork, scene, until
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 4
PAUSE = 0.003
KINDS = [(), ("--gate", "segment"), ("--on-full", "hold"), ("--no-retire",), ("--keep",), ()]


class GivesWay(DmIoctl):
    """Sleeps before each look, so that jobs get to do something between any two."""

    def _ask_info(self, head: dm_ioctl) -> DmInfo | None:
        time.sleep(PAUSE)
        return super()._ask_info(head)

    def table(self, name: str, *, inactive: bool = False) -> Table:
        time.sleep(PAUSE)
        return super().table(name, inactive=inactive)

    def deps(self, name: str) -> list[str]:
        time.sleep(PAUSE)
        return super().deps(name)


def look_on(at: Scene, stop: Path, told: Path) -> int:
    """Look, in a process of its own, until *stop* is there; *told* gets what was seen."""
    gc.freeze()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(at.environment)
        fill_fork()
        seen: Counter[str] = Counter()
        host = open_host(Places.from_environment(), dm=GivesWay(), load=False)
        while not stop.exists():
            for view in overview(host):
                seen[str(view.state)] += 1
                if view.record is not None and view.record.facts is not None:
                    image = look(view, host, sleep=lambda _: None)
                    seen["map"] += image.chunk is not None
            glance(host)
            wraps.views(host)
            told.write_text(repr(dict(seen)))
        status = 0
    except BaseException:
        told.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def test_looking_while_jobs_come_and_go_is_no_failure() -> None:
    with scene("looking") as at:
        origin = at.origin(MIB)
        at.hold_open(origin)
        table = sh("dmsetup", "table", origin)
        stop, told = at.folder / "stop", at.folder / "told"
        pid = look_on(at, stop, told)
        try:
            until(told.exists, "it looks")
            for number, options in enumerate(KINDS):
                name = f"j{number}"
                destination = f"image:{at.folder}/{name}.img"
                ran = at.fork("copy", origin, destination, "--name", name, "--json", *options)
                assert ran.status == 0, (ran, told.read_text())
                if "--keep" in options:
                    assert at.fork("cancel", name).status == 0
                at.assert_back(origin, table)
        finally:
            stop.touch()
            _, status = os.waitpid(pid, 0)
        seen = told.read_text()
        assert status == 0, seen
        assert "'ended'" in seen, seen
        assert "'map': 0" not in seen, seen
