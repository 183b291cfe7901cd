"""Has anybody written to a device since the machine was started?  The kernel's counters tell.

Each disk and partition counts its completed writes from the moment it appears.  So a source
whose lowest devices have counted none is as it was when the machine went down.  Where they
cannot tell, because they count other things too, the answer is that it cannot be known.
"""

from __future__ import annotations

from dmcopy.errors import PointInTimeLost
from dmcopy.kernel.sysfs import Sysfs


def refuse_written(devno: str, path: str, sysfs: Sysfs) -> None:
    """Raise `PointInTimeLost` unless nobody has written to *devno* since the machine started."""
    writes = sysfs.writes(devno)
    if writes:
        raise PointInTimeLost(
            f"{path} was written after the machine was started ({writes} writes), when nothing "
            "was saved"
        )
    for lowest in sorted(_lowest(devno, sysfs)):
        name = f"/dev/{sysfs.kname(lowest)}"
        if sysfs.loop_backing_file(lowest):
            raise PointInTimeLost(
                f"{path} lies on the loop device {name}: whether its file was written "
                "after the machine was started cannot be known"
            )
        writes = sysfs.writes(lowest)
        if writes:
            raise PointInTimeLost(
                f"{name} under {path} was written after the machine was started ({writes} "
                "writes), when nothing was saved"
            )


def _lowest(devno: str, sysfs: Sysfs) -> frozenset[str]:
    """Give the devices at the bottom; a partition is one, for it counts for itself."""
    below = sysfs.slaves(devno)
    # An md array counts what is written to it (drivers/md/md.c:md_account_bio); its members count
    # md's own superblocks and a resync too.  Proof: test_md_counts_what_is_written_to_it.
    if not below or sysfs.kname(devno).startswith("md"):
        return frozenset({devno})
    return frozenset().union(*(_lowest(one, sysfs) for one in below))
