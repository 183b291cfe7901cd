"""Events as JSON, one object a line on stdout, ``event`` first."""

from __future__ import annotations

import json
from typing import TextIO

from dmcopy.core.events import Event


class JsonLines:
    """Writes every event at once, so that a reader of a pipe sees it when it happens."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: Event) -> None:
        self._out.write(json.dumps(event.as_json()) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing is held back."""
