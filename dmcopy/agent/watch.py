"""What the agent knows of the jobs: one look a second for all who want to know.

It looks at what every command looks at (`jobs.overview`), so it sees jobs that anybody started, and
knows them again after a restart.  What happens to them is told to the journal of systemd, once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dmcopy.errors import DmcopyError
from dmcopy.jobs.overview import JobView
from dmcopy.kernel import systemd
from dmcopy.kernel.whole_file import write_whole
from dmcopy.stack.hold import seconds_of

log = logging.getLogger(__name__)

Status = Mapping[str, Any]  # Any: JSON, as `JobView.as_json` gives it

# One for each kind of entry, so that `journalctl MESSAGE_ID=...` finds them all (docs/agent.rst).
MESSAGES: Final[Mapping[str, str]] = {
    "begun": "e171f7cc5bef4d8dadbe09faecba6b7c",
    "ended": "42febc8ecba3441f8be28d456f8d28fa",
    "failed": "53e44bce67e04e5f95154cedad18a508",
    "interrupted": "2d658a9257224b8bb54a87c23cab8361",
    "warning": "03988b49c05042feb5e97dc8ca460ba8",
    "happened": "914f4f9898be43f497f8da8089905aa8",
}
_PRIORITY: Final = {"ended": 5, "failed": 3, "interrupted": 4, "warning": 4}
_INFO: Final = 6
_IDLE_SECONDS: Final = 5.0


def job_of(status: Status) -> dict[str, Any]:  # Any: JSON
    """Give the varlink type Job of what ``dmcopy status --json`` prints."""
    progress = status.get("progress") or {}
    ended = status.get("ended") or {}
    begun = status.get("begun") or {}
    job = {
        "name": status["job"],
        "state": status["state"],
        "running": status["pid"] is not None,
        "can_resume": status["can_resume"],
        "why_not": status["no_way_on"] or status["not_now"],
        "source": status["source"],
        "destination": status["destination"],
        "begin_time": begun.get("begin_time"),
        "group": status.get("group"),
        "members": list(status.get("members", ())),
    }
    for word in ("phase", "bytes_done", "bytes_total", "rate_bytes", "eta_seconds"):
        job[word] = progress.get(word)
    for word in ("exit_status", "error", "digest", "verified"):
        job[word] = ended.get(word)
    if ended:
        job["bytes_total"] = ended.get("bytes_total")
    return job


class Watch:
    """Looks at all jobs in a thread of its own; `wait` tells when something is new.

    *look* gives them, and may raise `DmcopyError`.  *stamp* is a file that keeps, over restarts,
    until when the journal was told.
    """

    def __init__(
        self,
        look: Callable[[], list[JobView]],
        stamp: Path,
        *,
        seconds: float = 1.0,
        tell: Callable[[str, Mapping[str, str]], None] = systemd.journal,
    ) -> None:
        self._look = look
        self._teller = _Teller(stamp, tell)
        self._seconds = seconds
        self._changed = threading.Condition()
        self._statuses: dict[str, Status] = {}
        self._listeners = 0
        self._looks = 0
        self._fault = ""
        self._stopping = False
        self.looked = time.monotonic()  # when it last came back from looking
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Look, from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Tell whether it still looks."""
        return self._thread.is_alive()

    def now(self) -> dict[str, Status]:
        """Look now; gives all jobs by name, oldest first."""
        return {view.job: view.as_json() for view in self._look()}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Have it look every second while somebody listens."""
        with self._changed:
            self._listeners += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._listeners -= 1

    def wait(self, seen: int, timeout: float) -> tuple[int, dict[str, Status]]:
        """Wait until it has looked more than *seen* times, *timeout* seconds at most.

        Gives how often it has, and the jobs.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._looks > seen or self._stopping, timeout)
            return self._looks, self._statuses

    def _run(self) -> None:
        while True:
            try:
                asked = time.time()
                statuses = self.now()
                self._teller.look(statuses, asked)
            except (DmcopyError, OSError) as exc:
                self._failed(exc)
            except Exception as exc:  # the outermost loop of this thread, which must go on
                self._failed(exc, with_trace=True)
            else:
                self._fault = ""
                with self._changed:
                    self._statuses = statuses
                    self._looks += 1
                    self._changed.notify_all()
            self.looked = time.monotonic()
            with self._changed:
                if not self._stopping:
                    self._changed.wait_for(lambda: self._stopping, self._pause())
                if self._stopping:
                    return

    def _failed(self, exc: Exception, *, with_trace: bool = False) -> None:
        """Log it, once for as long as it stays so."""
        if repr(exc) != self._fault:
            log.warning("cannot look at the jobs: %s", exc, exc_info=with_trace)
        self._fault = repr(exc)

    def _pause(self) -> float:
        busy = self._listeners or any(one["pid"] is not None for one in self._statuses.values())
        return self._seconds if busy else max(self._seconds, min(_IDLE_SECONDS, self._seconds * 5))


def _moment(status: Status) -> float:
    """Give when it began, or ended, in seconds since 1970; 0 where it did neither."""
    if status["pid"] is not None:
        return seconds_of(status["begun"]["begin_time"]) if status["begun"] else 0.0
    return float(status["created"] + status["ended"]["seconds"]) if status["ended"] else 0.0


class _Teller:
    """Tells the journal of systemd what has happened since it did so last."""

    def __init__(self, stamp: Path, tell: Callable[[str, Mapping[str, str]], None]) -> None:
        self._stamp = stamp
        self._tell = tell
        self._until = self._read()
        self._running: dict[str, bool] = {}  # as seen last
        self._is_new = True

    def look(self, statuses: Mapping[str, Status], asked: float) -> None:
        """Tell what is new in *statuses*, which were *asked* for then (seconds since 1970)."""
        latest = self._until
        for name, status in statuses.items():
            for entry in status["log"]:
                if entry["at"] > self._until:
                    latest = max(latest, entry["at"])
                    self._happened(status, entry)
            if self._moved(name, status):
                # not the time now: what came into a log since it was read is told by the next look
                latest = max(latest, asked, min(_moment(status), time.time()))
        self._is_new = False
        for name in self._running.keys() - statuses.keys():  # forgotten by the journal of jobs
            del self._running[name]
        if latest > self._until:
            self._until = latest
            self._keep(latest)

    def _happened(self, status: Status, entry: Mapping[str, Any]) -> None:  # Any: JSON
        kind = str(entry["event"])
        words = {
            name: value
            for name, value in entry.items()
            if name not in ("at", "event", "job", "group") and value not in (None, "", [], ())
        }
        text = str(words.get("message") or " ".join(f"{k}={v}" for k, v in words.items()))
        self._say(status, "warning" if kind == "warning" else "happened", f"{kind}: {text}")

    def _moved(self, name: str, status: Status) -> bool:
        """Tell that a job began, ended or stopped; gives whether there was something to tell."""
        begun, ended = status["begun"] or {}, status["ended"]
        # until its begin time is fixed there is nothing to tell of a job
        running = status["pid"] is not None and bool(begun)
        before = self._running.get(name)
        self._running[name] = running
        if before == running or (self._is_new and not self._is_news(status)):
            return False
        if running:
            self._say(status, "begun", f"runs, pid {status['pid']}", begun["begin_time"])
        elif status["pid"] is not None:
            return False
        elif ended and ended["error"] is None and status["state"] == "ended":
            self._say(status, "ended", f"copied {ended['bytes_total']} bytes")
        elif status["can_resume"]:
            self._say(status, "interrupted", f"interrupted; go on: dmcopy resume {name}")
        else:
            why = (ended or {}).get("error") or status["no_way_on"] or status["state"]
            self._say(status, "failed", str(why))
        return True

    def _is_news(self, status: Status) -> bool:
        """Tell whether it came about while there was no agent, who would have told else."""
        return _moment(status) > self._until

    def _say(self, status: Status, kind: str, text: str, begin_time: str | None = None) -> None:
        fields = {
            "MESSAGE_ID": MESSAGES[kind],
            "PRIORITY": str(_PRIORITY.get(kind, _INFO)),
            "SYSLOG_IDENTIFIER": "dmcopy",
            "DMCOPY_JOB": status["job"],
            "DMCOPY_STATE": status["state"],
            "DMCOPY_SOURCE": status["source"] or "",
            "DMCOPY_DESTINATION": status["destination"] or "",
        }
        if begin_time is not None:
            fields["DMCOPY_BEGIN_TIME"] = begin_time
        self._tell(f"job {status['job']}: {text}", fields)

    def _read(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            return float(self._stamp.read_text())
        # What happened before there was an agent is in nobody's way; what happens from now on is
        # told by the next one, should this be killed before it looks.
        self._keep(now := time.time())
        return now

    def _keep(self, until: float) -> None:
        with contextlib.suppress(OSError):  # told twice after a restart, then
            self._stamp.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_whole(self._stamp, f"{until!r}\n".encode(), is_durable=False)
