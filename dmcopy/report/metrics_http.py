"""Metrics over HTTP, on this machine's loopback only: what Prometheus scrapes.

One thread takes connections and one serves each, so that nobody waits for a client that is slow.
There are at most `MOST` of them: the next one ends the oldest, so that clients that never end
keep nobody out either.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Final

from prometheus_client import CollectorRegistry

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.report.metrics import CONTENT_TYPE, text

log = logging.getLogger(__name__)

MOST: Final = 16
_SECONDS: Final = 10.0  # that a client may be silent


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server_version = "dmcopy"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Give the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"not here: /metrics\n", "text/plain; charset=utf-8")
            return
        try:
            with self.server.looking:  # one look at a time, however many ask
                found = text(self.server.metrics)
        except Exception:  # this server is the outermost loop: the next scrape gets its chance
            log.exception("cannot give the metrics")
            self._answer(500, b"see the log\n", "text/plain; charset=utf-8")
            return
        self._answer(200, found, CONTENT_TYPE)

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # Any: as the base class has it
        """Say nothing on stderr; a scrape is no event."""
        log.debug(format, *args)


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: str, port: int, metrics: CollectorRegistry) -> None:
        self.metrics = metrics
        self.looking = threading.Lock()
        self._open: list[socket.socket] = []  # the oldest first
        self._counting = threading.Lock()
        if ":" in address:
            self.address_family = socket.AF_INET6
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: the base class
        """Begin to serve; ends the oldest connection where there are too many."""
        with self._counting:
            self._open.append(request)
            if len(self._open) > MOST:
                with suppress(OSError):
                    self._open[0].shutdown(socket.SHUT_RDWR)
                del self._open[0]
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # Any: the base class
        """End a connection."""
        with self._counting:
            if request in self._open:
                self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: the base class
        """Take it as it comes: a client that went away is no error of ours."""
        log.debug("a client of the metrics went away", exc_info=True)


class Serving:
    """Metrics that are being served; `close` ends it, as does the end of the process."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        # not the main thread's: it must not keep the process alive
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port, also where any was asked for (0)."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Take no more connections; those that are served end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(address: str, port: int, metrics: CollectorRegistry) -> Serving:
    """Serve *metrics* at ``http://ADDRESS:PORT/metrics`` from now on, in threads of its own.

    *address* is a number.  Raises `UsageError` for one that is not this machine's loopback: what
    is copied where is nobody else's business; `DmcopyError` where it cannot listen.
    """
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError as exc:
        raise UsageError(f"'{address}' is no address; metrics are served at 127.0.0.1") from exc
    if not is_loopback:
        raise UsageError(
            f"metrics are served on loopback only, and {address} is not: have a proxy in front"
        )
    try:
        return Serving(_Server(address, port, metrics))
    except (OSError, OverflowError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise DmcopyError(f"cannot serve metrics at {address} port {port}: {why}") from exc
