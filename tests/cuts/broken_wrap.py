"""``dmcopy wrap --up``, broken on purpose: the wrap is shown before its snapshot is back.

And nobody looks whether somebody wrote in between.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dmcopy.cli.common import Context
from dmcopy.jobs import wraps
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.wrap_up import device_under, jobs_on
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.stack import evidence, reassemble, wrap
from dmcopy.stack.plan import Plan
from dmcopy.units import to_sectors

_SECONDS = 3.0  # in which the application writes past the snapshot


def main(name: str) -> None:
    """Show it, let the application write, and put the snapshot under it then."""
    host = Context().host()
    assert isinstance(host.dm, DmIoctl)
    known = wraps.config_of(host).find(name)
    assert known is not None
    devno = device_under(known, host)
    original = wrap.wrap_table(to_sectors(known.size), devno)
    wrap.plain(host.dm, name, original).run(lambda what: None)
    Path("/run/broken").write_text("shown")
    while not Path("/data/2-1").exists():
        time.sleep(0.1)
    time.sleep(_SECONDS)
    evidence.refuse_written.__code__ = (lambda devno, path, sysfs: None).__code__
    step: Any = reassemble.NobodyWrote  # Any: it is broken on purpose
    step.do = lambda self: None
    from dmcopy.jobs.resume import prepare_resume
    from dmcopy.jobs.standing_again import Reassembled

    with Journal(host.places.journal) as journal:
        job = jobs_on(name, journal)[0].name
        prepared = prepare_resume(job, host, journal, verify=False)
        standing = prepared.standing
        assert isinstance(standing, Reassembled)
        plan: Plan = standing._inner._spliced.plan
        plan.run(lambda what: None)
        record = journal.record(job)
        assert record is not None
        facts = {**(record.facts or {}), **prepared.facts(host.sysfs)}
        journal.set_facts(job, {**facts, "boot_id": host.sysfs.boot_id()})
    Path("/run/broken").write_text("done")


if __name__ == "__main__":
    main(sys.argv[1])
