"""``dmcopy wrap`` and ``unwrap``: a dm device over a device, so that it can be copied live."""

from __future__ import annotations

import argparse
import json
import os

from dmcopy.cli.common import Commands, Context, consoles, load_targets, seconds
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs import wraps
from dmcopy.jobs.host import Host
from dmcopy.jobs.wrap_up import BroughtUp

_PATIENCE_SECONDS = 30.0  # less than the 90 that systemd waits for a device


def add(commands: Commands) -> None:
    """Add the commands to the command line."""
    wrap = commands.add_parser(
        "wrap",
        help="put a dm device over a device, so that it can be copied while it is mounted",
        description="Put /dev/mapper/NAME over DEVICE (a partition, disk, md array, LUN, multipath "
        "or crypt\ndevice), which nobody may use now, and again after each boot.  Mount "
        "/dev/mapper/NAME,\nor by UUID, in place of DEVICE.  Done again it changes nothing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    wrap.add_argument("device", nargs="?", metavar="DEVICE")
    wrap.add_argument("name", nargs="?", metavar="NAME")
    wrap.add_argument("--list", action="store_true", help="say which devices are wrapped")
    wrap.add_argument(
        "--up", metavar="NAME", help="bring up a wrap that is not, with the snapshot of an "
        "unfinished job"
    )  # fmt: skip
    wrap.add_argument("--all", action="store_true", help="bring all up (without systemd: at boot)")
    wrap.add_argument(
        "--note", action="store_true", help="record what the file systems of interrupted jobs say "
        "(at boot, and at its end)"
    )  # fmt: skip
    wrap.add_argument(
        "--patience",
        type=seconds,
        default=_PATIENCE_SECONDS,
        metavar="SECONDS",
        help="wait so long for the COW device of an unfinished job (default: %(default)g)",
    )
    dry_run = "make every check, say what would be done, change nothing"
    wrap.add_argument("--dry-run", action="store_true", help=dry_run)
    wrap.add_argument(
        "--json", action="store_true", help="with --list, --dry-run: one JSON object a wrap"
    )
    wrap.set_defaults(run=run_wrap)
    unwrap = commands.add_parser(
        "unwrap",
        help="take a wrap away",
        description="Remove /dev/mapper/NAME, which nobody may use now, for good.  What is under "
        "it stays as it is.",
        allow_abbrev=False,
    )
    unwrap.add_argument("name", metavar="NAME")
    unwrap.add_argument("--dry-run", action="store_true", help=dry_run)
    unwrap.add_argument("--json", action="store_true", help="with --dry-run: a JSON object")
    unwrap.set_defaults(run=run_unwrap)


def run_wrap(arguments: argparse.Namespace, context: Context) -> int:
    """Wrap a device, or do what the options say."""
    asked = [arguments.list, arguments.up is not None, arguments.all, arguments.note]
    if sum(asked) + (arguments.device is not None) != 1:
        raise UsageError("say dmcopy wrap DEVICE NAME, or one of --list, --up NAME, --all")
    if arguments.dry_run and arguments.device is None:
        raise UsageError("--dry-run goes with dmcopy wrap DEVICE NAME")
    host = context.host()
    if arguments.list:
        return _list(host, as_json=arguments.json)
    if arguments.note:
        for job in wraps.note(host):
            print(f"noted the file system that job {job} copies")
        return 0
    if host.dm is not None:
        load_targets(host)
        _load_loop(host)
    if arguments.all:
        return _all(host, arguments.patience)
    if arguments.up is not None:
        return _told(wraps.up(arguments.up, host, patience=arguments.patience))
    if arguments.name is None:
        raise UsageError("say how it shall be called: dmcopy wrap DEVICE NAME")
    if arguments.dry_run:
        plan = wraps.plan_wrap(arguments.device, arguments.name, host)
        said = f"would put /dev/mapper/{plan.name} over {plan.under}"
        return _planned(plan, said, as_json=arguments.json)
    done = wraps.wrap(arguments.device, arguments.name, host, patience=arguments.patience)
    return _told(done, hint=f"mount /dev/mapper/{arguments.name} in place of {arguments.device}")


def _load_loop(host: Host) -> None:
    """Load the module of loop devices, for COW files: early in a boot nobody has done it yet."""
    if not os.path.exists("/dev/loop-control") and host.run.find("modprobe"):
        host.run.run("modprobe", "--quiet", "loop", ok=(0, 1))


def _told(done: BroughtUp, *, hint: str = "") -> int:
    """Say what was done; raises what was lost."""
    for line in done.said:
        print(line)
    if done.lost is not None:
        raise done.lost
    if hint:
        print(hint)
    return 0


def _all(host: Host, patience: float) -> int:
    worst: DmcopyError | None = None
    for one in wraps.config_of(host).read():
        try:
            _told(wraps.up(one.name, host, patience=patience))
        except DmcopyError as exc:
            print(f"{one.name}: {exc}")
            worst = exc
    if worst is not None:
        raise worst
    return 0


def run_unwrap(arguments: argparse.Namespace, context: Context) -> int:
    """Unwrap."""
    if arguments.dry_run:
        plan = wraps.plan_unwrap(arguments.name, context.host())
        return _planned(plan, f"would remove /dev/mapper/{plan.name}", as_json=arguments.json)
    for line in wraps.unwrap(arguments.name, context.host()):
        print(line)
    return 0


def _planned(plan: wraps.WrapPlan, said: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(plan.as_json()))
    else:
        print(said if plan.changes else "nothing to do: it is so already")
    return 0


def _list(host: Host, *, as_json: bool) -> int:
    found = wraps.views(host)
    if as_json:
        for view in found:
            print(json.dumps(view.as_json()))
        return 0
    out, _ = consoles()
    if not found:
        out.print("no device is wrapped")
        return 0
    from rich.table import Table  # takes long, and a boot needs none
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("WRAP", "STATE", "OVER", "KNOWN BY", "JOBS"):
        table.add_column(heading, overflow="fold")
    for view in found:
        state = view.state if view.wrap is not None else f"{view.state}, not in the file"
        known = str(view.wrap.under) if view.wrap is not None else None
        cells = (view.name, state, view.under, known, " ".join(view.jobs))
        table.add_row(*(Text(cell or "-") for cell in cells))
    out.print(table)
    return 0
