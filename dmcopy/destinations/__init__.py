"""Where a copy goes to: one module a kind, one contract for all (tests/contract)."""

from __future__ import annotations

import os
import re
import stat

from dmcopy.destinations.base import Destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination
from dmcopy.errors import Refused, UsageError

KINDS: tuple[type[Destination], ...] = (BlockDestination, ImageDestination)

_KIND = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9+-]*):(?P<rest>.*)", re.DOTALL)


def parse(text: str) -> Destination:
    """Read a destination as the user wrote it: ``KIND:REST``, or a bare path.

    A bare path that is a block device is ``block:``, any other ``image:``.  A word before a
    colon is always a kind; a relative file name with a colon in it is written
    ``image:./a:b``.  Raises `UsageError`, and `Refused` for a bare path below /dev that is
    no device, because making a file there is never what was meant.
    """
    match = _KIND.fullmatch(text)
    if match is None:
        return _bare(text)
    for kind in KINDS:
        if kind.kind == match["kind"]:
            return kind.parse(match["rest"])
    known = ", ".join(kind.kind for kind in KINDS)
    raise UsageError(
        f"'{match['kind']}' is not a kind of destination (there are: {known}); "
        f"for a file of that name write image:./{text}"
    )


def _bare(text: str) -> Destination:
    if not text:
        raise UsageError("the destination is empty")
    path = os.path.abspath(text)
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return BlockDestination.parse(text)
    except OSError:
        pass  # not there: a file that is to be made
    if path.startswith("/dev/"):
        raise Refused(f"there is no block device {path}", way_out="look for it with lsblk")
    return ImageDestination.parse(text)
