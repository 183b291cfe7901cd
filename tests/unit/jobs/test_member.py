"""The process of one member of a group, as its leader sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, "interrupted"), (signal.SIGHUP, "cancelled")]
)
def test_signal_that_came_before_it_served_is_told_to_the_leader(
    number: signal.Signals, kind: str
) -> None:
    """The leader starts it with both blocked, so that none is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "dmcopy.jobs.member"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    said = json.loads(out)
    assert (said["is"], said["kind"]) == ("failed", kind)
