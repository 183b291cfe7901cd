"""The worker's end of the two pipes to control: a JSON object a line, both ways."""

from __future__ import annotations

import json
import os
import queue
import select
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from dmcopy.engine.pipeline import Stop
from dmcopy.engine.request import Message
from dmcopy.errors import Interrupted


class Channel:
    """The two pipes to control.  Any thread may send.

    Requests wait in a queue for `next`, but for those that somebody serves (`serve`):
    they are served at once, by the thread that reads.
    """

    def __init__(self, requests: int, messages: int, stop: Stop) -> None:
        """Read from the fd *requests*, write to *messages*; both stay the caller's."""
        self._live: dict[str, Callable[[Message], None]] = {}
        self._in = requests
        self._out = messages
        self._stop = stop
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to read, in a thread of its own: the end of stdin stops a copy."""
        # A daemon: it sits in read(2) until control closes the pipe, perhaps after our end.
        threading.Thread(target=self._listen, name="dmcopy-requests", daemon=True).start()

    def _listen(self) -> None:
        buffer = b""
        while data := os.read(self._in, 1 << 16):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                serve = self._live.get(request["do"], self._queue.put)
                serve(request)
        self.stop("control went away")

    def stop(self, why: str) -> None:
        """Ask the worker to stop; may be called by a signal handler."""
        self._stop.set(why)
        self._queue.put(None)  # SimpleQueue.put is reentrant

    def serve(self, served: Mapping[str, Callable[[Message], None]]) -> None:
        """Have these requests served at once; before `start`.  No function may raise."""
        self._live = dict(served)

    def put(self, request: Message) -> None:
        """Let a request that is served wait for `next` all the same."""
        self._queue.put(request)

    def next(self) -> Message:
        """Give the next request; raises `Interrupted` when there will be none."""
        request = self._queue.get()
        if request is None:
            raise Interrupted(self._stop.why)
        return request

    def send(self, what: str, **fields: object) -> None:
        """Send a message; that control is gone shows at stdin."""
        line = json.dumps({"is": what, **fields}).encode() + b"\n"
        with self._lock, suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._out, line) :]

    def offer(self, what: str, **fields: object) -> None:
        """Send a message unless nobody takes it: a stopped control must not stop the copy."""
        # A pipe that is writable takes PIPE_BUF bytes (pipe(7)), which is more than a line.
        if select.select([], [self._out], [], 0)[1]:
            self.send(what, **fields)
