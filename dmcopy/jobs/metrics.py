"""The metrics of a host, where the library for them is installed; says so where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dmcopy.errors import DmcopyError
from dmcopy.report.jobs_now import Now

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def check() -> None:
    """Raise `DmcopyError` when prometheus-client is not installed."""
    try:
        from dmcopy.report.metrics import registry  # noqa: F401
    except ImportError as exc:
        raise DmcopyError(
            f"metrics need the Python package prometheus-client ({exc}); install "
            "python3-prometheus-client from Debian, or dmcopy[prometheus] by pip"
        ) from exc


def registry_of(look: Callable[[], Now]) -> CollectorRegistry:
    """Give the metrics of all jobs: of a *look* (`jobs.glance`) each time that they are read.

    Raises `DmcopyError` when prometheus-client is not installed.
    """
    check()
    from dmcopy.report.metrics import registry

    return registry(look)
