"""How the command line asks the agent, where one runs; without it every command works as well."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

from dmcopy.agent.server import EXIT_STATUSES, INTERFACE
from dmcopy.errors import DmcopyError, EndedElsewhere, Refused, UsageError
from dmcopy.jobs.spec import Places

log = logging.getLogger(__name__)

Json = dict[str, Any]  # Any: JSON

_INFO_SECONDS: Final = 10.0
_READ: Final = 1 << 16


class Connection:
    """Calls to an agent, one after the other."""

    def __init__(self, connected: socket.socket) -> None:
        """*connected* is the caller's to close."""
        self._socket = connected

    def call(self, method: str, parameters: Json, *, timeout: float | None = None) -> Json:
        """Call a method; gives what it answers.

        Raises the error that is meant, OSError when the agent went away or is silent for
        *timeout* seconds, ValueError for what is no answer.
        """
        self._socket.settimeout(timeout)
        said = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        self._socket.sendall(json.dumps(said).encode() + b"\0")
        data = bytearray()
        while not data.endswith(b"\0"):
            more = self._socket.recv(_READ)
            if not more:
                raise ConnectionResetError("it closed the connection")
            data += more
        answer = json.loads(data[:-1])
        if "error" in answer:
            raise _error(str(answer["error"]), answer.get("parameters") or {})
        found: Json = answer.get("parameters") or {}
        return found


def start(places: Places, words: Sequence[str]) -> list[Json] | None:
    """Have the agent start a copy with *words*; gives the events up to its begin time.

    None when there is no agent, or another one than that of *places*.  Raises what kept the job
    from beginning.
    """
    return _events(places, "Start", words=list(words), directory=os.getcwd())


def resume(places: Places, job: str) -> list[Json] | None:
    """Have the agent go on with *job*; gives the events up to where it does, None as `start`."""
    return _events(places, "Resume", job=job)


def _events(places: Places, method: str, **parameters: Any) -> list[Json] | None:  # Any: JSON
    with _agent(places) as agent:
        if agent is None:
            return None
        try:
            found: list[Json] = agent.call(method, parameters)["events"]
        except (OSError, ValueError, KeyError) as exc:
            raise DmcopyError(
                f"the agent went away: {exc}; whether the job has begun: dmcopy status"
            ) from exc
        return found


@contextlib.contextmanager
def _agent(places: Places) -> Iterator[Connection | None]:
    """Give a connection to the agent of *places*, None where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connected:
        agent: Connection | None = Connection(connected)
        try:
            connected.settimeout(_INFO_SECONDS)
            connected.connect(str(places.agent))
            assert agent is not None
            info = agent.call("Info", {}, timeout=_INFO_SECONDS)
        except FileNotFoundError:
            agent = None
        except (DmcopyError, OSError, ValueError) as exc:
            log.info("going on without the agent: %s", exc)
            agent = None
        else:
            theirs = (info.get("state_directory"), info.get("runtime_directory"))
            if theirs != (str(places.state), str(places.runtime)):
                log.info("going on without the agent: its places are %s", theirs)
                agent = None
        yield agent


def _error(name: str, parameters: Json) -> DmcopyError:
    short = name.rpartition(".")[2]
    message = str(parameters.get("message") or f"the agent says {name} {json.dumps(parameters)}")
    match short:
        case "Usage":
            return UsageError(message)
        case "Refused":
            return Refused(message)
        case "NoSuchJob":
            return UsageError(f"there is no job {parameters.get('job')}")
    return EndedElsewhere(message, int(parameters.get("exit_status", EXIT_STATUSES.get(short, 1))))
