"""``dmcopy order``: what a job copies next, and how that is changed while it runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dmcopy.cli.common import Commands, Context
from dmcopy.core.extent import Extent
from dmcopy.core.order import POLICIES, Policy
from dmcopy.errors import Refused, UsageError
from dmcopy.jobs.control import ask_running
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.membership import refuse_group
from dmcopy.jobs.overview import JobView, view_of
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.state import is_final
from dmcopy.stack.names import check_job
from dmcopy.units import (
    Bytes,
    Sectors,
    exact_size,
    format_size,
    parse_size,
    sectors_down,
    sectors_up,
    to_bytes,
)

_ANSWER_SECONDS = 30.0
_SHOWN = 20

_EXAMPLES = """\
examples:
  dmcopy order data                            what comes next
  dmcopy order data --first 10g+512MiB 0+1g    these first, in this order, then the rest
  dmcopy order data --only 10g+512MiB          these, then pause
  dmcopy order data --by hot                   what is written the most
  dmcopy order data --first                    nothing in particular

OFFSET and LENGTH are sizes in the source: bytes, or with a unit (64KiB, 10g).  A segment is copied
whole.  What is copied already is not copied again.
"""


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "order",
        help="see or change what a job copies next",
        description="Change the order in which a job copies, at any time: while it runs, is paused "
        "or waits\n(dmcopy copy --hold-start), or before it is resumed.  Then tell what comes next."
        "  Without an\noption only tell.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--first", nargs="*", metavar="OFFSET+LENGTH", help="copy these before all else, in order"
    )
    which.add_argument(
        "--only",
        nargs="+",
        metavar="OFFSET+LENGTH",
        help="copy these, also if the job is paused, then pause",
    )
    parser.add_argument(
        "--by", choices=POLICIES, help="in which order the rest is copied (copy --order)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Change the order, or tell it."""
    host = context.host()
    wanted = arguments.only if arguments.only is not None else arguments.first
    view = view_of(check_job(arguments.job), host)
    if view.record is None or is_final(view.record.state):
        raise Refused(f"job {view.job} is {view.state}", way_out="there is nothing to be ordered")
    refuse_group(view.record, "order")
    first = None if wanted is None else _extents(wanted, _length(view))
    policy = Policy(arguments.by) if arguments.by is not None else None
    if view.pid is None:
        if arguments.only is not None:
            raise Refused(
                f"job {view.job} does not run",
                way_out=f"order it with --first, then go on: dmcopy resume {view.job}",
            )
        spec = _on_record(view, host, first, policy)
        _show_spec(view.job, spec, as_json=arguments.json)
        return 0
    words: dict[str, object] = {}
    if first is not None:
        words |= {"first": [list(extent) for extent in first], "only": arguments.only is not None}
    if policy is not None:
        words["policy"] = policy
    answer = ask_running(host.places, view.job, "order", timeout=_ANSWER_SECONDS, **words)
    ahead = [Extent(Sectors(start), Sectors(length)) for start, length in answer["next"]]
    _show(view.job, ahead, to_bytes(Sectors(answer["left_sectors"])), as_json=arguments.json)
    return 0


def _length(view: JobView) -> Sectors | None:
    """Give the length of the image, None where that was not yet recorded."""
    facts = view.record.facts if view.record is not None else None
    return Sectors(facts["source"]["length_sectors"]) if facts is not None else None


def _extents(words: Sequence[str], length: Sectors | None) -> list[Extent]:
    """Read OFFSET+LENGTH words; raises `UsageError` for what is not in the image."""
    found = []
    for word in words:
        offset, plus, size = word.partition("+")
        try:
            if not plus:
                raise ValueError("it is no OFFSET+LENGTH")
            extent = _extent(parse_size(offset), parse_size(size))
        except ValueError as exc:
            raise UsageError(f"'{word}': {exc}") from exc
        if length is not None and extent.end > length:
            raise UsageError(f"'{word}' ends behind the image, of {format_size(to_bytes(length))}")
        found.append(extent)
    return found


def _extent(offset: Bytes, size: Bytes) -> Extent:
    """Give the sectors that are touched; raises ValueError for none."""
    if not size:
        raise ValueError("it is of no length")
    return Extent.between(sectors_down(offset), sectors_up(Bytes(offset + size)))


def _on_record(
    view: JobView, host: Host, first: Sequence[Extent] | None, policy: Policy | None
) -> CopySpec:
    """Change the order of a job that does not run."""
    assert view.record is not None
    spec = CopySpec.from_json(view.record.spec)
    if first is None and policy is None:
        return spec
    spec = spec.ordered(first=first, policy=policy)
    with JobLock(host.places.locks, view.job), Journal(host.places.journal) as journal:
        journal.set_spec(view.job, {**view.record.spec, **spec.as_json()})
    return spec


def _show(job: str, ahead: Sequence[Extent], left: Bytes, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "event": "order",
                    "job": job,
                    "first": [[extent.offset, extent.size] for extent in ahead],
                    "bytes_left": left,
                }
            )
        )
        return
    print(f"{job}: {format_size(left)} are left")
    for extent in ahead[:_SHOWN]:
        print(f"  {exact_size(extent.offset)}+{exact_size(extent.size)}")
    if len(ahead) > _SHOWN:
        print(f"  and {len(ahead) - _SHOWN} more")
    print("  then the rest, from its beginning" if ahead else "  from its beginning")


def _show_spec(job: str, spec: CopySpec, *, as_json: bool) -> None:
    if as_json:
        first = [[extent.offset, extent.size] for extent in spec.first]
        print(json.dumps({"event": "order", "job": job, "first": first, "policy": spec.order}))
        return
    print(f"{job} does not run; when it is resumed it copies:")
    for extent in spec.first:
        print(f"  {exact_size(extent.offset)}+{exact_size(extent.size)}")
    print(f"  then by: {spec.order}")
