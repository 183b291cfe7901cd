"""The agent's metrics: what its API gives, what is scraped from loopback, and a file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from dmcopy.agent.config import Config
from dmcopy.errors import DmcopyError
from dmcopy.jobs.metrics import registry_of
from dmcopy.report.jobs_now import Now

if TYPE_CHECKING:  # not every host has it
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

_FILE_SECONDS: Final = 15.0  # from one writing of the file to the next, at least


class Metrics:
    """All jobs as Prometheus reads them, of a *look* (`jobs.glance`) each time."""

    def __init__(
        self,
        look: Callable[[], Now],
        config: Config,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._config = config
        self._clock = clock
        self._registry: CollectorRegistry | None = None
        self._written = -_FILE_SECONDS
        self._failure = ""  # of the last writing

    def text(self) -> str:
        """Give them; raises `DmcopyError` when prometheus-client is not installed."""
        metrics = self._made()
        from dmcopy.report.metrics import text

        return text(metrics).decode()

    def _made(self) -> CollectorRegistry:
        if self._registry is None:
            self._registry = registry_of(self._look)
        return self._registry

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Have them scraped where the settings say so; raises `DmcopyError` where it cannot."""
        if not self._config.wants_metrics:
            yield
            return
        metrics = self._made()  # what is asked for and cannot be had is said at the start
        if self._config.listen is None:
            yield
            return
        from dmcopy.report.metrics_http import serve

        with serve(*self._config.listen, metrics):
            yield

    def tick(self) -> None:
        """Write the file where the settings name one, and it is time; a failure is logged once."""
        if self._config.textfile is None or self._clock() - self._written < _FILE_SECONDS:
            return
        self._written = self._clock()
        from dmcopy.report.metrics import text, write_textfile

        try:
            write_textfile(self._config.textfile, text(self._made()))
        except DmcopyError as exc:
            if str(exc) != self._failure:
                log.error("%s", exc)
            self._failure = str(exc)
        else:
            self._failure = ""
