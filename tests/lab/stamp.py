"""A self-proving load: every 4 KiB block says who wrote it, when and where.

``load`` writes to a device at random places, in several processes, each of which owns a share
of the device and has one write under way; it notes each write before it is submitted and when
it is acknowledged, in a mapped file that survives a SIGKILL.  ``check`` takes an image and
proves that it is one instant: for every process there is a write K so that each block
holds exactly the last write up to K (K itself may be there in part: it was under way); and that
the instant lies between *t0* and *t1* (what was acknowledged before t0 is there, what was
submitted after t1 is not).  A block that is torn, misplaced or of another run is named.

Stands alone: only the standard library, no dmcopy.

    stamp.py fill DEVICE --seed 1
    stamp.py load DEVICE --log DIR --seed 1 --seconds 10 [--processes 2] [--fsync-every 16]
    stamp.py check IMAGE --log DIR --seed 1 [--t0 NS --t1 NS]      # NS: time.time_ns()
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

BLOCK: Final = 4096
MAX_BLOCKS: Final = 256  # of one write: 1 MiB
MAGIC: Final = b"dmcstamp"
# magic, seed, sequence, offset (bytes), process, pad, wall ns, mono ns, pad, crc32 of the rest
_HEAD: Final = struct.Struct("<8sQQQIIQQI")
_CRC: Final = struct.Struct("<I")
_UNIT: Final = _HEAD.size + _CRC.size  # repeated over the block, so that a torn one shows
_REPEAT: Final = BLOCK // _UNIT
_RECORD: Final = struct.Struct("<QIIQQ")  # offset, blocks, state, submitted ns, acknowledged ns
_CAPACITY: Final = 1 << 19  # writes of one process; the file is sparse
_LOG_HEAD: Final = struct.Struct("<QQQ")  # seed, length, processes
_LOG_START: Final = 4096

assert _UNIT * _REPEAT == BLOCK


class Write(NamedTuple):
    """One write of the log; *sequence* counts from 1 in each process."""

    sequence: int
    offset: int  # bytes
    blocks: int
    submitted: int  # ns, time.time_ns()
    acknowledged: int  # 0: never


class Stamp(NamedTuple):
    """What a block says of itself."""

    seed: int
    sequence: int
    offset: int
    process: int
    wall: int
    mono: int


def stamp(at: Stamp) -> bytes:
    """Make one block."""
    head = _HEAD.pack(MAGIC, at.seed, at.sequence, at.offset, at.process, 0, at.wall, at.mono, 0)
    return (head + _CRC.pack(zlib.crc32(head))) * _REPEAT


def read_stamp(block: bytes) -> Stamp | None:
    """Read a block; None when it is torn or none of ours."""
    head = block[: _HEAD.size]
    (crc,) = _CRC.unpack_from(block, _HEAD.size)
    if zlib.crc32(head) != crc or block[_UNIT:] != block[:-_UNIT]:
        return None
    magic, seed, sequence, offset, process, _, wall, mono, _ = _HEAD.unpack(head)
    return Stamp(seed, sequence, offset, process, wall, mono) if magic == MAGIC else None


def shares(length: int, processes: int) -> list[range]:
    """Give the blocks that each process owns."""
    blocks = length // BLOCK
    edges = [blocks * n // processes for n in range(processes + 1)]
    return [range(edges[n], edges[n + 1]) for n in range(processes)]


def device_length(path: str) -> int:
    """Give the size of a device or file in bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


# the load


class Log:
    """The writes of one process: a mapped file, so that nothing is lost by a SIGKILL."""

    def __init__(self, path: Path, *, seed: int, length: int, processes: int) -> None:
        size = _LOG_START + _CAPACITY * _RECORD.size
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(fd, size)
        self._map = mmap.mmap(fd, size)
        os.close(fd)
        _LOG_HEAD.pack_into(self._map, 0, seed, length, processes)
        self.count = 0

    @property
    def is_full(self) -> bool:
        return self.count == _CAPACITY

    def submit(self, offset: int, blocks: int, now: int) -> int:
        """Note a write before it is submitted; give its sequence number."""
        where = _LOG_START + self.count * _RECORD.size
        _RECORD.pack_into(self._map, where, offset, blocks, 0, now, 0)
        struct.pack_into("<I", self._map, where + 12, 1)  # last: others read it meanwhile
        self.count += 1
        return self.count

    def acknowledge(self, sequence: int, now: int) -> None:
        where = _LOG_START + (sequence - 1) * _RECORD.size
        struct.pack_into("<Q", self._map, where + 24, now)


def read_log(path: Path) -> tuple[tuple[int, int, int], list[Write]]:
    """Give (seed, length, processes) and the writes."""
    writes: list[Write] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        for number in range(_CAPACITY):  # to the first that is not used
            where = _LOG_START + number * _RECORD.size
            offset, blocks, state, submitted, acknowledged = _RECORD.unpack_from(data, where)
            if not state:
                break
            writes.append(Write(number + 1, offset, blocks, submitted, acknowledged))
        return _LOG_HEAD.unpack_from(data), writes


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the load does; `run` writes until the time is up or a SIGTERM comes."""

    device: str
    log: Path
    seed: int
    seconds: float
    processes: int = 1
    fsync_every: int = 0
    max_blocks: int = MAX_BLOCKS
    pause: float = 0.0  # seconds between two writes

    def run(self) -> int:
        """Write in *processes* processes; give 0 when all went well."""
        self.log.mkdir(parents=True, exist_ok=True)
        length = device_length(self.device)
        children = []
        for number, share in enumerate(shares(length, self.processes)):
            pid = os.fork()
            if pid == 0:
                os._exit(self._child(number, share, length))
            children.append(pid)

        def end(*_: object) -> None:
            for child in children:
                os.kill(child, signal.SIGTERM)

        signal.signal(signal.SIGTERM, end)
        return max([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])

    def _child(self, number: int, share: range, length: int) -> int:
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        try:
            log = Log(
                self.log / f"log.{number}", seed=self.seed, length=length, processes=self.processes
            )
            self._write(number, share, log, stop)
        except BaseException as exc:
            print(f"stamp: {exc!r}", file=sys.stderr, flush=True)
            return 1
        return 0

    def _write(self, number: int, share: range, log: Log, stop: list[int]) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        memory = mmap.mmap(-1, self.max_blocks * BLOCK)
        view = memoryview(memory)
        fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        deadline = time.monotonic() + self.seconds
        while not stop and not log.is_full and time.monotonic() < deadline:
            blocks = 1 << chance.randrange(self.max_blocks.bit_length())
            blocks = min(chance.randint((blocks + 1) // 2, blocks), len(share))
            first = chance.randrange(share.start, share.stop - blocks + 1)
            wall, mono = time.time_ns(), time.monotonic_ns()
            sequence = log.submit(first * BLOCK, blocks, wall)
            for index in range(blocks):
                at = Stamp(self.seed, sequence, (first + index) * BLOCK, number, wall, mono)
                memory[index * BLOCK : (index + 1) * BLOCK] = stamp(at)
            size = blocks * BLOCK
            if os.pwrite(fd, view[:size], first * BLOCK) != size:
                raise OSError(f"short write at {first * BLOCK}")
            log.acknowledge(sequence, time.time_ns())
            if self.fsync_every and sequence % self.fsync_every == 0:
                os.fsync(fd)
            if self.pause:
                time.sleep(self.pause)
        os.close(fd)


def fill(device: str, seed: int, processes: int = 1) -> None:
    """Stamp the whole device with sequence 0."""
    length = device_length(device)
    memory = mmap.mmap(-1, MAX_BLOCKS * BLOCK)
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    wall, mono = time.time_ns(), time.monotonic_ns()
    for number, share in enumerate(shares(length, processes)):
        for first in range(share.start, share.stop, MAX_BLOCKS):
            blocks = min(MAX_BLOCKS, share.stop - first)
            for index in range(blocks):
                at = Stamp(seed, 0, (first + index) * BLOCK, number, wall, mono)
                memory[index * BLOCK : (index + 1) * BLOCK] = stamp(at)
            os.pwrite(fd, memoryview(memory)[: blocks * BLOCK], first * BLOCK)
    os.fsync(fd)
    os.close(fd)


# the proof


@dataclass
class Verdict:
    """What an image is; it is the image of one instant when *wrong* is empty."""

    wrong: list[str] = field(default_factory=list)  # the first 20
    wrong_blocks: int = 0
    blocks: int = 0
    writes: int = 0
    last: list[int] = field(default_factory=list)  # K of each process

    @property
    def is_good(self) -> bool:
        return not self.wrong

    def add(self, what: str) -> None:
        self.wrong_blocks += 1
        if len(self.wrong) < 20:
            self.wrong.append(what)


def check(
    image: str, log: Path, seed: int, *, t0: int | None = None, t1: int | None = None
) -> Verdict:
    """Prove that *image* is one instant between *t0* and *t1* (ns, time.time_ns()).

    A block of zeroes counts as never written.  Every write that was submitted before the
    image was taken is in the log, so check after the load has ended, or of a later log.
    """
    verdict = Verdict()
    first = sorted(log.glob("log.*"), key=lambda path: int(path.suffix[1:]))
    logs = [read_log(path) for path in first]
    _, length, processes = logs[0][0]
    found = _sequences(image, seed, length, processes, verdict)
    for number, ((_, writes), share) in enumerate(
        zip(logs, shares(length, processes), strict=True)
    ):
        verdict.writes += len(writes)
        _check_share(number, share, found, writes, verdict=verdict, between=(t0, t1))
    return verdict


_BAD: Final = (1 << 64) - 1


def _blocks(image: str, length: int) -> Iterator[tuple[int, bytes]]:
    with open(image, "rb", buffering=0) as file:
        memory = bytearray(MAX_BLOCKS * BLOCK)
        at = 0
        while at < length:
            got = file.readinto(memory)
            if not got:
                raise EOFError(f"{image} ends at {at}, not at {length}")
            for start in range(0, got, BLOCK):
                yield at + start, bytes(memory[start : start + BLOCK])
            at += got


def _sequences(image: str, seed: int, length: int, processes: int, verdict: Verdict) -> array[int]:
    found = array("Q", [0]) * (length // BLOCK)
    zero = bytes(BLOCK)
    owners = array("I")
    for number, share in enumerate(shares(length, processes)):
        owners.extend([number] * len(share))
    for offset, block in _blocks(image, length // BLOCK * BLOCK):
        verdict.blocks += 1
        index = offset // BLOCK
        if block == zero:
            continue
        said = read_stamp(block)
        if said is None:
            verdict.add(f"block at {offset} is torn, or was never written by us")
        elif said.seed != seed or said.process != owners[index]:
            verdict.add(f"block at {offset} is of another run: {said}")
        elif said.offset != offset:
            verdict.add(f"block at {offset} belongs at {said.offset}: {said}")
        else:
            found[index] = said.sequence
            continue
        found[index] = _BAD
    return found


def _check_share(
    number: int,
    share: range,
    found: array[int],
    writes: list[Write],
    *,
    verdict: Verdict,
    between: tuple[int | None, int | None],
) -> None:
    last = max((found[i] for i in share if found[i] != _BAD), default=0)
    # A write of which a later one has overwritten nothing yet is seen; K may be hidden only if
    # nothing of it is in the image at all, and then the image is that of K - 1.
    verdict.last.append(last)
    if last > len(writes):
        verdict.add(f"process {number}: write {last} is in the image but was never submitted")
        return
    wanted = array("Q", [0]) * len(found)
    for write in writes[: max(last - 1, 0)]:
        start = write.offset // BLOCK
        wanted[start : start + write.blocks] = array("Q", [write.sequence]) * write.blocks
    under_way = range(0)
    if last:
        begin = writes[last - 1].offset // BLOCK
        under_way = range(begin, begin + writes[last - 1].blocks)
    for index in share:
        got = found[index]
        if got in (wanted[index], _BAD) or (got == last and index in under_way):
            continue
        verdict.add(
            f"block at {index * BLOCK} is of write {got} of process {number}; "
            f"at write {last} it was {wanted[index]}"
        )
    for what in _too_early_or_late(last, found, under_way, writes, between):
        verdict.add(f"process {number}: {what}")


def _too_early_or_late(
    last: int,
    found: array[int],
    under_way: range,
    writes: list[Write],
    between: tuple[int | None, int | None],
) -> Iterator[str]:
    t0, t1 = between
    if t1 is not None and last and writes[last - 1].submitted > t1:
        late = writes[last - 1].submitted - t1
        yield f"write {last} was submitted {late} ns after the instant"
    if t0 is None:
        return
    due = max((w.sequence for w in writes if w.acknowledged and w.acknowledged < t0), default=0)
    if last < due:
        yield f"write {due} was acknowledged before the instant, but {last} is the last"
    if last and last == due:
        for index in under_way:
            if found[index] not in (last, _BAD):
                yield f"block at {index * BLOCK} lacks the acknowledged write {last}"


def main(argv: list[str]) -> int:
    """Do what the command line says; ``check`` prints its verdict as JSON."""
    parser = argparse.ArgumentParser(description="a self-proving load")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("fill", "load", "check"):
        one = verbs.add_parser(verb)
        one.add_argument("path")
        one.add_argument("--seed", type=int, default=1)
        one.add_argument("--log", type=Path)
        one.add_argument("--processes", type=int, default=1)
        one.add_argument("--seconds", type=float, default=10.0)
        one.add_argument("--fsync-every", type=int, default=0)
        one.add_argument("--max-blocks", type=int, default=MAX_BLOCKS)
        one.add_argument("--pause", type=float, default=0.0)
        one.add_argument("--t0", type=int)
        one.add_argument("--t1", type=int)
    options = parser.parse_args(argv)
    if options.verb == "fill":
        fill(options.path, options.seed, options.processes)
        return 0
    if options.verb == "load":
        return Load(
            device=options.path,
            log=options.log,
            seed=options.seed,
            seconds=min(options.seconds, 600.0),
            processes=options.processes,
            fsync_every=options.fsync_every,
            max_blocks=options.max_blocks,
            pause=options.pause,
        ).run()
    verdict = check(options.path, options.log, options.seed, t0=options.t0, t1=options.t1)
    print(json.dumps({"good": verdict.is_good, **asdict(verdict)}))
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
