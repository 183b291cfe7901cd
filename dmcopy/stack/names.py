"""How the devices of a job are called, so that anyone can tell whose they are.

dm name ``dmcopy-<job>-<role>``, dm uuid ``DMCOPY-<job>-<role>``.  The kernel's limits are
DM_NAME_LEN 128 and DM_UUID_LEN 129 with the final NUL (include/uapi/linux/dm-ioctl.h).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple

from dmcopy.errors import UsageError
from dmcopy.kernel.dm import OURS

_JOB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Role(StrEnum):
    """What a device of ours is for."""

    SOURCE = "source"
    COW = "cow"
    SNAP = "snap"
    GATE = "gate"
    BRAKE = "brake"
    METER = "meter"
    LEG = "leg"


class Owned(NamedTuple):
    """Whose device it is, as read from its uuid."""

    job: str
    role: Role


def check_job(job: str) -> str:
    """Give *job* back; raises `UsageError` when it cannot name a job."""
    if _JOB.fullmatch(job) is None:
        raise UsageError(
            f"'{job}' cannot name a job: use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return job


def device_name(job: str, role: Role) -> str:
    """Give the dm name."""
    return f"dmcopy-{job}-{role}"


def device_uuid(job: str, role: Role) -> str:
    """Give the dm uuid."""
    return f"{OURS}{job}-{role}"


def owner(uuid: str) -> Owned | None:
    """Read a dm uuid; None when the device is not ours."""
    if not uuid.startswith(OURS):
        return None
    job, _, role = uuid.removeprefix(OURS).rpartition("-")
    try:
        return Owned(job, Role(role)) if job else None
    except ValueError:
        return None
