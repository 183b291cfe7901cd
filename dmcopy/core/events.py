"""What a job tells the world, one frozen value an event.

``--json`` prints them one object a line, ``event`` first.  Names are stable: fields are
only added.  Sizes are integers whose field name says bytes or sectors; times are seconds,
but for ``begin_time`` (UTC, with nanoseconds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of all events; *job* names the job, *group* the one it is a member of."""

    event: ClassVar[str]
    job: str
    group: str | None = None

    def as_json(self) -> dict[str, object]:
        """Give the object that ``--json`` prints, ``event`` first; no ``group`` where none is."""
        words = asdict(self)
        if self.group is None:
            del words["group"]
        return {"event": self.event, **words}


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """What is going to happen; nothing was changed yet."""

    event: ClassVar[str] = "planned"
    source: str
    destination: str
    provider: str  # splice | idle
    why: str  # why this provider
    bytes_total: int
    chunk_bytes: int | None  # None where there is no snapshot
    segment_bytes: int
    cow: str | None  # what the COW device is made of
    cow_bytes: int | None
    steps: tuple[str, ...]  # lines that an administrator could paste
    retire: bool = False  # what is copied leaves the snapshot
    retire_why: str = ""  # why, or why not
    order: str = "sequential"  # | hot | cow
    gate: str = "none"  # | segment
    hooks: tuple[str, ...] = ()  # commands that are run around the begin time
    freezes: tuple[str, ...] = ()  # mount points that are frozen for it, beside the source's own
    members: tuple[str, ...] = ()  # of a group: its jobs, one a volume
    new_identity: bool = False  # when all is copied, the copy gets one of its own
    source_identity: Mapping[str, str | int] | None = None  # what tells it from others; no group
    destination_identity: Mapping[str, str | int] | None = None
    volumes: tuple[Mapping[str, object], ...] = ()  # of a group: what is planned for each


@dataclass(frozen=True, kw_only=True)
class Begun(Event):
    """The point in time is fixed.

    A write that was complete before *begin_time* is in the image; one that was submitted
    later than *begin_time* + *hold_seconds* is not.  In a group *window_seconds* takes the place of
    *hold_seconds* in this, which is what this volume's writes were held of it.
    """

    event: ClassVar[str] = "begun"
    source: str
    begin_time: str  # UTC, ISO 8601 with nanoseconds
    hold_seconds: tuple[float, ...]
    snapshot: str | None  # /dev path of the kernel's own view of the image
    window_seconds: float | None = None  # of a group: from the first hold to the last release
    holds: Mapping[str, float] | None = None  # of a group: how long each source was held


@dataclass(frozen=True, kw_only=True)
class Hold(Event):
    """Writes to *device* were held for *seconds*."""

    event: ClassVar[str] = "hold"
    device: str
    reason: str  # begin | freeze | retire | grow | brake | end
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Hook(Event):
    """One side of a hook was run around the begin time."""

    event: ClassVar[str] = "hook"
    hook: str  # its file's name
    side: str  # before | session | after
    status: str  # done | ready | failed | timed out | ended early
    seconds: float
    message: str = ""  # what went wrong


@dataclass(frozen=True, kw_only=True)
class Segment(Event):
    """A segment was copied while writes to it waited (``--gate segment``)."""

    event: ClassVar[str] = "segment"
    offset_bytes: int
    length_bytes: int
    hold_seconds: float  # from when writes to it waited until they were let go
    writes_held: int  # that waited at the end


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far the copy is."""

    event: ClassVar[str] = "progress"
    phase: str  # copy | verify
    bytes_done: int
    bytes_total: int
    bytes_cow: int  # of bytes_done: taken from the COW device
    bytes_zero: int  # of bytes_done: zeroes
    rate_bytes: float  # a second, of late
    eta_seconds: float | None
    exceptions: int
    cow_used_bytes: int | None
    cow_total_bytes: int | None
    cow_full_seconds: float | None  # forecast: when the COW device would be full, likely
    # forecast; each low, likely and high, None where it is not known or never, high None: no end
    cow_full: tuple[float | None, ...] | None = None  # seconds until the COW device is full
    copy_done: tuple[float | None, ...] | None = None  # seconds until everything is copied
    cow_needed: tuple[float | None, ...] | None = None  # bytes of it that are used then
    first: str | None = None  # done | full | unsure | unknown: which comes first
    bytes_retired: int = 0  # of bytes_done: writes to it need not be saved any more
    held: Mapping[str, Any] | None = None  # all holds of this session (`core.holds`); Any: JSON


@dataclass(frozen=True, kw_only=True)
class Grown(Event):
    """The COW device was made larger while the copy runs."""

    event: ClassVar[str] = "grown"
    cow_used_bytes: int
    cow_total_bytes: int
    cow_most_bytes: int  # where growth ends
    seconds: float  # that it took


@dataclass(frozen=True, kw_only=True)
class Braked(Event):
    """Writes to what is not copied yet are held for *milliseconds* each, from now on; 0: no more.

    The COW device is nearly full and cannot grow (``--on-full hold``).
    """

    event: ClassVar[str] = "braked"
    milliseconds: int
    cow_used_bytes: int | None = None
    cow_total_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The begin time is not fixed before *device* has done what it does (``--md-resync wait``)."""

    event: ClassVar[str] = "waiting"
    device: str  # /dev/md127
    reason: str  # resync | recover | check | repair
    bytes_done: int | None  # of what each member has to do; None where md does not say
    bytes_total: int | None


@dataclass(frozen=True, kw_only=True)
class Queued(Event):
    """Nothing is done before fewer than *jobs* others run (``--queue``, ``dmcopy set --host``)."""

    event: ClassVar[str] = "queued"
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Paused(Event):
    """Nothing is copied until the job is resumed; the point in time stays."""

    event: ClassVar[str] = "paused"
    bytes_done: int


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """The copy goes on, as of the same begin time, after a pause or an interruption."""

    event: ClassVar[str] = "resumed"
    begin_time: str
    bytes_done: int  # durable at the destination already


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """It went on, but a person should know."""

    event: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class Verified(Event):
    """The destination was read back past the page cache, and is the image."""

    event: ClassVar[str] = "verified"
    digest: str
    bytes_total: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Twin(Event):
    """What the copy has in common with its source; or, with *new*, that it has no more.

    Where *new* is False nobody may mount, activate or assemble both on one host.
    """

    event: ClassVar[str] = "twin"
    destination: str
    new: bool  # it has an identity of its own now
    identity: tuple[str, ...]  # what it has, a line each: "ext4 UUID=..."
    kept: tuple[str, ...] = ()  # with *new*: what still is as on the source, and why
    hidden: bool = False  # udev leaves it alone, for as long as it has this identity
    by_hand: str = ""  # what gives it a new one; "" where that is not known


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """The last word: how the job ended.  *error* is None when it is done."""

    event: ClassVar[str] = "ended"
    state: str  # ended | failed | cancelled; paused | copied: it can be gone on with
    exit_status: int
    source: str
    destination: str
    begin_time: str | None
    seconds: float
    bytes_total: int
    bytes_source: int
    bytes_cow: int
    bytes_zero: int
    exceptions: int
    cow_used_bytes: int | None
    hold_seconds: tuple[float, ...]
    digest: str | None
    verified: bool
    error: str | None = None
    kind: str | None = None  # errors.DmcopyError.kind
    copy_seconds: float | None = None  # of seconds: moving the data, as the worker timed it
    left: tuple[str, ...] = field(default=())
    bytes_resumed: int = 0  # durable before this session began, and not copied again
    bytes_retired: int = 0  # that writes were saved no more for, before the copy was done
    retires: int = 0  # how often the origin's table was swapped for that
    # how long each of these swaps held writes: median, 99 of 100, longest; not in hold_seconds
    retire_hold_seconds: tuple[float, ...] | None = None
    gated: int = 0  # segments that writes waited for (--gate segment)
    gate_hold_seconds: tuple[float, ...] | None = None  # how long, as above
    gate_writes_held: int = 0  # how many writes waited
    kept: bool = False  # the snapshot stays (--keep)
    md: tuple[dict[str, Any], ...] = ()  # the md arrays under the source (docs/json.rst); Any: JSON
    holds: Mapping[str, float] | None = None  # of a group: how long each source was held at begin
    members: tuple[Mapping[str, object], ...] = ()  # of a group: how each volume ended
    held: Mapping[str, Any] | None = None  # all holds of this session (`core.holds`); Any: JSON


Observer = Callable[[Event], None]

KINDS: Final[dict[str, type[Event]]] = {
    kind.event: kind
    for kind in (
        Planned,
        Begun,
        Hold,
        Hook,
        Segment,
        Progress,
        Grown,
        Braked,
        Waiting,
        Queued,
        Paused,
        Resumed,
        Warned,
        Verified,
        Twin,
        Ended,
    )
}


def from_json(said: Mapping[str, Any]) -> Event:  # Any: JSON
    """Read what `Event.as_json` gave; raises KeyError for no event, TypeError for a wrong one."""
    words: dict[str, Any] = {  # Any: JSON
        name: tuple(value) if isinstance(value, list) else value for name, value in said.items()
    }
    kind: Callable[..., Event] = KINDS[str(words.pop("event"))]
    return kind(**words)
