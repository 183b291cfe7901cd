"""``dmcopy metrics``: all jobs as Prometheus reads them, on stdout or in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dmcopy.cli.common import Commands, Context
from dmcopy.errors import DmcopyError
from dmcopy.jobs.glance import glance
from dmcopy.jobs.metrics import registry_of


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "metrics",
        help="print all jobs as Prometheus reads them",
        description="Print metrics of all jobs of this host in Prometheus' text format, or put "
        "them into a file for node_exporter.  Changes nothing else.  Needs prometheus-client.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--textfile",
        metavar="PATH",
        type=Path,
        help="write them to this file (node_exporter --collector.textfile.directory; *.prom), "
        "whole or not at all",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Print them, or write them."""
    now = glance(context.host(load=False))
    registry = registry_of(lambda: now)
    from dmcopy.report.metrics import text, write_textfile  # is there, now

    found = text(registry)
    if arguments.textfile is not None:
        write_textfile(arguments.textfile, found)
    else:
        sys.stdout.write(found.decode())
    if now.unread:  # the metrics say so, too, but not why
        raise DmcopyError(now.unread)
    return 0
