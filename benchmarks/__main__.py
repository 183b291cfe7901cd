"""``python -m benchmarks``: measure in a guest, then show."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import figures, forecast, plot, recorder
from benchmarks.methods import METHODS
from benchmarks.samples import Run
from lab.guest import CHECKOUT, LabError, parse_size
from lab.guest import run as run_guest

_PACKAGES: Final = {
    "qemu-img": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "dmsetup": "dmsetup",
}


def install() -> None:
    """Install what the peers need; says what, and does nothing when all is there."""
    path = "/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")
    missing = sorted({pkg for tool, pkg in _PACKAGES.items() if not shutil.which(tool, path=path)})
    if not missing:
        return
    print(f"benchmarks: installing {', '.join(missing)}", flush=True)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True
    )


def machine() -> dict[str, Any]:  # Any: JSON
    """Describe the machine that the guest runs on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
    }


def _commit() -> str:
    git = ["git", "-C", str(CHECKOUT)]
    done = subprocess.run(
        [*git, "describe", "--always", "--abbrev=10"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def frozen(where: Path) -> Path:
    """Unpack what is committed, and give the directory: nobody's edits get into a run."""
    where.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(CHECKOUT), "archive", "HEAD", "dmcopy", "benchmarks", "lab"],
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(where)], check=True, input=archive)
    compileall.compile_dir(where, quiet=2)  # as an installed package is
    return where


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
    verb = verbs.add_parser("show", help="table and plot again, from the JSON file of a run")
    verb.add_argument("file", type=Path)
    return parser


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; the exit status is 0 when every method ran."""
    options = _options().parse_args(argv)
    if options.verb == "show":
        run = Run.from_json(json.loads(options.file.read_text()))
        show(run, options.file)
        return 0
    try:
        if options.verb == "forecast":
            return forecast.main(out=options.out, again=options.record, only=options.only)
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
    work = CHECKOUT / ".lab" / f"benchmark-{os.getpid()}"
    tree = frozen(work / "tree")
    described = machine()
    result = run_guest(
        [
            sys.executable, "-m", "benchmarks.stage",
            "--size", str(size), "--rounds", str(options.rounds), "--iops", str(options.iops),
            "--memory-seconds", str(options.memory_seconds), "--out", str(work / "samples.json"),
            *(f"--only={name}" for name in options.only),
        ],
        engine=options.engine,
        # three RAM disks, the page cache of buffered peers, the programs themselves
        memory=f"{(4 * size >> 20) + 1024}M",
        timeout=options.timeout,
        artefacts=work,
        cwd=tree,
        # without what the lab's tests preload, so that nobody gains by it
        env={"PYTHONPATH": str(tree), "LD_PRELOAD": ""},
    )  # fmt: skip
    samples = work / "samples.json"
    if not samples.exists():
        print(f"benchmarks: no round was finished: {result.why or result.status}", file=sys.stderr)
        return 1
    run = Run.from_json(json.loads(samples.read_text()))
    described["load_average_after"] = os.getloadavg()
    run.machine = {"host": described, "guest": run.machine}
    run.setup = {
        "engine": options.engine,
        "size_bytes": size,
        "rounds": options.rounds,
        "iops": options.iops,
        "block_bytes": 4096,
        "chunk_bytes": 64 << 10,
        "seconds": round(result.seconds),
        "methods": {one.name: {"command": one.command, "reads": one.how} for one in METHODS},
    }
    if result.why:
        run.failures.append(result.why)
    show(run, out / "benchmark-copy.json")
    if run.failures:
        print(f"benchmarks: what the guest left is in {work}", file=sys.stderr)
        return 1
    shutil.rmtree(work)
    return 0


def show(run: Run, file: Path) -> None:
    """Print the table and write the files beside *file*."""
    print(figures.text(run), flush=True)
    data = run.as_json() | {"goals": [goal._asdict() for goal in figures.goals(run)]}
    file.write_text(json.dumps(data, indent=1) + "\n")
    file.with_suffix(".svg").write_text(plot.svg(run))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
