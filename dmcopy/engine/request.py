"""What control may ask of the worker, as values: `open`, then `copy`.

Sectors and bytes are in the field names of the messages, as everywhere in JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from dmcopy.core.extent import Extent
from dmcopy.core.order import Policy
from dmcopy.core.segment import SegmentList
from dmcopy.engine.runs import Run
from dmcopy.units import Bytes, Sectors

Message: TypeAlias = Mapping[str, Any]  # Any: JSON


def extents_of(pairs: Iterable[tuple[int, int]]) -> tuple[Extent, ...]:
    """Read ``[start, length]`` pairs, in sectors."""
    return tuple(Extent(Sectors(start), Sectors(length)) for start, length in pairs)


def runs_of(rows: Iterable[tuple[int, int, str | None]]) -> list[Run]:
    """Read ``[start, length, digest]`` rows, in sectors."""
    return [Run(Extent(Sectors(start), Sectors(length)), digest) for start, length, digest in rows]


def rows_of(runs: Iterable[Run]) -> list[tuple[int, int, str | None]]:
    """Write what `runs_of` reads."""
    return [(run.extent.start, run.extent.length, run.digest) for run in runs]


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """What ``open`` says."""

    job: str
    source: str  # path, for messages
    source_devno: str
    length: Sectors
    segment: Sectors
    digest: str  # sha256 | none
    destination: str
    overwrite_signature: bool
    spare: tuple[str, ...]
    identity: Mapping[str, str | int] | None  # as it was when the job was planned
    resume: Mapping[str, str | int] | None  # the mark of the session that is gone on with

    @classmethod
    def parse(cls, message: Message) -> OpenRequest:
        """Take a request apart; raises KeyError for a missing word: a bug of control's."""
        return cls(
            job=message["job"],
            source=message["source"],
            source_devno=message["source_devno"],
            length=Sectors(message["length_sectors"]),
            segment=Sectors(message["segment_sectors"]),
            digest=message["digest"],
            destination=message["destination"],
            overwrite_signature=message.get("overwrite_signature", False),
            spare=tuple(message.get("spare", ())),
            identity=message.get("identity"),
            resume=message.get("resume"),
        )

    def segments(self) -> SegmentList:
        """Give the segments, in the order of the image."""
        return SegmentList(self.length, self.segment)


@dataclass(frozen=True, kw_only=True)
class CowRequest:
    """Where the exception store is, and what tells that it is still good."""

    path: str
    chunk: Sectors
    snapshot_uuid: str
    origin_devno: str
    origin_table: bytes

    @classmethod
    def parse(cls, message: Message) -> CowRequest:
        """Take it apart; raises KeyError for a missing word."""
        return cls(
            path=message["path"],
            chunk=Sectors(message["chunk_sectors"]),
            snapshot_uuid=message["snapshot_uuid"],
            origin_devno=message["origin_devno"],
            origin_table=message["origin_table"].encode(),
        )


def counts_of(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Read ``[area, writes]`` pairs."""
    return tuple((area, count) for area, count in pairs)


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """What is copied first: *first* is the user's wish, the *policy* comes after it.

    With *only*, nothing else is copied before the job is told to go on.
    """

    policy: Policy = Policy.SEQUENTIAL
    area: Sectors  # what writes are counted by
    first: tuple[Extent, ...] = ()
    only: bool = False
    written: tuple[tuple[int, int], ...] = ()  # areas, and how often they were written so far

    @classmethod
    def parse(cls, message: Message) -> OrderRequest:
        """Take it apart; raises KeyError for a missing word."""
        return cls(
            policy=Policy(message["policy"]),
            area=Sectors(message["area_sectors"]),
            first=extents_of(message.get("first", ())),
            only=bool(message.get("only")),
            written=counts_of(message.get("written", ())),
        )


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """What ``copy`` says; without *cow* the source is idle: *devno* had *writes* at begin."""

    source_path: str
    length: Sectors
    cow: CowRequest | None
    devno: str = ""
    writes: int = 0
    done: tuple[Extent, ...] = ()  # durable at the destination already
    batch: Sectors  # after this much, at the latest, what was copied is made durable
    rate: Bytes | None = None  # bytes a second; None: as fast as it goes
    cap: str | None = None  # path of the file with the cap over all jobs of the host
    order: OrderRequest
    short_batches: bool = False  # as short as is worth it, for what is copied is retired
    gate: bool = False  # ask control to hold the writes to each segment before it is read
    paused: bool = False  # copy nothing before control says ``go``

    @classmethod
    def parse(cls, message: Message, length: Sectors) -> CopyRequest:
        """Take a request apart; raises KeyError for a missing word."""
        cow = message.get("cow")
        idle: Message = message["idle"] if cow is None else {"devno": "", "writes": 0}
        rate = message.get("rate_bytes")
        return cls(
            source_path=message["source_path"],
            length=length,
            cow=CowRequest.parse(cow) if cow is not None else None,
            devno=idle["devno"],
            writes=idle["writes"],
            done=extents_of(message.get("done", ())),
            batch=Sectors(message["batch_sectors"]),
            rate=Bytes(rate) if rate else None,
            cap=message.get("cap_path"),
            order=OrderRequest.parse(message["order"]),
            short_batches=bool(message.get("short_batches")),
            gate=bool(message.get("gate")),
            paused=bool(message.get("paused")),
        )


@dataclass(frozen=True, kw_only=True)
class TablesRequest:
    """What ``tables`` says: the only tables that may be live from now on.

    *layers* are what lies between origin and source: dm uuid, and its tables.
    """

    origin: tuple[bytes, ...]
    layers: tuple[tuple[str, tuple[bytes, ...]], ...]

    @classmethod
    def parse(cls, message: Message) -> TablesRequest:
        """Take a request apart; raises KeyError for a missing word."""
        return cls(
            origin=tuple(table.encode() for table in message["origin"]),
            layers=tuple(
                (uuid, tuple(table.encode() for table in tables))
                for uuid, tables in message["layers"].items()
            ),
        )
