"""No guest: run the command on this very machine, where it has device-mapper.

Only when it is asked for by name (``--engine host``, ``LAB_ENGINE=host``): tests make and
remove devices of this machine then.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from typing import Final

from lab.guest import Job, LabError, Launch


class Host:
    """The engine."""

    name = "host"

    def missing(self) -> list[str]:
        """Say so when the kernel has no device-mapper."""
        subprocess.run(["modprobe", "-q", "dm-mod"], check=False)  # it may be built in
        try:
            os.close(os.open("/dev/mapper/control", os.O_RDWR))  # the node may have no driver
        except OSError:
            return ["a kernel with device-mapper"]
        return []

    def variables(self) -> dict[str, str]:
        """Give none."""
        return {}

    def settings(self, job: Job) -> dict[str, str]:
        """Give nothing: there is no start."""
        del job
        return {}

    def disk_names(self, count: int) -> list[str]:
        """Refuse disks: tests make loop devices of their own."""
        if count:
            raise LabError("the host engine attaches no disks")
        return []

    def launch(self, job: Job, stack: ExitStack) -> Launch:
        """Give a shell with the command's script."""
        del stack
        script = str(job.directory / "command")
        if job.terminal is None:
            return Launch(argv=["sh", script], stdout=job.output, direct=True)
        tty = f'exec setsid --ctty --wait sh {script} <"$0" >"$0" 2>&1'
        return Launch(argv=["sh", "-c", tty, job.terminal.path], direct=True)


ENGINE: Final = Host()
