"""What the agent tells of the jobs: by its API, on loopback, in a file."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from dmcopy.agent.config import Config
from dmcopy.agent.metrics import Metrics
from dmcopy.errors import DmcopyError
from tests.unit.report import made_up_jobs as made

COPYING = 'dmcopy_jobs{state="copying"} 2.0'


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_metrics_are_given_and_served() -> None:
    port = _free_port()
    metrics = Metrics(made.all_kinds, Config(listen=("127.0.0.1", port)))
    assert COPYING in metrics.text()
    with metrics.serving(), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert COPYING in answer.read().decode()


def test_file_is_written_now_and_then_and_a_failure_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    folder = tmp_path / "later"
    file = folder / "dmcopy.prom"
    metrics = Metrics(made.all_kinds, Config(textfile=file), clock=lambda: now[0])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            metrics.tick()
            now[0] += 16
    assert len(caplog.records) == 1
    folder.mkdir()
    metrics.tick()
    first = file.stat().st_ino
    assert COPYING in file.read_text()
    now[0] += 14
    metrics.tick()
    assert file.stat().st_ino == first
    now[0] += 1
    metrics.tick()
    assert file.stat().st_ino != first


def test_missing_library_is_an_error_only_where_metrics_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "dmcopy.report.metrics", raising=False)
    with Metrics(made.all_kinds, Config()).serving():
        pass
    wanted = Metrics(made.all_kinds, Config(listen=("127.0.0.1", 1)))
    with pytest.raises(DmcopyError, match="prometheus-client"), wanted.serving():
        pass
    with pytest.raises(DmcopyError, match="prometheus-client"):
        wanted.text()
