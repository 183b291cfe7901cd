"""A step that holds one origin, with a dead man who is there before anything else is held."""

from __future__ import annotations

from dmcopy.stack.deadman import Sentry
from dmcopy.stack.plan import Step


class GateStep(Step):
    """What the begin gates have in common, however the snapshot comes about."""

    def __init__(self, origin: str, limit: float) -> None:
        """*origin* is a dm name, *limit* the longest hold in seconds."""
        self._held = origin
        self._limit = limit
        self._sentry: Sentry | None = None

    def get_ready(self) -> None:
        """Start the dead man: it takes a hundred times as long as the hold."""
        self._sentry = Sentry([self._held], limit=self._limit)
        self._sentry.ready()

    def stand_down(self) -> None:
        """End him; twice is fine."""
        if self._sentry is not None:
            self._sentry.end()
            self._sentry = None
