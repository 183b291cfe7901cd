"""A worker that flushes nothing: ``python -m tests.cuts.unflushed`` (see `broken`)."""

from __future__ import annotations

from dmcopy.destinations.block import BlockSession
from dmcopy.jobs.worker import main


def _nothing(_self: BlockSession) -> None:
    return


if __name__ == "__main__":
    BlockSession.flush = _nothing  # type: ignore[method-assign, assignment] # on purpose
    main()
