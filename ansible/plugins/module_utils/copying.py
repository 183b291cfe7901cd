# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``dmcopy_copy`` decides: which words of ``dmcopy copy``, and what has to be done at all.

Nothing here runs a program or knows Ansible.
"""

from __future__ import annotations

# Each option of `dmcopy copy` by its own name.  What the module leaves out the command decides, so
# there is one place for defaults.
VALUES = {
    "cow": {"type": "str"},
    "cow_max": {"type": "str"},
    "on_full": {"type": "str", "choices": ["fail", "hold"]},
    "order": {"type": "str", "choices": ["sequential", "hot", "cow"]},
    "gate": {"type": "str", "choices": ["none", "segment"]},
    "via": {"type": "str", "choices": ["auto", "md-split"]},
    "md_resync": {"type": "str", "choices": ["auto", "wait", "pause", "ignore"]},
    "chunk": {"type": "str"},
    "segment": {"type": "str"},
    "batch": {"type": "str"},
    "rate": {"type": "str"},
    "digest": {"type": "str", "choices": ["sha256", "none"]},
    "hold_limit": {"type": "float"},
    "freeze": {"type": "str", "choices": ["auto", "none"]},
    "hook_timeout": {"type": "float"},
}
FLAGS = (
    "no_retire",
    "keep",
    "verify",
    "no_hooks",
    "overwrite_signature",
    "new_identity",
)

NOTHING = "absent"  # there is no such job
OVER = "over"  # it failed or was cancelled, and left nothing
RUNNING = "started"
PAUSED = "paused"
INTERRUPTED = "interrupted"  # `dmcopy resume` goes on with it
STUCK = "stuck"  # it can never go on; `dmcopy cancel` puts things right
KEPT = "kept"  # finished; its snapshot stays (keep)
FINISHED = "finished"

COPY, HELD, RESUME, PAUSE, CANCEL, REFUSE = "copy", "held", "resume", "pause", "cancel", "refuse"

_GO = {
    NOTHING: COPY,
    OVER: COPY,
    PAUSED: RESUME,
    INTERRUPTED: RESUME,
    STUCK: REFUSE,
}
ACTIONS = {
    "started": _GO,
    "finished": _GO,
    "paused": {NOTHING: HELD, OVER: HELD, RUNNING: PAUSE, STUCK: REFUSE},
    "absent": {
        RUNNING: CANCEL,
        PAUSED: CANCEL,
        INTERRUPTED: CANCEL,
        STUCK: CANCEL,
        KEPT: CANCEL,
    },
}

# What is copied, which a plan tells and a record keeps, of each volume of a group as well.
_WHAT = ("source", "destination", "provider", "source_identity", "destination_identity")
_KEPT = _WHAT + ("segment_bytes",)
# What a plan tells, and no record keeps.
_PLANNED = ("chunk_bytes", "cow", "cow_bytes", "steps", "hooks", "freezes", "volumes")

# What only a real run can tell; check mode says all else that the real run says.
MEASURED = (
    "begin_time",
    "hold_ms",
    "bytes_source",
    "bytes_cow",
    "bytes_zero",
    "exceptions",
    "cow_used_bytes",
    "cow_predicted_bytes",
    "digest",
    "verified",
    "seconds",
    "members",
)


def words_of(params):
    """Give the words after ``dmcopy copy`` (or ``plan``): options first, then the devices."""
    words = ["--name", params["name"]]
    for name in VALUES:
        if params.get(name) is not None:
            value = params[name]
            words += [_option(name), "{0:g}".format(value) if _is_float(name) else value]
    words += [_option(name) for name in FLAGS if params.get(name)]
    for hook in params.get("hook") or ():
        words += ["--hook", hook]
    pairs = params.get("pairs") or []
    if len(pairs) == 1:  # a group of one is none, for the command
        words += [pairs[0]["source"], pairs[0]["destination"]]
        pairs = []
    for pair in pairs:
        words += ["--pair", pair["source"], pair["destination"]]
    if params.get("source") is not None:
        words += [params["source"], params["destination"]]
    return words


def _option(name):
    return "--" + name.replace("_", "-")


def _is_float(name):
    return VALUES[name]["type"] == "float"


def standing_of(status, volumes=()):
    """Give where a job is, of the object of ``dmcopy show`` and those of its volumes."""
    if status is None:
        return NOTHING
    if status["kept"]:
        return KEPT
    if status["pid"] is not None:
        states = [one["state"] for one in volumes] or [status["state"]]
        return PAUSED if all(state == "paused" for state in states) else RUNNING
    if status["dead"]:
        return INTERRUPTED if status["can_resume"] else STUCK
    if status["state"] in ("failed", "cancelled"):
        return OVER
    return FINISHED if status["state"] == "ended" else RUNNING


def action_of(state, standing):
    """Give what has to be done for a job to be in *state*; None: nothing, it is."""
    return ACTIONS[state].get(standing)


def standing_after(state, action, standing, waits):
    """Give where the job is after *action*, if that succeeds."""
    if action == CANCEL:
        return FINISHED if standing == KEPT else OVER
    if standing in (FINISHED, KEPT) or state == "absent":
        return standing
    if waits:
        return FINISHED
    if state == "paused":
        return INTERRUPTED if standing == INTERRUPTED else PAUSED
    return RUNNING


def conflict(record):
    """Say in one line why the job of that name is not what is asked for."""
    parts = [
        "{word} is {recorded} on record, and {asked} was asked for".format(**one)
        for one in record["differs"]
    ]
    return "job {0} is another copy: {1}; give another name".format(
        record["job"], "; ".join(parts)
    )


def planned_facts(planned):
    """Give what is known before anything is done, of the event ``planned``."""
    facts = {name: planned[name] for name in _KEPT + _PLANNED}
    facts["bytes"] = planned["bytes_total"]
    facts["segments"] = _segments(planned["bytes_total"], planned["segment_bytes"])
    return facts


def recorded_facts(status, volumes=()):
    """Give what the record of a job has of the same, as far as it has."""
    if status is None:
        return {}
    facts = {name: status[name] for name in _KEPT}
    last = status["ended"] or status["progress"]
    if last is not None:
        facts["bytes"] = last["bytes_total"]
        facts["segments"] = _segments(last["bytes_total"], status["segment_bytes"])
    facts["volumes"] = [{name: one[name] for name in ("job",) + _WHAT} for one in volumes]
    if volumes:  # the record of a group has no more than its volumes'
        facts["provider"] = "group"
        facts["segment_bytes"] = volumes[0]["segment_bytes"]
        facts["segments"] = _segments(facts.get("bytes"), volumes[0]["segment_bytes"])
    return facts


def measured_facts(status):
    """Give what came of a job, as far as it has come."""
    begun, progress, ended = (status[kind] or {} for kind in ("begun", "progress", "ended"))
    facts = {"begin_time": ended.get("begin_time") or begun.get("begin_time")}
    holds = ended.get("hold_seconds") or begun.get("hold_seconds") or ()
    facts["hold_ms"] = [round(1000 * one, 3) for one in holds]
    last = ended or progress
    for name in ("bytes_source", "bytes_cow", "bytes_zero", "exceptions", "cow_used_bytes"):
        facts[name] = last.get(name)
    if facts["bytes_source"] is None and last.get("bytes_done") is not None:
        facts["bytes_source"] = last["bytes_done"] - last["bytes_cow"] - last["bytes_zero"]
    needed = progress.get("cow_needed")
    facts["cow_predicted_bytes"] = needed[1] if needed else None  # low, likely, high
    for name in ("digest", "verified", "seconds"):
        facts[name] = ended.get(name)
    facts["members"] = ended.get("members") or []
    return facts


def _segments(length, segment):
    return -(-length // segment) if length is not None and segment else None
