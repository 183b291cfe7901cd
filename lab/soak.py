"""``python -m lab.soak``: everything that may be killed is killed, for as long as there is time.

In a user-mode Linux guest, copies whose processes are killed at random (`tests.lab.torture`); on
the host beside it, the power of other guests is cut (`tests.cuts`), and, where there is time, the
properties of the unit tests are tried once with many new examples.  Ever new seeds, where
``make test`` draws the same each time; a failure says which, and its artefacts are kept.  In the
end one table; the exit status is 0 only if no image was wrong, no write was stuck, and nothing
else failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab.guest import CHECKOUT

_ROUND: Final = 600.0  # seconds of one guest of kills: a new seed, new devices, a new kernel
_CUTS: Final = 2  # power cuts of one run of their tests
_LEAST: Final = 30.0  # seconds: what is left after is not worth a guest
_PROPERTIES: Final = 600.0  # seconds: a shorter soak has no time for them
_GRACE: Final = 240.0  # seconds that the last round may take longer
_POWER: Final = re.compile(r"(\d+) power cuts, (\d+) images right, (\d+) said lost, (\d+) wrong")


@dataclass
class Counts:
    """What was done so far, and what came of it."""

    kills: int = 0
    cuts: int = 0
    begun: int = 0
    images: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    stuck: int = 0
    longest: float = 0.0  # write, in seconds
    failures: list[str] = field(default_factory=list)

    def add_kills(self, tally: dict[str, Any]) -> None:  # Any: JSON
        """Add what a guest of kills wrote."""
        for name in ("kills", "begun", "images", "wrong", "stuck"):
            setattr(self, name, getattr(self, name) + tally[name])
        self.longest = max(self.longest, tally["longest"])
        for why, count in tally["lost"].items():
            self.lost[why] = self.lost.get(why, 0) + count

    def add_cuts(self, said: str) -> None:
        """Add the line that the tests of power cuts end with, if they came so far."""
        if found := _POWER.search(said):
            cuts, right, lost, wrong = (int(word) for word in found.groups())
            self.cuts += cuts
            self.images += right + wrong
            self.begun += right + wrong
            self.wrong += wrong
            if lost:
                why = "the power failed before its begin time was on record"
                self.lost[why] = self.lost.get(why, 0) + lost

    def table(self, seconds: float) -> str:
        """Give the table that the soak ends with."""
        rows: list[tuple[str, object]] = [
            ("minutes", f"{seconds / 60:.1f}"),
            ("kills", self.kills),
            ("power cuts", self.cuts),
            ("begin times checked", self.begun),
            ("images compared", self.images),
            ("said lost", sum(self.lost.values())),
            *((f"  {why}", count) for why, count in sorted(self.lost.items())),
            ("failures", len(self.failures)),
            *((f"  {failure}", "") for failure in self.failures),
            ("wrong images", self.wrong),
            ("stuck writes", f"{self.stuck} (longest write {self.longest:.2f} s)"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)

    @property
    def status(self) -> int:
        return int(bool(self.wrong or self.stuck or self.failures))


class Round:
    """One program of the soak; its artefacts go when it went well."""

    def __init__(self, name: str, seed: int, where: Path) -> None:
        self.name = f"{name}, seed {seed}"
        self.directory = where / f"{name.replace(' ', '-')}-{seed}"
        self.directory.mkdir(parents=True)
        self._log = self.directory / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], **environment: str) -> None:
        """Start it; what it says goes to its log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C is for us: we end it
            )

    def poll(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        """End it, its guest with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
                return
            self._process.kill()
            self._process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def tally(self) -> dict[str, Any] | None:  # Any: JSON
        """Give what the guest has counted so far; None where it counts nothing."""
        path = self.directory / "tally.json"
        return json.loads(path.read_text()) if path.exists() else None

    def forget(self) -> None:
        """Remove the artefacts."""
        shutil.rmtree(self.directory)


class Soak:
    """A round of each kind at a time, until the time is up; of the properties only one."""

    def __init__(self, seconds: float, seed: int, where: Path) -> None:
        self._start = time.monotonic()
        self._end = self._start + seconds
        self._seed = seed
        self._where = where
        self.counts = Counts()
        self._kills: Round | None = None
        self._cuts: Round | None = None
        self._properties: Round | None = None

    def run(self) -> None:
        """Go on until the time is up; then wait for what is under way."""
        if self._end - self._start >= _PROPERTIES:
            self._properties = self._new_properties()
        while True:
            self._kills = self._next(self._kills, self._new_kills)
            self._cuts = self._next(self._cuts, self._new_cuts)
            if self._properties is not None and (status := self._properties.poll()) is not None:
                self._ended(self._properties, status)
                self._properties = None
            if not self._rounds():
                return
            if time.monotonic() > self._end + _GRACE:
                self._give_up("does not end")
                return
            time.sleep(0.5)

    def _rounds(self) -> list[Round]:
        """Give those that run."""
        return [one for one in (self._kills, self._cuts, self._properties) if one is not None]

    def _next(self, now: Round | None, new: Callable[[int, float], Round]) -> Round | None:
        if now is not None:
            status = now.poll()
            if status is None:
                return now
            self._ended(now, status)
        left = self._end - time.monotonic()
        if left < _LEAST:
            return None
        self._seed += 1
        return new(self._seed, left)

    def _new_kills(self, seed: int, left: float) -> Round:
        new = Round("kills", seed, self._where)
        seconds = min(_ROUND, left)
        tally = new.directory / "tally.json"
        new.start(
            [
                sys.executable, "-m", "lab", "run", "--no-udev", "--memory", "1G",
                "--timeout", f"{seconds + _GRACE:.0f}", "--artefacts", str(new.directory), "--",
                sys.executable, "-m", "tests.lab.torture", "--seconds", f"{seconds:.0f}",
                "--seed", str(seed), "--tally", str(tally),
            ]
        )  # fmt: skip
        return new

    def _new_cuts(self, seed: int, left: float) -> Round:
        del left
        new = Round("power cuts", seed, self._where)
        new.start(
            [
                sys.executable, "-m", "pytest", "-q", "--color=no",
                "tests/cuts/test_power_cut.py", "-k", "test_cut_at_any_moment_of_the_copy",
            ],
            DMCOPY_CUTS=str(_CUTS),
            DMCOPY_CUTS_SEED=str(seed * _CUTS),
        )  # fmt: skip
        return new

    def _new_properties(self) -> Round:
        self._seed += 1
        new = Round("properties", self._seed, self._where)
        new.start(
            [
                sys.executable, "-m", "pytest", "-q", "--color=no", "-m", "hypothesis", "--timeout",
                "900", "--hypothesis-profile=new", f"--hypothesis-seed={self._seed}", "tests/unit",
            ]
        )  # fmt: skip
        return new

    def _ended(self, ended: Round, status: int) -> None:
        if (tally := ended.tally()) is not None:
            self.counts.add_kills(tally)
        self.counts.add_cuts(ended.said)
        minutes = (time.monotonic() - self._start) / 60
        how = "ended well" if status == 0 else f"FAILED ({status}), see {ended.directory}"
        print(f"[{minutes:5.1f} min] {ended.name}: {how}", flush=True)
        if status == 0:
            ended.forget()
            return
        self.counts.failures.append(f"{ended.name}: {ended.directory}")
        print(ended.said[-3000:], flush=True)

    def _give_up(self, why: str) -> None:
        for one in self._rounds():
            self.counts.failures.append(f"{one.name}: {why}: {one.directory}")

    def close(self) -> None:
        """End what runs; what it has counted counts."""
        for one in self._rounds():
            one.stop()
            if (tally := one.tally()) is not None:
                self.counts.add_kills(tally)
            self.counts.add_cuts(one.said)

    def table(self) -> str:
        """Give the table of the time so far."""
        return self.counts.table(time.monotonic() - self._start)


def main(argv: Sequence[str]) -> int:
    """Soak; 130 when interrupted and nothing was wrong until then."""
    parser = argparse.ArgumentParser(prog="python -m lab.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9 % 10**6 * 1000)
    options = parser.parse_args(argv)
    where = CHECKOUT / ".lab" / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    # Also where our parent had SIGINT ignored, as shells do for what runs in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    soak = Soak(options.minutes * 60, options.seed, where)
    print(f"{options.minutes:g} minutes; first seed {options.seed + 1}; {where}", flush=True)
    interrupted = False
    try:
        soak.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        soak.close()
    print(soak.table(), flush=True)
    return soak.counts.status or (130 if interrupted else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
