"""``python -m lab``: run a command, or a shell, in a guest."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lab.check import check, write_junit
from lab.guest import ENGINES, GUESTS, Disk, LabError, run
from lab.install import install


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--engine", choices=ENGINES, default=os.environ.get("LAB_ENGINE", "uml"))
    guest = argparse.ArgumentParser(add_help=False, parents=[common])
    guest.add_argument("--disk", action="append", default=[], metavar="SIZE|FILE")
    guest.add_argument("--memory", default="1536M", metavar="SIZE")
    guest.add_argument("--artefacts", type=Path, metavar="DIR")
    guest.add_argument("--no-udev", action="store_true", help="leave systemd-udevd out")
    guest.add_argument("--systemd", action="store_true", help="with systemd as first process")
    guest.add_argument(
        "--overlay", type=Path, metavar="DIR", help="files to lay over the guest's root"
    )
    verb = verbs.add_parser("run", parents=[guest], help="run a command, give its exit status")
    verb.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    verb.add_argument("--tty", action="store_true", help="give the command a terminal")
    verb.add_argument("command", nargs="+")
    verb = verbs.add_parser("shell", parents=[guest], help="an interactive shell")
    verb.add_argument("--timeout", type=float, default=86400.0, metavar="SECONDS")
    verb = verbs.add_parser("install", help="install what is missing, and say what")
    verb.add_argument("--engine", choices=ENGINES, action="append")
    verb = verbs.add_parser("check", help="prove that a status comes back and no false one does")
    verb.add_argument("--engine", choices=ENGINES, action="append")
    verb.add_argument("--brief", action="store_true", help="two boots an engine")
    verb.add_argument("--junit", type=Path, metavar="FILE")
    return parser


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that every finally is reached


def main(argv: Sequence[str]) -> int:
    """Do what the command line says and give the exit status."""
    options = _options().parse_args(argv)
    # Also where our parent had SIGINT ignored, as shells do for what runs in the background.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        if options.verb == "install":
            install(options.engine or GUESTS)
            return 0
        if options.verb == "check":
            outcomes = check(options.engine or GUESTS, brief=options.brief)
            if options.junit:
                write_junit(outcomes, options.junit)
            return int(any(outcome.fault for outcome in outcomes))
        result = run(
            options.command if options.verb == "run" else ["/bin/bash", "--login"],
            engine=options.engine,
            disks=[Disk.parse(text) for text in options.disk],
            memory=options.memory,
            timeout=options.timeout,
            artefacts=options.artefacts,
            tty=options.verb == "shell" or options.tty,
            udev=not options.no_udev,
            systemd=options.systemd,
            overlay=options.overlay,
        )
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 2
    if result.why:
        print(f"lab: {options.engine}: {result.why}; console: {result.console}", file=sys.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
