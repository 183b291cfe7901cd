"""What the agent makes for itself before it serves."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dmcopy.agent import daemon
from dmcopy.errors import Refused
from dmcopy.jobs.lock import JobLock


def test_group_comes_as_far_as_the_socket_whatever_the_umask_is(tmp_path: Path) -> None:
    runtime = tmp_path / "dmcopy"
    before = os.umask(0o077)  # of dmcopy-agent.service
    try:
        with daemon._only(runtime), JobLock(runtime / "locks", "job"):
            modes = {
                one.name: stat.S_IMODE(one.stat().st_mode) for one in (runtime, *runtime.iterdir())
            }
    finally:
        os.umask(before)
    assert modes == {"dmcopy": 0o755, "locks": 0o700, "agent.lock": 0o600}


def test_directory_that_another_made_for_itself_is_opened(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with daemon._only(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
        with pytest.raises(Refused, match="another agent has"), daemon._only(tmp_path):
            pass
