"""What a running job says: to who looks on, and into the journal."""

from __future__ import annotations

from dmcopy.core import events
from dmcopy.jobs.account import Account
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.recorder import Recorder


class Teller:
    """Tells the observer, and keeps what a person asks for later; *record* is the journal's."""

    def __init__(
        self, prepared: Prepared, journal: Journal, account: Account, observer: events.Observer
    ) -> None:
        self._job = prepared.spec.name
        self._device = prepared.source.path
        self._account = account
        self._observer = observer
        self.record = Recorder(journal, self._job, self._warn_only)

    def tell(self, event: events.Event) -> None:
        """Tell, and keep nothing."""
        self._observer(event)

    def happened(self, event: events.Event) -> None:
        """Tell, and keep it in the job's log."""
        self.record.log(event.as_json())
        self._observer(event)

    def hold(self, reason: str, seconds: float) -> None:
        """Tell that writes were held."""
        self._account.holds.append(seconds)
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
