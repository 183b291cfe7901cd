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

TAG: Final = "dmcopy"  # of every LV of ours

# What LVM keeps for itself in the name of an LV (lib/metadata/lv_manip.c and lvm(8), "Valid
# names"): these anywhere in it.
_RESERVED: Final = (
    "_cdata",
    "_cmeta",
    "_corig",
    "_cvol",
    "_imeta",
    "_iorig",
    "_mimage",
    "_mlog",
    "_pmspare",
    "_rimage",
    "_rmeta",
    "_tdata",
    "_tmeta",
    "_vdata",
    "_vorigin",
    "_wcorig",
)
_LV_PREFIX: Final = "dmcopy_"
# libdm doubles the hyphens inside of the names and puts one between VG and LV
_VG_AND_LV: Final = re.compile(r"(?:[^-]|--)+-(?P<lv>[^-](?:[^-]|--)*)")
_LVM_UUID: Final = re.compile(r"LVM-[A-Za-z0-9]{64}")  # no suffix: no hidden layer of an LV
_JOB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Role(StrEnum):
    """What a device of ours is for."""

    SOURCE = "source"
    COW = "cow"
    SPARE = "spare"  # claims the COW devices whose turn has not come
    SNAP = "snap"
    GATE = "gate"
    BRAKE = "brake"
    METER = "meter"
    LEG = "leg"
    TWIN = "twin"  # a finished copy that gets another identity (stack.twin) ...
    PART = "part"  # ... and a partition of it


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


def lv_name(job: str) -> str:
    """Give the name of a job's LV; a job has no ``+`` in its name, so that no two are alike."""
    name = f"{_LV_PREFIX}{job}"
    return name.replace("_", "+") if any(word in name for word in _RESERVED) else name


def lv_tag(job: str) -> str:
    """Give the tag that says whose LV it is."""
    return f"{TAG}-job-{job}"


def lv_owner(name: str, uuid: str) -> str | None:
    """Read dm name and dm uuid of an active LV; gives the job that its name names, or None.

    A name only: what is removed has to carry the tag.
    """
    match = _VG_AND_LV.fullmatch(name)
    if match is None or _LVM_UUID.fullmatch(uuid) is None:
        return None
    lv = match["lv"].replace("--", "-").replace("+", "_")
    job = lv.removeprefix(_LV_PREFIX)
    return job if job != lv and _JOB.fullmatch(job) else None
