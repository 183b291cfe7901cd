"""A machine whose power can be cut: its disks are files, and outlive it.

Host side.  Each boot is a user-mode Linux guest of its own (two to three seconds), which runs
`tests.cuts.guest_side` and tells what it does by small files in the share.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.guest import CHECKOUT, CUT, Disk, Result, run
from tests.cuts.layout import SIZE, SLICES, STATE_SIZE, WHOLE, partition_table
from tests.lab.stamp import BLOCK, Stamp, stamp

_MEMORY: Final = "512M"
_LIMIT: Final = 300.0  # seconds of one boot; most take less than 15

Cut = Callable[[], bool]


@dataclass
class Tally:
    """What became of all the cuts of this session."""

    cuts: int = 0
    right: int = 0
    lost: int = 0
    wrong: int = 0
    replayed: int = 0  # moments of a log

    def __str__(self) -> str:
        return (
            f"{self.cuts} power cuts, {self.right} images right, {self.lost} said lost, "
            f"{self.wrong} wrong; {self.replayed} moments replayed from a log of writes"
        )


TALLY: Final = Tally()


def stamped(seed: int, length: int = SIZE) -> bytes:
    """Give content in which each block says where it belongs, and whose it is."""
    blocks = range(0, length, BLOCK)
    return b"".join(stamp(Stamp(seed, 0, offset, 0, 0, 0)) for offset in blocks)


class Media:
    """The disks before the first boot, made once: what a machine starts with is a copy."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.destination = folder / "destination"
        self.state = folder / "state"
        self.source.write_bytes(stamped(1))
        # not zeroes: whatever the copy does not write shows
        self.destination.write_bytes(stamped(99))
        with self.state.open("wb") as file:
            file.truncate(STATE_SIZE)
        mkfs = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]
        subprocess.run([*mkfs, str(self.state)], check=True)

    @property
    def all(self) -> tuple[Path, ...]:
        return self.source, self.destination, self.state

    def joined(self, path: Path) -> Path:
        """Make one disk of the three, each of them a partition."""
        with path.open("wb") as whole:
            whole.truncate(WHOLE)
            whole.write(partition_table())
            for disk, (start, _) in zip(self.all, SLICES.values(), strict=True):
                whole.seek(start)
                whole.write(disk.read_bytes())
        return path


def live(
    module: str, *words: str, disks: Sequence[Path], share: Path, cut: Cut | None = None
) -> Result:
    """Boot a guest, have it run *module* of ours with *words*, and wait for its end, or the cut."""
    return run(
        [sys.executable, "-m", f"tests.cuts.{module}", *words],
        disks=[Disk(path=path) for path in disks],
        memory=_MEMORY,
        timeout=_LIMIT,
        artefacts=share,
        cwd=CHECKOUT,
        udev=False,
        quiet=True,
        cut=cut,
    )


def said(result: Result) -> str:
    """Give the end of what a guest and its kernel said, for the message of a failure."""
    texts = [path.read_text(errors="replace")[-3000:] for path in (result.output, result.console)]
    return "\n".join([f"status {result.status} {result.why}", *texts])


class Machine:
    """Disks and a share; `boot` is one life of it."""

    def __init__(self, folder: Path, blanks: Sequence[Path], *, runs: str = "guest_side") -> None:
        """It begins with copies of *blanks*; *runs* is the module that it runs."""
        self.share = folder / "share"
        self.share.mkdir(parents=True)
        self.disks = [folder / path.name for path in blanks]
        for path, blank in zip(self.disks, blanks, strict=True):
            shutil.copyfile(blank, path)
        self._runs = runs
        self.story: list[str] = []  # what happened, for the message of a failure

    def discard(self) -> None:
        """Free what its disks take."""
        for path in self.disks:
            path.unlink()

    # lives

    def boot(self, *words: str, cut: Cut | None = None) -> Result:
        """Boot, run the module with *words*, and wait for its end, or for the cut."""
        for name in ("ready", "ended", "found", "cut-now", "transitions", "events", "errors"):
            (self.share / name).unlink(missing_ok=True)
        result = live(self._runs, *words, disks=self.disks, share=self.share, cut=cut)
        TALLY.cuts += result.status == CUT
        done = self.transitions[-1:]
        self.story.append(
            f"{' '.join(words)}: status {result.status} {result.why} in {result.seconds:.1f} s, "
            f"after {done}, ready: {self.has('ready')}, ended: {self.read('ended')}"
        )
        if self.has("found"):
            self.story.append(f"found: {self.read('found')}")
        return result

    def begin(self, *words: str, cut: Cut) -> None:
        """Begin a copy in a first life that is cut short."""
        result = self.boot("begin", *words, cut=cut)
        assert result.status == CUT, self.tell(result)

    def again(self, *words: str) -> dict[str, Any]:  # Any: JSON
        """Live again, to the end; give what `guest_side.again` found."""
        result = self.boot("again", *words)
        assert result.status == 0, self.tell(result)
        found: dict[str, Any] = json.loads(self.read("found"))  # Any: JSON
        return found

    @property
    def source(self) -> Path:
        return self.disks[0]

    @property
    def destination(self) -> Path:
        return self.disks[1]

    # what the guest says

    def has(self, name: str) -> bool:
        return (self.share / name).exists()

    def read(self, name: str) -> str:
        return (self.share / name).read_text() if self.has(name) else ""

    @property
    def transitions(self) -> list[str]:
        return self.read("transitions").splitlines()

    @property
    def witness(self) -> bytes:
        return (self.share / "witness").read_bytes()

    def tell(self, result: Result | None = None) -> str:
        """Say all that is known, for the message of a failure."""
        more = [said(result)] if result is not None else []
        return "\n".join([*self.story, self.read("errors"), *more])

    # when to cut

    def after_ready(self, seconds: float) -> Cut:
        """Cut that long after the witness is safe and the copy goes on."""
        since: list[float] = []

        def cut() -> bool:
            if not since and self.has("ready"):
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] >= seconds

        return cut

    def when_asked(self, *, behind: float = 0.0) -> Cut:
        """Cut when the guest asks for it, for its fuse has blown; *behind* seconds later."""
        since: list[float] = []

        def cut() -> bool:
            if not since and self.read("cut-now").endswith("\n"):
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] >= behind

        return cut
