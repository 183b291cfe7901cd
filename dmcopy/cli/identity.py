"""``dmcopy identity``: show what a copy has in common with its source; give it its own."""

from __future__ import annotations

import argparse
import json

from dmcopy.cli.common import Commands, Context
from dmcopy.jobs.identity import Shown, give_new, show, show_to_udev
from dmcopy.report.text import happened


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "identity",
        help="show what a copy has in common with its source, or give it its own",
        description="Show the UUIDs, labels and names that a copy has, and which of them its "
        "source has as well.\nWith --new it gets its own, by the tools of what is on it "
        "(tune2fs, xfs_admin, btrfstune,\nvgimportclone, mdadm, sfdisk ...).  Only a completed "
        "copy that nobody uses is changed, and\nnever a source.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("destination", metavar="DESTINATION", help="as dmcopy copy was told")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--new", action="store_true", help="give it an identity of its own")
    what.add_argument(
        "--publish",
        action="store_true",
        help="let udev see it as it is, a twin: /dev/disk links may lead to it from then on",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Show, or change."""
    host = context.host()
    if arguments.new:
        event = give_new(arguments.destination, host)
        print(json.dumps(event.as_json()) if arguments.json else happened(event))
        return 0
    if arguments.publish:
        show_to_udev(arguments.destination, host)
    shown = show(arguments.destination, host)
    print(json.dumps(shown.as_json()) if arguments.json else _text(shown))
    return 0


def _text(shown: Shown) -> str:
    lines = [f"{shown.destination}: {'; '.join(shown.identity) or 'nothing that blkid knows'}"]
    if shown.job:
        lines.append(f"written by job {shown.job}, from {shown.source}")
    if shown.common:
        lines.append(f"{shown.source} has the same: {', '.join(shown.common)}")
    if shown.hidden:
        lines.append("udev leaves it alone (--publish ends that)")
    return "\n".join(lines)
