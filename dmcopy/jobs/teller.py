"""What a running job says: to who looks on, and into the journal."""

from __future__ import annotations

from collections.abc import Callable

from dmcopy.core import events
from dmcopy.core.history import History
from dmcopy.jobs.account import Account
from dmcopy.jobs.chronicle import Chronicle
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.recorder import Recorder
from dmcopy.kernel.diskstat import IoTimes
from dmcopy.stack.hold import seconds_of


class Teller:
    """Tells the observer, and keeps what a person asks for later.

    *record* is the journal's, *chronicle* keeps the history.
    """

    def __init__(
        self,
        prepared: Prepared,
        journal: Journal,
        account: Account,
        observer: events.Observer,
        writes: Callable[[], IoTimes | None],
    ) -> None:
        """*writes* asks for the counters of the source's writes."""
        self._job = prepared.spec.name
        self._device = prepared.source.path
        self._account = account
        self._observer = observer
        self.record = Recorder(journal, self._job, self._warn_only)
        earlier = prepared.earlier
        self.chronicle = Chronicle(
            (earlier.history if earlier is not None else None)
            or History(prepared.source.length, prepared.segment),
            writes,
            lambda history: self.record.history(history.as_json()),
            begin=seconds_of(earlier.begun.begin_time) if earlier is not None else None,
        )

    def tell(self, event: events.Event) -> None:
        """Tell, and keep nothing."""
        self._observer(event)

    def gated(self, event: events.Segment) -> None:
        """Tell that a segment was copied while writes to it waited."""
        self._account.gates.add(event.hold_seconds)
        self._account.held.add(event.hold_seconds)
        self._account.gate_writes += event.writes_held
        self.chronicle.held("gate", event.hold_seconds)
        self._observer(event)

    def happened(self, event: events.Event) -> None:
        """Tell, and keep it in the job's log."""
        self.record.log(event.as_json())
        self._observer(event)

    def hold(self, reason: str, seconds: float) -> None:
        """Tell that writes were held."""
        if reason == "retire":  # as many as there are batches
            self._account.retires.add(seconds)
        else:
            self._account.holds.append(seconds)
        self._account.held.add(seconds)
        self.chronicle.held(reason, seconds)
        self._observer(
            events.Hold(job=self._job, device=self._device, reason=reason, seconds=seconds)
        )

    def warn(self, message: str) -> None:
        """Tell that it went on, but."""
        self.record.log(self._warn_only(message).as_json())

    def _warn_only(self, message: str) -> events.Warned:
        event = events.Warned(job=self._job, message=message)
        self._observer(event)
        return event
