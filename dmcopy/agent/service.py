"""What the agent answers: the methods of ``org.dmcopy.Agent``, by the words of the command line.

Nothing is done here: a verb is a ``dmcopy`` of its own, so that what is refused on the command line
is refused here with the same line, and no call can harm the agent or another job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from dmcopy import __version__
from dmcopy.agent.launch import Launcher, refuse_ours
from dmcopy.agent.server import EXIT_STATUSES, INTERFACE, Caller
from dmcopy.agent.varlink import Json, More, Service, VarlinkError
from dmcopy.agent.watch import Status, Watch, job_of
from dmcopy.errors import DmcopyError
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State, is_final

_ERRORS: Final = {status: name for name, status in EXIT_STATUSES.items()}
_OVER: Final = frozenset(state for state in State if is_final(state))
_HEARTBEAT: Final = 1.0  # seconds after which it is looked whether somebody still listens


class Methods:
    """The methods by their names in the interface."""

    def __init__(
        self, places: Places, launcher: Launcher, watch: Watch, metrics: Callable[[], str]
    ) -> None:
        self._places = places
        self._launcher = launcher
        self._watch = watch
        self._metrics = metrics

    def Info(self) -> Json:
        """Say who answers."""
        jobs = self._now().values()
        return {
            "version": __version__,
            "state_directory": str(self._places.state),
            "runtime_directory": str(self._places.runtime),
            "jobs_running": sum(one["pid"] is not None for one in jobs),
        }

    def Start(self, words: list[str], directory: str | None) -> Json:
        """Start a copy; answers when its begin time is fixed."""
        with _told():
            said = self._launcher.copy(words, directory=directory)
        planned = said.of_kind("planned")
        return {
            "job": planned["job"] if planned else "",
            "events": list(said.events),
        }

    def Plan(self, words: list[str], directory: str | None) -> Json:
        """Say what a copy would do."""
        with _told():
            refuse_ours(words)
            said = self._launcher.have("plan", "--json", *words, directory=directory)
        return {"plan": said.of_kind("planned")}

    def List(self, all: bool | None) -> Json:
        """Give the jobs."""
        statuses = self._now().values()
        return {"jobs": [job_of(one) for one in statuses if all or not _is_over(one)]}

    def Show(self, job: str) -> Json:
        """Give one job."""
        status = self._status(job)
        return {"job": job_of(status), "status": status}

    def Subscribe(self, job: str | None, _caller: Caller) -> Iterator[More]:
        """Give what changes, for as long as somebody listens."""
        if job is not None:
            self._status(job)
        told: dict[str, Json] = {}
        looks = -1
        with self._watch.listening():
            while not _caller.is_gone:
                looks, statuses = self._watch.wait(looks, _HEARTBEAT)
                for name, status in list(statuses.items()):
                    if job not in (None, name):
                        continue
                    now = job_of(status)
                    is_last = job is not None and not now["running"] and looks > 0
                    if now != told.get(name) or is_last:
                        told[name] = now
                        yield More({"job": now}, is_last)
                    if is_last:
                        return
                if not self._watch.is_alive:
                    return

    def Pause(self, job: str) -> Json:
        """Pause a job."""
        return self._verb(job, "pause")

    def Resume(self, job: str) -> Json:
        """Go on with a job."""
        status = self._status(job)
        if status["pid"] is not None:
            return self._verb(job, "resume") | {"events": []}
        with _told():
            return {"events": list(self._launcher.resume(job).events)}

    def Cancel(self, job: str) -> Json:
        """Give a job up."""
        self._status(job)
        with _told():
            self._launcher.have("cancel", job)
        return {}

    def Set(self, job: str | None, settings: dict[str, str]) -> Json:
        """Change a job, or the host."""
        words = [f"{name}={value}" for name, value in settings.items()]
        if job is not None:
            return self._verb(job, "set", *words)
        with _told():
            self._launcher.ask("set", "--host", *words)
        return {}

    def Order(self, job: str, words: list[str]) -> Json:
        """Change what is copied first."""
        return self._verb(job, "order", *words)

    def Metrics(self) -> Json:
        """Give all jobs as Prometheus reads them."""
        with _told():
            return {"text": self._metrics()}

    def _verb(self, job: str, verb: str, *words: str) -> Json:
        self._status(job)
        with _told():
            self._launcher.ask(verb, job, *words)
        return {}

    def _now(self) -> dict[str, Status]:
        with _told():
            return self._watch.now()

    def _status(self, job: str) -> Status:
        status = self._now().get(job)
        if status is None:
            raise _error("NoSuchJob", job=job)
        return status


def service_of(methods: Methods) -> Service:
    """Make what answers messages."""
    text = (Path(__file__).parent / f"{INTERFACE}.varlink").read_text()
    return Service(INTERFACE, text, methods, version=__version__)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Give a failure as the interface names it."""
    try:
        yield
    except DmcopyError as exc:
        name = _ERRORS.get(exc.exit_status)
        if name is not None:
            raise _error(name, message=str(exc)) from exc
        raise _error("Failed", message=str(exc), exit_status=exc.exit_status) from exc


def _error(name: str, **parameters: object) -> VarlinkError:
    return VarlinkError(f"{INTERFACE}.{name}", **parameters)


def _is_over(status: Status) -> bool:
    return status["state"] in _OVER and not status["dead"] and not status["kept"]
