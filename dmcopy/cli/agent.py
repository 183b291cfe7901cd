"""``dmcopy agent``: the process that runs jobs for others."""

from __future__ import annotations

import argparse
import logging

from dmcopy.cli import job_unit
from dmcopy.cli.common import Commands, Context, load_targets
from dmcopy.errors import DmcopyError
from dmcopy.jobs.glance import glance
from dmcopy.jobs.host import Host
from dmcopy.jobs.metrics import check as check_metrics
from dmcopy.jobs.overview import JobView, look_over
from dmcopy.jobs.spec import Places
from dmcopy.kernel import systemd, udev
from dmcopy.kernel.command import Commander, launch_subprocess

_EPILOG = """\
settings (/etc/dmcopy/agent.toml, all may be left out):
  group = "dmcopy"                   who may ask beside root: as good as root
  metrics-listen = "127.0.0.1:9273"  serve metrics by HTTP, on loopback only
  metrics-textfile = "/PATH.prom"    write metrics there, for the node exporter

It is asked by varlink (interface org.dmcopy.Agent) on /run/dmcopy/agent.sock.  Jobs are processes
of their own: they go on when the agent ends, is killed, restarted or upgraded.
"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "agent",
        help="run jobs for others: policies with a calendar, an API, metrics",
        description="Watch the jobs of this host, start those that policies want by the clock, and "
        "answer on a\nsocket.  Runs until SIGTERM; SIGHUP: read the policies again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--check", action="store_true", help="read the settings, say what is wrong, and end"
    )
    # for dmcopy-job@.service
    parser.add_argument("--job", metavar="INSTANCE", help=argparse.SUPPRESS)
    parser.add_argument("--job-over", metavar="INSTANCE", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Run the agent, or what it has a unit of its own do."""
    if arguments.job is not None:
        return job_unit.run(arguments.job, context)
    if arguments.job_over is not None:
        return job_unit.over(arguments.job_over, context)
    # what it brings takes as long as a small copy
    from dmcopy.agent import config

    places = context.places or Places.from_environment()
    settings = config.read(places.config / "agent.toml")
    _ = settings.gid  # that there is such a group
    if arguments.check:
        if settings.wants_metrics:
            check_metrics()
        return 0
    host = context.host()
    if host.dm is None:
        raise DmcopyError("this kernel has no device-mapper; see: dmcopy doctor")
    load_targets(host)
    return _serve(host, settings)


def _serve(host: Host, settings: object) -> int:
    from dmcopy.agent.calendar import Calendars, next_elapse
    from dmcopy.agent.config import Config
    from dmcopy.agent.daemon import Agent
    from dmcopy.agent.launch import Launcher, unit_looks_in
    from dmcopy.agent.metrics import Metrics
    from dmcopy.agent.plugs import plugs_of
    from dmcopy.agent.timers import Timers
    from dmcopy.agent.watch import Watch

    assert isinstance(settings, Config)
    logging.getLogger("dmcopy.agent").setLevel(logging.INFO)
    places = host.places

    def look() -> list[JobView]:
        # the whole look claims the destinations of interrupted jobs for a moment, and starts
        # programs: every second that would be in the way of whoever resumes them
        views, unread = look_over(host, brief=True)
        if unread:
            raise DmcopyError(unread)
        return views

    # it has threads, and the other way to start programs forks in Python
    run = Commander(launch_subprocess)
    metrics = Metrics(lambda: glance(host), settings)
    agent = Agent(
        places,
        settings,
        launcher=Launcher(run, asked=unit_looks_in(places)),
        watch=Watch(look, places.runtime / "agent.told"),
        timers=Timers(
            Calendars(places),
            lambda calendar, after: next_elapse(calendar, after, run),
            places.timers,
        ),
        metrics=metrics.text,
        tick=(metrics.tick,),
        plugs=plugs_of(host, run) if systemd.is_running() and udev.is_running() else None,
    )
    with metrics.serving():
        agent.run()
    return 0
