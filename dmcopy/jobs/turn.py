"""A limit on how many jobs of this host run at a time, for those that can wait for their turn.

A turn is a lock file, held by the job's own process: it ends with the process however that ends,
and needs nobody who keeps count.  Who is in a hurry (a person at a terminal) takes no turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dmcopy.errors import Refused
from dmcopy.jobs.lock import JobLock

_POLL: Final = 0.5  # seconds


@contextmanager
def turn(
    directory: Path,
    limit: Callable[[], int | None],
    wait: Callable[[int], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Run the body in a turn, as soon as fewer than *limit* others have one.

    *limit* is asked again and again, for it can be changed; None: there is none.  *wait* is called
    once with it when there is none free.  Raises OSError.
    """
    with ExitStack() as held:
        told = False
        while True:
            most = limit()
            if most is None or _take(directory, most, held):
                break
            if not told:
                told = True
                wait(most)
            sleep(_POLL)
        yield


def _take(directory: Path, most: int, held: ExitStack) -> bool:
    for number in range(most):
        try:
            held.enter_context(JobLock(directory, str(number)))
        except Refused:  # another has it
            continue
        return True
    return False
