"""What is decided about the md arrays that a source lies on.

A copy reads the array, never its members, and md gives right data while it recovers, checks and
resyncs (KERNEL.md 9).  Only where the members of a *mirror* may differ does it matter which one md
takes: then what is read can change when a member fails, or when the resync comes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dmcopy.errors import Refused
from dmcopy.kernel.md import Action, Array
from dmcopy.stack.md_pause import PAUSABLE
from dmcopy.units import format_size

NOT_RUNNING: Final = frozenset({"clear", "inactive", "suspended", "broken"})
DIFFER: Final = frozenset({Action.RESYNC, Action.REPAIR})  # while these run, members may


def refuse(arrays: Sequence[Array]) -> None:
    """Raise `Refused` for an array that cannot be copied as of one instant."""
    for array in arrays:
        if array.action == Action.RESHAPE:
            raise Refused(
                f"{array.path} is being reshaped, and its data moves",
                way_out=f"wait for it: mdadm --wait {array.path}",
            )
        if array.state in NOT_RUNNING:
            raise Refused(
                f"{array.path} is {array.state}, so it cannot be read",
                way_out=f"see: mdadm --detail {array.path}",
            )


def treatment(policy: str, array: Array) -> str:
    """Give what is done about what the array does now: wait, pause, ignore, or "" for nothing."""
    if array.action not in PAUSABLE:
        return ""
    if policy != "auto":
        return policy
    return "wait" if array.is_mirror and array.action in DIFFER else "ignore"


def lines(policy: str, arrays: Sequence[Array]) -> tuple[str, ...]:
    """Give what is going to be done about the arrays as shell lines, for a plan."""
    found = []
    for array in arrays:
        match treatment(policy, array):
            case "wait":
                found.append(f"mdadm --wait {array.path}  # {array.action}")
            case "pause":
                found.append(
                    f"echo frozen > /sys/block/{array.name}/md/sync_action  # pauses its "
                    f"{array.action}, which is started again at the end"
                )
            case "ignore":
                found.append(f"# {array.path}: its {array.action} goes on")
    return tuple(found)


def about_stripes(stripe: int, segment: int) -> str:
    """Say why segments are not made of whole stripes."""
    return (
        f"segments of {format_size(segment)} do not begin with a stripe of the array "
        f"({format_size(stripe)}), for that would make them too large: reading may be slower; a "
        "larger --segment, or another --chunk, helps"
    )
