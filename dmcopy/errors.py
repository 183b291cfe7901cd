"""Every error of ours: one class for each way a caller reacts, not for each place.

The exit status of the command line (DESIGN.md section 8) stands on the class.  A message
says what failed, on which device, and what the kernel or the tool answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class DmcopyError(Exception):
    """The work failed; the machine is as it was before."""

    exit_status: int = 1
    kind: ClassVar[str] = "failed"


class UsageError(DmcopyError):
    """The command's words are wrong; nothing was looked at or changed."""

    exit_status = 2
    kind = "usage"


class Refused(DmcopyError):
    """Doing it could destroy data; nothing was changed.

    *why* is the reason, *way_out* what the administrator can do instead.
    """

    exit_status = 3
    kind = "refused"

    def __init__(self, why: str, *, way_out: str = "") -> None:
        super().__init__(f"{why}; {way_out}" if way_out else why)
        self.why = why
        self.way_out = way_out


class PointInTimeLost(DmcopyError):
    """The begin-time image no longer exists, so the copy cannot be finished."""

    exit_status = 4
    kind = "point-in-time-lost"


class Interrupted(DmcopyError):
    """Stopped by a signal or a person; what can be gone on with is kept."""

    exit_status = 5
    kind = "interrupted"


class WorkerDied(Interrupted):
    """The process that moves the blocks was killed, or had a bug."""

    kind = "worker-died"


class Cancelled(Interrupted):
    """Given up by a person; everything was undone."""

    kind = "cancelled"


class EndedElsewhere(DmcopyError):
    """Another process failed; message and *exit_status* are those it gave."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class LeftBehind(DmcopyError):
    """Something could not be undone; *left* names each thing and why.

    Raised from the error that made the undo necessary, where there was one.
    """

    exit_status = 6
    kind = "left-behind"

    def __init__(self, left: Sequence[str], *, job: str | None = None, mend: str = "") -> None:
        mend = mend or (f"dmcopy rescue {job}" if job else "dmcopy rescue")
        super().__init__(f"left behind: {'; '.join(left)}; run: {mend}")
        self.left = tuple(left)


class HoldLimitExceeded(DmcopyError):
    """Holding the origin's writes took longer than allowed; the hold was given up."""

    kind = "hold-limit"


class HookFailed(DmcopyError):
    """A hook, or what it held, was not there at the begin time; nothing was begun."""

    kind = "hook"


class CowCannotGrow(DmcopyError):
    """The COW device cannot be made larger; it goes on as large as it is."""

    kind = "cow-cannot-grow"


class SourceFailed(DmcopyError):
    """The source (or the COW device) could not be read."""

    kind = "source"


class DestinationFailed(DmcopyError):
    """The destination could not be opened, written, flushed or read back."""

    kind = "destination"


class VerifyFailed(DmcopyError):
    """What the destination holds is not what was copied."""

    kind = "verify"


class DmFailed(DmcopyError):
    """device-mapper refused *verb* on *name*.

    *errno* is the kernel's answer, or None where the tool gave only words.
    """

    kind = "device-mapper"

    def __init__(self, verb: str, name: str, why: str, *, errno: int | None = None) -> None:
        super().__init__(f"cannot {verb} dm device {name}: {why}")
        self.verb = verb
        self.name = name
        self.why = why
        self.errno = errno


class DmMissing(DmFailed):
    """There is no such dm device."""


class DmBusy(DmFailed):
    """The dm device is in use; udev may let go of it in a moment."""


class CommandFailed(DmcopyError):
    """A program ended with a status that the caller does not accept, or timed out.

    *status* is None when the program was killed because its time was up.
    """

    kind = "command"

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        said = stderr.strip().splitlines()
        how = "timed out" if status is None else f"returned {status}"
        super().__init__(f"{argv[0]} {how}" + (f": {said[-1]}" if said else ""))
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr


class ProgramMissing(DmcopyError):
    """A program that we need is not installed."""

    kind = "program-missing"


class JournalDamaged(DmcopyError):
    """The journal at *path* cannot be believed: *what* is wrong with it.

    Not a word of it was used.
    """

    kind = "journal"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"the journal {path} is damaged: {what}; move it away, with {path}-wal and {path}-shm: "
            "running copies are not harmed, and `dmcopy rescue` works without it"
        )
        self.path = path
        self.what = what


class IdentityFailed(DmcopyError):
    """The copy is complete, but what was to give it an identity of its own failed.

    Its identity is its source's, or half changed: the message says which.
    """

    exit_status = 7
    kind = "identity"
