"""``python -m dmcopy.jobs.member``: the control process of one volume of a group.

It is a whole job of its own (`jobs.runner`), with a record, a lock and a worker, in all but two
things, in which it does as the process that leads the group (`jobs.group`) says: its begin time
is that of an instant that all members have, and its image is called whole when all are.

JSON lines both ways, on stdin and stdout.  The leader says first what is to be done:
``{"do": "copy", "spec": ...}`` or ``{"do": "resume", "job": ...}``.  Then, where a new begin time
is to be fixed, the member says ``part`` (and holds the memory of it in the kernel: what is loaded
for its origin), and the leader answers ``instant``, ``again`` (load anew) or ``off`` (undo all).
When its image is at the destination the member says ``arrived``, and goes on at ``complete``.
In between it tells its events.

SIGTERM interrupts, so that the job can be gone on with; SIGHUP gives it up, for another volume
failed.  When the leader dies, the kernel sends SIGTERM: nothing is lost, and nothing of a group
goes on alone.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from dmcopy.core.events import Event
from dmcopy.errors import Cancelled, DmcopyError, HoldLimitExceeded, Interrupted
from dmcopy.jobs.control import Desk
from dmcopy.jobs.host import Host, load_targets, open_host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared, prepare
from dmcopy.jobs.resume import prepare_resume
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.kernel.parent import end_with_parent
from dmcopy.kernel.priority import step_back
from dmcopy.stack.hold import Instant
from dmcopy.stack.together import Part

Json = Mapping[str, Any]  # Any: JSON

_STOPPING: Final = (signal.SIGTERM, signal.SIGHUP)


class Leader:
    """The member's side of the two streams."""

    def __init__(self, orders: int, messages: int) -> None:
        """*orders* is read, *messages* written; file descriptors."""
        self._orders = orders
        self._messages = messages
        self._buffer = b""
        self.group: str | None = None

    def say(self, what: str, **fields: object) -> None:
        """Send a message; a leader that is gone is noticed where an order is waited for."""
        data = memoryview(json.dumps({"is": what, **fields}).encode() + b"\n")
        with suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._messages, data) :]

    def tell(self, event: Event) -> None:
        """Pass an event on."""
        self.say("event", told=event.as_json() | {"group": self.group})

    def order(self, desk: Desk | None = None) -> Json:
        """Wait for the next order; raises `Interrupted` when there is no leader any more.

        Whoever asks at the *desk* meanwhile is sent away.
        """
        also = (desk.fileno(),) if desk is not None else ()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._orders, *also], [], [])
            if desk is not None and desk.fileno() in ready:
                for asked in desk.asked():
                    asked.refuse("everything is copied, and waits for the other volumes")
            if self._orders not in ready:
                continue
            data = os.read(self._orders, 1 << 16)
            if not data:
                raise Interrupted("the process that leads the group ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        order: Json = json.loads(line)
        return order

    def meet(self, part: Part | None) -> Instant:
        """Have a share in the instant of all members (`dmcopy.stack.together.Meet`)."""
        if part is None:
            self.say("part")
        else:
            self.say("part", origin=part.origin, lockfs=part.lockfs, then=part.then)
        order = self.order()
        match order["do"]:
            case "instant":
                return Instant(
                    begin_ns=order["begin_ns"], held=order["held"], alone=order.get("alone")
                )
            case "again":
                raise HoldLimitExceeded(order["why"])
        raise Cancelled(f"there is no begin time: {order.get('why')}")

    def arrive(self, desk: Desk) -> None:
        """Say that the image is at the destination; returns when those of all members are."""
        self.say("arrived")
        while (order := self.order(desk))["do"] != "complete":
            if order["do"] == "off":
                raise Cancelled(str(order["why"]))


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise, once: a second signal must not cut short the undoing that the first one caused."""
    for one in _STOPPING:
        signal.signal(one, lambda _number, _frame: None)
    if number == signal.SIGHUP:
        raise Cancelled("given up, for another volume of the group was")
    raise Interrupted("interrupted with its group")


def _prepared(order: Json, host: Host, journal: Journal, leader: Leader) -> Prepared:
    if order["do"] == "resume":
        return prepare_resume(order["job"], host, journal, verify=order["verify"])
    return prepare(CopySpec.from_json(order["spec"]), host, meet=leader.meet)


def serve(leader: Leader) -> None:
    """Do what the leader says first, to its end; what went wrong is told, never raised."""
    try:
        # the leader starts us with them blocked: one that came meanwhile is told as any other
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        order = leader.order()
        logging.getLogger().setLevel(order["log_level"])
        leader.group = order["group"]
        places = order["places"]
        host = open_host(Places(Path(places["state"]), Path(places["runtime"])))
        if host.dm is not None:
            load_targets(host)
        with Journal(host.places.journal) as journal:
            prepared = _prepared(order, host, journal, leader)
            CopyJob(prepared, host, journal, leader.tell, arrive=leader.arrive).run()
    except (DmcopyError, OSError) as exc:
        status = exc.exit_status if isinstance(exc, DmcopyError) else DmcopyError.exit_status
        kind = exc.kind if isinstance(exc, DmcopyError) else DmcopyError.kind
        leader.say("failed", kind=kind, message=str(exc), exit_status=status)


def main() -> NoReturn:
    """Serve the leader on stdin and stdout, and exit."""
    for number in _STOPPING:
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the leader to decide on
    end_with_parent(signal.SIGTERM)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    step_back()
    # What anything might print must not get between the messages.
    messages = os.dup(1)
    os.dup2(2, 1)
    serve(Leader(0, messages))
    sys.exit(0)


if __name__ == "__main__":
    main()
