"""mdadm, where sysfs is not enough: it keeps the members' superblocks in order.

Manual: mdadm(8).
"""

from __future__ import annotations

from typing import Final

from dmcopy.errors import CommandFailed
from dmcopy.kernel.command import Commander
from dmcopy.kernel.patience import again

_BUSY_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 0.1
_PROGRAM: Final = "mdadm"


class Mdadm:
    """Changes arrays; raises `CommandFailed` and `ProgramMissing`."""

    def __init__(self, run: Commander) -> None:
        self._run = run

    @property
    def is_installed(self) -> bool:
        """Tell whether there is such a program."""
        return self._run.find(_PROGRAM) is not None

    def grow(self, array: str, disks: int) -> None:
        """Have the array (a path) consist of *disks* members."""
        self._patiently(*grow_argv(array, disks))

    def remove(self, array: str, member: str) -> None:
        """Take a failed member out of the array; both are paths."""
        self._patiently(*remove_argv(array, member))

    def add_spare(self, array: str, member: str) -> None:
        """Make a device a spare; what it holds is lost."""
        self._patiently(*add_argv(array, member))

    def uuid(self, array: str) -> str:
        """Give the array's UUID in mdadm's spelling."""
        done = self._run.run(_PROGRAM, "--detail", "--export", array, changes=False)
        return _exported(done.stdout)

    def member_uuid(self, member: str) -> str:
        """Give the UUID of the array that a device says it belongs to, "" when to none."""
        done = self._run.run(_PROGRAM, "--examine", "--export", member, ok=(0, 1), changes=False)
        return _exported(done.stdout)

    def _patiently(self, *argv: str) -> None:
        """Run what md refuses while a request or a resync is just ending."""
        again(
            lambda: self._run.run(*argv),
            on=CommandFailed,
            seconds=_BUSY_SECONDS,
            pause=_PAUSE_SECONDS,
            is_passing=lambda exc: "busy" in exc.stderr.lower(),
        )


def grow_argv(array: str, disks: int) -> list[str]:
    """Give the command line of `Mdadm.grow`."""
    return [_PROGRAM, "--grow", array, f"--raid-devices={disks}"]


def remove_argv(array: str, member: str) -> list[str]:
    """Give the command line of `Mdadm.remove`."""
    return [_PROGRAM, "--manage", array, "--remove", member]


def add_argv(array: str, member: str) -> list[str]:
    """Give the command line of `Mdadm.add_spare`."""
    return [_PROGRAM, "--manage", array, "--add-spare", member]


def _exported(text: str) -> str:
    lines = (line.partition("=") for line in text.splitlines())
    return next((value for key, _, value in lines if key == "MD_UUID"), "")
