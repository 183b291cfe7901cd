"""``python -m benchmarks``: measure in a guest, then show."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures, forecast, impact, ordering, plot, recorder
from benchmarks.host import GIB, finish, install, measure_in_guest
from benchmarks.methods import METHODS
from benchmarks.samples import Run
from lab.guest import CHECKOUT, LabError, parse_size


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("copy", help="dmcopy copy and its peers, side by side")
    verb.add_argument("--engine", choices=("uml", "host"), default="uml")
    verb.add_argument("--size", default="1G", metavar="SIZE", help="of the source (default: 1G)")
    verb.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    verb.add_argument("--iops", type=int, default=250, help="of the load (default: %(default)s)")
    verb.add_argument(
        "--memory-seconds", type=float, default=60.0, metavar="SECONDS",
        help="longest copy whose memory is sampled; 0: none (default: %(default)g)",
    )  # fmt: skip
    verb.add_argument("--only", action="append", default=[], choices=[one.name for one in METHODS])
    verb.add_argument("--out", type=Path, default=CHECKOUT / "docs", metavar="DIR")
    verb.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    verb = verbs.add_parser("forecast", help="how wrong the forecast is on recorded copies")
    verb.add_argument("--record", action="store_true", help="record them again, in a guest")
    verb.add_argument(
        "--only", action="append", default=[], choices=[one.name for one in recorder.LOADS],
        help="with --record: this one",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, default=forecast.REPORT, metavar="FILE")
    impact.add_options(verbs.add_parser("impact", help="what the application feels of a copy"))
    verbs.add_parser("order", help="what --order hot saves on long copies: a simulation")
    verb = verbs.add_parser("show", help="table and plot again, from the JSON file of a run")
    verb.add_argument("file", type=Path)
    return parser


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; the exit status is 0 when every method ran."""
    options = _options().parse_args(argv)
    if options.verb == "show":
        data = json.loads(options.file.read_text())
        if data.get("benchmark") == impact.NAME:
            impact.show(data, options.file)
        else:
            show(Run.from_json(data), options.file)
        return 0
    try:
        if options.verb == "forecast":
            return forecast.main(out=options.out, again=options.record, only=options.only)
        if options.verb == "order":
            return ordering.main()
        if options.verb == "impact":
            return impact.measure(options)
        return measure(options)
    except LabError as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace) -> int:
    """Run the guest's part, then show what it found."""
    install()
    size = parse_size(options.size)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    measured = measure_in_guest(
        "benchmarks.stage",
        "--size", str(size), "--rounds", str(options.rounds), "--iops", str(options.iops),
        "--memory-seconds", str(options.memory_seconds),
        *(f"--only={name}" for name in options.only),
        name="benchmark",
        engine=options.engine,
        # three RAM disks, the page cache of buffered peers, the programs themselves
        memory_bytes=4 * size + GIB,
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
        "block_bytes": 4096,
        "chunk_bytes": 64 << 10,
        "seconds": measured.seconds,
        "methods": {one.name: {"command": one.command, "reads": one.how} for one in METHODS},
    }
    if measured.why:
        run.failures.append(measured.why)
    show(run, out / "benchmark-copy.json")
    return finish(measured, run.failures)


def show(run: Run, file: Path) -> None:
    """Print the table and write the files beside *file*."""
    print(figures.text(run), flush=True)
    data = run.as_json() | {"goals": [goal._asdict() for goal in figures.goals(run)]}
    file.write_text(json.dumps(data, indent=1) + "\n")
    file.with_suffix(".svg").write_text(plot.svg(run))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
