"""``python -m dmcopy.jobs.worker``: the process that moves the blocks of one job.

Composes destinations, kernel and engine; control starts it and speaks with it
(`jobs.link`).  It imports little, starts no program and never forks: a fork beside
O_DIRECT reads into private memory corrupts data (open(2), NOTES).
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, NoReturn

from dmcopy.destinations import parse
from dmcopy.destinations.base import Surroundings
from dmcopy.engine.channel import Channel
from dmcopy.engine.copier import DirectSource, SegmentReader
from dmcopy.engine.exceptions_view import CowView, NullView
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.request import CopyRequest, CowRequest, OpenRequest, TablesRequest
from dmcopy.engine.runs import Digest
from dmcopy.engine.throttle import HostCap, Throttle
from dmcopy.engine.validate import IdleValidator, Layer, SnapshotValidator
from dmcopy.engine.worker import Reading, Saw, Service, WorkSession
from dmcopy.errors import DmcopyError, SourceFailed
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.dmrequest import CONTROL, Probe
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.parent import end_with_parent
from dmcopy.kernel.priority import step_back
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import KIB, Sectors

_STACK: Final = 512 * KIB  # of a thread; mlockall makes all of it resident


class HostWorkshop:
    """The devices of this host."""

    def __init__(self, sysfs: Sysfs, stop: Stop) -> None:
        self._sysfs = sysfs
        self._stop = stop

    def open(self, request: OpenRequest) -> AbstractContextManager[WorkSession]:
        """Open the destination; control has checked for signatures before, we start nothing."""
        around = Surroundings(
            sysfs=self._sysfs,
            run=Commander(_start_nothing),
            source=request.source_devno,
            overwrite_signature=request.overwrite_signature,
            spare=frozenset(request.spare),
            identity=request.identity,
            resume=request.resume,
        )
        return parse(request.destination).open(request.length, around)

    @contextmanager
    def read(self, request: CopyRequest, saw: Saw) -> Iterator[Reading]:
        """Open the source, and the COW device where there is one, both O_DIRECT."""
        with _opened(request.source_path) as device:
            source = DirectSource(device.fd, device.path)
            if request.cow is not None:
                with _cow(request.cow, source, request.length, saw) as reading:
                    yield reading
                return
            view = NullView()
            idle = IdleValidator(
                lambda: self._sysfs.writes(request.devno), request.writes, request.source_path
            )
            yield Reading(SegmentReader(source, view, idle), view, idle)

    def digest(self, name: str) -> Digest | None:
        """Give a new digest, None for ``none``."""
        return None if name == "none" else hashlib.new(name, usedforsecurity=False)

    @contextmanager
    def throttle(self, request: CopyRequest) -> Iterator[Throttle]:
        """Open the host's cap, where control names it."""
        cap = HostCap.open(Path(request.cap)) if request.cap is not None else None
        try:
            yield Throttle(request.rate, cap=cap, stop=lambda: self._stop.is_set)
        finally:
            if cap is not None:
                cap.close()

    def lock_memory(self) -> bool:
        """Keep the process in RAM."""
        return lock_memory()


@contextmanager
def _cow(request: CowRequest, source: DirectSource, length: Sectors, saw: Saw) -> Iterator[Reading]:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        with _opened(request.path) as cow:
            view = CowView(
                cow.fd,
                cow.path,
                chunk=request.chunk,
                source=length,
                block=cow.logical_block,
                size=lambda: cow.sectors,
                saw=saw,
            )
            validator = SnapshotValidator(
                Probe(control, uuid=request.snapshot_uuid),
                Probe(control, devno=request.origin_devno),
                request.origin_table,
            )

            def allow(tables: TablesRequest) -> None:
                layers = [
                    Layer(uuid, Probe(control, uuid=uuid), allowed)
                    for uuid, allowed in tables.layers
                ]
                validator.allow(tables.origin, layers)

            yield Reading(SegmentReader(source, view, validator), view, validator, allow)
    finally:
        os.close(control)


@contextmanager
def _opened(path: str) -> Iterator[BlockDevice]:
    try:
        device = BlockDevice.open(path)
    except OSError as exc:
        raise SourceFailed(f"cannot open {path}: {exc.strerror}") from exc
    with device:
        yield device


def _start_nothing(argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
    raise AssertionError(f"the worker starts no program: {argv}")


def main() -> NoReturn:
    """Serve control on stdin and stdout, and exit."""
    end_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.WARNING, format="dmcopy worker: %(message)s")
    step_back()
    threading.stack_size(_STACK)
    # What anything might print must not get between the messages.
    messages = os.dup(1)
    os.dup2(2, 1)
    stop = Stop()
    channel = Channel(0, messages, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for control to decide on
    signal.signal(signal.SIGTERM, lambda *_: channel.stop("stopped by SIGTERM"))
    service = Service(channel, HostWorkshop(Sysfs(), stop), stop)
    try:
        channel.start()
    except RuntimeError as exc:  # a limit of processes or memory
        why = f"the worker could not begin: {exc}"
        channel.send("failed", kind=DmcopyError.kind, message=why, offset_bytes=None)
        sys.exit(1)
    gc.freeze()  # what was imported stays: no collection need look at it again
    sys.exit(service.run())


if __name__ == "__main__":
    main()
