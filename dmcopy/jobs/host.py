"""What a job works with on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.sysfs import Sysfs


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a job works with on this machine; *dm* is None without device-mapper."""

    dm: Dm | None
    sysfs: Sysfs
    run: Commander
    places: Places
