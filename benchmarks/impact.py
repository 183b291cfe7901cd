"""``python -m benchmarks impact``: how much the application feels a copy.

The host's side: boots the guest, runs `benchmarks.impact_stage` in it, shows what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import impact_figures, impact_plot
from benchmarks.distribution import DISTRIBUTIONS, UNIFORM
from benchmarks.host import GIB, finish, install, measure_in_guest
from benchmarks.impact_devices import SPARE
from benchmarks.impact_methods import GATE, LVM_DD, LVM_QEMU, METHODS, NONE, RETIRE
from benchmarks.impact_samples import Run
from lab.guest import CHECKOUT, parse_size

NAME: Final = "impact"
_QUICK: Final[dict[str, Any]] = {  # Any: values of argparse
    "size": "16M",
    "rounds": 1,
    "pause": 0.5,
    "retired_rounds": 1,
    "retired_seconds": 0.3,
    "load": [UNIFORM],
    "only": [NONE, LVM_DD, LVM_QEMU, RETIRE, GATE],  # the others run the same code
}


def add_options(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("--engine", choices=("uml", "host"), default="uml")
    verb.add_argument("--size", default="384M", help="of the source (default: %(default)s)")
    verb.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    verb.add_argument("--iops", type=int, default=60, help="of the load (default: %(default)s)")
    verb.add_argument(
        "--delay", type=int, default=150, metavar="MILLISECONDS",
        help="of each write to the destination (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--pause", type=float, default=2.0, metavar="SECONDS",
        help="of the load before and after the copy (default: %(default)g)",
    )  # fmt: skip
    verb.add_argument("--retired-rounds", type=int, default=4, metavar="COUNT")
    verb.add_argument("--retired-seconds", type=float, default=3.0, metavar="SECONDS")
    verb.add_argument("--only", action="append", default=[], choices=[one.name for one in METHODS])
    verb.add_argument("--load", action="append", default=[], choices=list(DISTRIBUTIONS))
    verb.add_argument(
        "--quick", action="store_true",
        help="tiny, one round, one load: whether it works, not what comes out",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, default=CHECKOUT / "docs", metavar="DIR")
    verb.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")


def measure(options: argparse.Namespace) -> int:
    """Run the guest's part, then show what it found; 0 when every method ran."""
    if options.quick:
        vars(options).update(_QUICK)
    install()
    size = parse_size(options.size)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    measured = measure_in_guest(
        "benchmarks.impact_stage",
        "--size", str(size), "--rounds", str(options.rounds), "--iops", str(options.iops),
        "--delay", str(options.delay), "--pause", str(options.pause),
        "--retired-rounds", str(options.retired_rounds),
        "--retired-seconds", str(options.retired_seconds),
        *(f"--only={name}" for name in options.only),
        *(f"--load={name}" for name in options.load),
        name="impact",
        engine=options.engine,
        memory_bytes=5 * (size + SPARE) + GIB,
        timeout=options.timeout,
    )  # fmt: skip
    if measured is None:
        return 1
    run = Run.from_json(measured.data)
    run.machine = {"host": measured.machine, "guest": run.machine}
    run.setup = {
        "engine": options.engine,
        "size_bytes": size,
        "rounds": options.rounds,
        "iops": options.iops,
        "delay_ms": options.delay,
        "pause_seconds": options.pause,
        "block_bytes": 4096,
        "chunk_bytes": 64 << 10,
        "seconds": measured.seconds,
        "loads": {one.name: one.about for one in DISTRIBUTIONS.values()},
        "methods": {one.name: one.command for one in METHODS},
    }
    if measured.why:
        run.failures.append(measured.why)
    show(run.as_json(), out / "benchmark-impact.json")
    return finish(measured, run.failures)


def show(data: Mapping[str, Any], file: Path) -> None:  # Any: JSON
    """Print the table and write the files beside *file*."""
    run = Run.from_json(data)
    print(impact_figures.text(run), flush=True)
    goals = [goal._asdict() for goal in impact_figures.goals(run)]
    file.write_text(json.dumps(run.as_json() | {"goals": goals}) + "\n")
    file.with_suffix(".svg").write_text(impact_plot.svg(run))
