"""``dmcopy``: reads the command line, runs the command, says what went wrong.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused for safety (nothing changed), 4 point
in time lost, 5 interrupted, 6 something was left behind, 7 copied, but without the new identity.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Final, NoReturn

from dmcopy import __version__
from dmcopy.cli.common import Context
from dmcopy.errors import DmcopyError, Interrupted, UsageError

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The module of each command.  Only the one that is run is imported: what the others need
# (tables, udev, the demo) would take longer to import than a small copy takes.
COMMANDS: Final = {
    "copy": "copy",
    "plan": "copy",
    "resume": "resume",
    "pause": "steer",
    "cancel": "steer",
    "wait": "steer",
    "set": "steer",
    "order": "order",
    "status": "status",
    "show": "status",
    "list": "status",
    "top": "top",
    "metrics": "metrics",
    "report": "report",
    "wrap": "wrap",
    "unwrap": "wrap",
    "identity": "identity",
    "policy": "policy",
    "rescue": "rescue",
    "doctor": "doctor",
    "agent": "agent",
    "setup": "setup",
    "demo": "demo",
}

_DESCRIPTION = "Copy a live block device, as it was at one instant, onto a destination."

_EPILOG = """\
exit status:
  0  done
  1  failed; the origin is as it was
  2  wrong usage
  3  refused for safety, nothing changed
  4  point in time lost: the copy is not usable
  5  interrupted; what can be gone on with is kept: the message says how
  6  something was left behind: the message says what, and what to run
  7  the copy is complete, but has no identity of its own (--new-identity)

`dmcopy COMMAND --help` says more of each command.
"""


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def parser(wanted: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Make the parser of the command line; with *wanted*, of these commands only."""
    top = _Parser(
        prog="dmcopy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dmcopy {__version__}")
    top.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="how much to log on stderr (default: %(default)s)",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in dict.fromkeys(COMMANDS[name] for name in wanted):
        importlib.import_module(f"dmcopy.cli.{module}").add(commands)
    return top


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise, once: a second Ctrl-C must not cut short the undoing that the first one caused."""
    for one in _STOPPING:
        signal.signal(one, _already)
    raise Interrupted(f"interrupted by {signal.Signals(number).name}")


def _already(_number: int, _frame: FrameType | None) -> None:
    """Nothing: it is being stopped already (SIGKILL, then ``dmcopy rescue``, is quicker)."""


def main(argv: Sequence[str] | None = None, context: Context | None = None) -> int:
    """Run one command; gives the exit status and never raises for a failure."""
    for number in _STOPPING:
        signal.signal(number, _interrupt)
    words = sys.argv[1:] if argv is None else argv
    try:
        # a help text, or a mistake, speaks of all commands
        known = words[:1] if words and words[0] in COMMANDS else COMMANDS
        arguments = parser(known).parse_args(words)
        arguments.words = list(words[1:]) if known is not COMMANDS else []
        logging.basicConfig(
            stream=sys.stderr,
            level=arguments.log_level.upper(),
            format="%(levelname)s %(name)s: %(message)s",
        )
        status_: int = arguments.run(arguments, context or Context())
        sys.stdout.flush()
    except DmcopyError as exc:
        print(f"dmcopy: {exc}", file=sys.stderr)
        return exc.exit_status
    except BrokenPipeError:  # the reader of our stdout is gone; so is the need to say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DmcopyError.exit_status
    return status_


def run() -> NoReturn:
    """Enter from the shell."""
    sys.exit(main())


if __name__ == "__main__":
    run()
