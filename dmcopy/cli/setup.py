"""``dmcopy setup``: udev rules, systemd units and directories of a dmcopy from pip."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dmcopy.cli.common import Commands, Context
from dmcopy.jobs import installation
from dmcopy.jobs.setup import Setup, Step, carry_out

_DONE = {
    "install": "installed",
    "replace": "replaced",
    "remove": "removed",
    "make": "made",
    "run": "ran",
    "left": "left",
}


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "setup",
        help="install udev rules, systemd units and directories (not for a Debian package)",
        description="Install what a dmcopy from pip brings for udev and systemd, the units "
        "calling this very dmcopy; make the directories, and enable what is to run.  Done again "
        "it changes nothing, or brings all to this version.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--undo",
        action="store_true",
        help="take away what was put, where it is still as it was put",
    )
    parser.add_argument(
        "--replace-changed",
        action="store_true",
        help="replace also files that somebody changed, or that dmcopy did not put there",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object a change, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Set up, or undo that."""
    host = context.host()
    setup = Setup(host, shipped=installation.shipped(), program=_program(arguments))
    if arguments.undo:
        steps = setup.plan_undo()
    else:
        steps = setup.plan_setup(replace_changed=arguments.replace_changed)

    def tell(step: Step) -> None:
        if arguments.json:
            said = {"event": "setup", "action": step.action, "what": step.what}
            print(json.dumps({**said, "done": not arguments.dry_run}), flush=True)
        else:
            word = f"would {step.action}" if arguments.dry_run else _DONE[step.action]
            print(f"{word} {step.what}", flush=True)

    if arguments.dry_run:
        for step in steps:
            if step.action:
                tell(step)
    else:
        carry_out(steps, host.run, tell)
    if not arguments.json:
        _end(steps, setup, undo=arguments.undo)
    return 0


def _program(arguments: argparse.Namespace) -> Path:
    """Give what the units shall call; an undo calls nothing."""
    return Path("dmcopy") if arguments.undo else installation.program()


def _end(steps: list[Step], setup: Setup, *, undo: bool) -> None:
    if not steps:
        print("nothing was set up" if undo else "nothing to do: all is there")
    if not setup.has_systemd and not undo:
        print("systemd does not run here: rules and directories only, no units")
