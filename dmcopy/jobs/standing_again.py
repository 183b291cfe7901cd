"""Begin times that an earlier process of the job left: how they are taken over, and how they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dmcopy.core.extent import Extent
from dmcopy.errors import LeftBehind, PointInTimeLost
from dmcopy.jobs.host import Host
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.standing import Json, SplicedNow, Standing, cow_reading
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.adopt import Adopted, adopt, settle
from dmcopy.stack.begin import Claim, Spliced
from dmcopy.stack.discover import Provider, Source
from dmcopy.stack.evidence import refuse_written
from dmcopy.stack.hold import Instant
from dmcopy.stack.plan import Around
from dmcopy.stack.reassemble import CheckStore
from dmcopy.stack.recover import Remains, find_remains, remove_files, remove_lvs, take_apart
from dmcopy.units import Sectors, to_sectors


class Taken(Standing):
    """A snapshot that an earlier process of the job spliced in, in this boot."""

    def __init__(
        self,
        host: Host,
        source: Source,
        spec: CopySpec,
        *,
        retired: Sequence[Extent],
        files: Sequence[str],
        store: Callable[[str], CheckStore] | None = None,
    ) -> None:
        """*retired* is on record as such, *files* are the COW device's, which go at the end.

        *store* makes the look at the exception store at a path, where the machine went down.
        """
        self._store = store
        self._host = host
        self._hold_limit = spec.hold_limit
        self._retired = tuple(retired)
        self._source = source
        self._chunk = to_sectors(spec.chunk)
        self._job = spec.name
        self._files = tuple(files)
        self._adopted: Adopted | None = None

    def lines(self) -> tuple[str, ...]:
        return ("# go on with the snapshot that is there",)

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        self.check()
        adopted = self._adopted
        assert adopted is not None
        if adopted.is_braked:
            assert self._host.dm is not None
            assert self._source.dm_name is not None
            record("take out the brake that was left")
            table = settle(
                self._host.dm,
                adopted,
                job=self._job,
                name=self._source.dm_name,
                limit=self._hold_limit,
            )
            self._adopted = replace(adopted, origin_table=table, is_braked=False)
        return None

    def check(self) -> None:
        assert self._host.dm is not None
        assert self._source.dm_name is not None
        self._adopted = adopt(
            self._host.dm,
            self._remains(),
            name=self._source.dm_name,
            original=self._source.table if self._source.provider is Provider.SPLICE else None,
            length=self._source.length,
            chunk=self._chunk,
            retired=self._retired,
        )
        if self._store is not None:
            self._store(self._host.sysfs.node(self._adopted.cow)).do()
        self.snapshot = self._host.sysfs.node(self._adopted.snapshot)

    def reading(self) -> Json:
        adopted = self._adopted
        assert adopted is not None
        return cow_reading(
            self._host.sysfs,
            source=adopted.source,
            cow=adopted.cow,
            chunk=self._chunk,
            snapshot_uuid=adopted.snapshot_uuid,
            origin=adopted.origin,
            origin_table=adopted.origin_table,
        )

    def end(self) -> float | None:
        return _take_apart(self._host, self._job, self._files)

    def _remains(self) -> Remains:
        assert self._host.dm is not None
        return find_remains(self._host.dm, self._host.sysfs).get(self._job, Remains(self._job))


class Reassembled(Standing):
    """A snapshot that is put together again around its store, after the machine went down."""

    def __init__(
        self,
        spliced: Spliced,
        source: Source,
        chunk: Sectors,
        host: Host,
        *,
        job: str,
        files: Sequence[str],
    ) -> None:
        """*files* are those of the COW device, which go at the end."""
        self._inner = SplicedNow(spliced, source, chunk, host.sysfs)
        self._source = source
        self._host = host
        self._job = job
        self._files = tuple(files)

    def lines(self) -> tuple[str, ...]:
        return self._inner.lines()

    def check(self) -> None:
        refuse_written(self._source.devno, self._source.path, self._host.sysfs)

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        self._inner.begin(record)
        self.snapshot = self._inner.snapshot
        return None

    def reading(self) -> Json:
        return self._inner.reading()

    def end(self) -> float | None:
        held = self._inner.end()
        _take_apart(self._host, self._job, self._files)
        return held


class ClaimedAgain(Standing):
    """An idle device: claimed again, if nobody wrote to it meanwhile."""

    def __init__(self, source: Source, sysfs: Sysfs, writes: int) -> None:
        self._source = source
        self._writes = writes
        self._sysfs = sysfs
        # No flush: what another left in the page cache must still be seen as a write of his.
        self._claim = Claim(source.node, sysfs, flush=False)

    def lines(self) -> tuple[str, ...]:
        return tuple(self._claim.lines())

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        record(str(self._claim))
        self._claim.do()
        self.check()
        return None

    def check(self) -> None:
        writes = self._sysfs.writes(self._source.devno) - self._writes
        if writes:
            raise PointInTimeLost(
                f"{self._source.path} was written after the job was interrupted ({writes} writes)"
            )

    def reading(self) -> Json:
        idle = {"devno": self._source.devno, "writes": self._writes}
        return {"source_path": self._source.node, "cow": None, "idle": idle}

    def facts(self) -> Json:
        return {"idle_writes": self._writes}

    def end(self) -> float | None:
        self._claim.undo()
        return None


class Over(Standing):
    """Nothing need stand any more: everything is durable at the destination, and on record.

    What was not yet taken apart when the job was interrupted still is.
    """

    def __init__(self, host: Host, job: str, files: Sequence[str]) -> None:
        self._host = host
        self._job = job
        self._files = tuple(files)

    def lines(self) -> tuple[str, ...]:
        return ()

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        raise AssertionError("a copied job begins nothing")

    def check(self) -> None:
        """Nothing can be missing."""

    def reading(self) -> Json:
        raise AssertionError("a copied job reads nothing")

    def end(self) -> float | None:
        return _take_apart(self._host, self._job, self._files)


def _take_apart(host: Host, job: str, files: Sequence[str]) -> float | None:
    """Take apart what the kernel has of a job, and remove the *files* of its COW device."""
    remains = find_remains(host.dm, host.sysfs).get(job) if host.dm is not None else None
    held = None
    left: list[str] = []
    if remains is not None and host.dm is not None:
        _, not_taken, held = take_apart(host.dm, remains)
        left += not_taken
        files = sorted(remains.cow_files().union(files))
        if remains.lvs:
            _, kept = remove_lvs(Lvm(host.run), job)
            left += kept
    _, kept_files = remove_files(files)
    left += kept_files
    if left:
        raise LeftBehind(left, job=job)
    return held
