"""What is refused while somebody else has a device open for a moment, tried until it is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def again(
    work: Callable[[], T],
    *,
    on: type[E],
    seconds: float,
    pause: float = 0.05,
    is_passing: Callable[[E], bool] = lambda _: True,
) -> T:
    """Give what *work* gives; where it raises *on*, try it again, *pause* seconds later.

    udev, and what its rules start, look into a device whenever it is new or was written to, and
    the descriptors of a killed process close only when its last I/O has ended.  After *seconds*
    what *work* raised is raised, and at once what is not *is_passing*.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return work()
        except on as exc:
            if not is_passing(exc) or time.monotonic() >= end:
                raise
            log.debug("tried again: %s", exc)
        time.sleep(pause)
