"""What the applications on a source need at the begin time: which hooks, and what is frozen.

One for a copy; or one for all volumes of a group, whose leader alone goes around the instant.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from dmcopy.errors import Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.spec import CopySpec
from dmcopy.stack.charge import Charge
from dmcopy.stack.discover import Source
from dmcopy.stack.hook_file import find_hooks
from dmcopy.stack.keeper import Keeper
from dmcopy.stack.mounts import Mounts, all_points, lies_on, mounts_over

_NOTHING: Final = Mounts((), (), ())


class Application:
    """What is to be done around the begin time of *sources*; changes nothing by itself."""

    def __init__(self, spec: CopySpec, sources: Sequence[Source], host: Host) -> None:
        """Look for the hooks; raises `UsageError`, and `Refused` for one that is not safe.

        *spec* says which hooks, how long they may take and whether to freeze.
        """
        self._spec = spec
        self._sources = tuple(sources)
        self._host = host
        directory = host.places.hooks if spec.hook_directory else None
        self.hooks = find_hooks(directory, spec.hooks)

    def charge(self) -> Charge:
        """Look what is mounted now; raises `Refused` where it cannot be frozen."""
        spec, sysfs, places = self._spec, self._host.sysfs, self._host.places
        devices = [source.devno for source in self._sources]
        mounts = mounts_over(sysfs, devices) if spec.freeze == "auto" else _NOTHING
        ours = lies_on(sysfs, str(places.keepers), mounts.above)
        if ours is not None:
            raise Refused(
                f"{places.runtime} lies on {ours}, which is to be frozen while it is written",
                way_out="put it elsewhere (DMCOPY_RUN_DIR), or use --freeze none",
            )
        return Charge(
            job=spec.name,
            record=str(places.keepers / f"{spec.name}-{os.getpid()}-{time.monotonic_ns()}"),
            hooks=self.hooks,
            environment={
                "DMCOPY_JOB": spec.name,
                "DMCOPY_SOURCES": "\n".join(source.path for source in self._sources),
                # of all devices above, which takes a while: only hooks read it
                "DMCOPY_MOUNTS": "\n".join(all_points(sysfs, devices) if self.hooks else ()),
                "DMCOPY_HOOK_TIMEOUT": f"{spec.hook_timeout:g}",
                "DMCOPY_STATE_DIR": str(places.state),
            },
            timeout=spec.hook_timeout,
            freeze=mounts.above,
            hidden=mounts.hidden,
            limit=spec.hold_limit,
        )

    def keeper(self) -> Keeper:
        """Give what goes around the instant, once."""
        return Keeper(self.charge)
