"""Metrics over HTTP: on loopback only, and nobody waits for a client that is slow."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.report.jobs_now import Now
from dmcopy.report.metrics import CONTENT_TYPE, registry
from dmcopy.report.metrics_http import MOST, Serving, serve
from lab import prometheus
from tests.unit.report import made_up_jobs as made

_PATIENCE = 30.0


@pytest.fixture
def serving() -> Iterator[Serving]:
    with serve("127.0.0.1", 0, registry(made.all_kinds)) as served:
        yield served


def _get(served: Serving, path: str = "/metrics", timeout: float = 5.0) -> bytes:
    with urlopen(f"http://127.0.0.1:{served.port}{path}", timeout=timeout) as answer:
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        found: bytes = answer.read()
    return found


def test_metrics_are_served_as_they_are_at_the_moment() -> None:
    shown = [Now(), made.all_kinds()]
    with serve("127.0.0.1", 0, registry(lambda: shown.pop(0))) as served:
        assert b'dmcopy_jobs{state="copying"} 0.0' in _get(served)
        assert b'dmcopy_jobs{state="copying"} 2.0' in _get(served, "/metrics?x=y")


def test_it_is_bound_to_loopback_alone(serving: Serving) -> None:
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    port = f":{serving.port:04X} "
    bound = [line.split()[1] for line in table.splitlines() if port in line and " 0A " in line]
    assert bound == [f"0100007F{port.strip()}"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "localhost", "", "8.8.8.8"])
def test_address_that_is_not_loopback_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"loopback|address"):
        serve(address, 0, registry(Now))


def test_port_that_is_taken_is_said(serving: Serving) -> None:
    with pytest.raises(DmcopyError, match=f"port {serving.port}: Address already in use"):
        serve("127.0.0.1", serving.port, registry(Now))
    with pytest.raises(DmcopyError, match="cannot serve metrics"):
        serve("127.0.0.1", 70000, registry(Now))


def test_other_paths_and_words_are_not_found(serving: Serving) -> None:
    for path in ("/", "/metrics/", "/../etc/passwd"):
        with pytest.raises(HTTPError, match="404"):
            _get(serving, path)
    with socket.create_connection(("127.0.0.1", serving.port)) as odd:
        odd.sendall(b"POST /metrics HTTP/1.0\r\n\r\n")
        assert b" 501 " in odd.recv(100)


def test_look_that_fails_is_an_error_and_the_next_one_is_not() -> None:
    fails = [True]

    def look() -> Now:
        if fails:
            fails.pop()
            raise DmcopyError("no")
        return Now()

    with serve("127.0.0.1", 0, registry(look)) as served:
        with pytest.raises(HTTPError, match="500"):
            _get(served)
        assert b"dmcopy_build_info" in _get(served)


def test_slow_and_hostile_clients_keep_nobody_waiting(serving: Serving) -> None:
    with ExitStack() as stack:
        for number in range(4 * MOST):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", serving.port)))
            slow.sendall((b"GET /metrics HTTP/1.1\r\n", b"\0\xff" * 999, b"", b"G")[number % 4])
        started = time.monotonic()
        for _ in range(3):
            assert b"dmcopy_build_info" in _get(serving)
        assert time.monotonic() - started < 3
        named = [thread.name for thread in threading.enumerate()]
        assert sum("process_request_thread" in name for name in named) <= MOST + 4


def test_many_at_a_time_look_one_after_the_other() -> None:
    inside = 0
    most = 0

    def look() -> Now:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return Now()

    with serve("127.0.0.1", 0, registry(look)) as served:
        threads = [threading.Thread(target=_get, args=(served,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def test_closed_server_listens_no_more() -> None:
    served = serve("127.0.0.1", 0, registry(Now))
    _get(served)
    served.close()
    with pytest.raises(URLError):
        _get(served)


@pytest.mark.forks
def test_prometheus_scrapes_it(serving: Serving, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "dmcopy",
                "static_configs": [{"targets": [f"127.0.0.1:{serving.port}"]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    said = tmp_path / "log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [
                prometheus.program("prometheus"), "--config.file=prometheus.yml",
                "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "GOMAXPROCS": "1"},
        )  # fmt: skip
    try:
        found = _query(port, "dmcopy_job_copied_bytes_total", said)
        assert {one["metric"]["job"] for one in found} == {"dmcopy"}  # Prometheus' own label ...
        assert not any(name.startswith("exported_") for one in found for name in one["metric"])
        figures = {one["metric"]["job_name"]: one["value"][1] for one in found}
        assert figures["db-20260921"] == str(42 << 30)
        (up,) = _query(port, "up", said)
        assert up["value"][1] == "1"
        (quantile,) = _query(
            port,
            'histogram_quantile(0.5, dmcopy_job_hold_seconds_bucket{job_name="db-20260921"})',
            said,
        )
        assert 0.001 < float(quantile["value"][1]) <= 0.0025
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _query(port: int, expression: str, said: Path) -> list[dict[str, Any]]:  # Any: JSON
    """Ask Prometheus until it knows."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}"
            with urlopen(url, timeout=5) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]  # Any: JSON
            if result:
                return result
        except (URLError, ConnectionError):
            pass
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)
