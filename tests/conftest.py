"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from dmcopy.kernel.command import Commander

_UNIT: Final = Path(__file__).parent / "unit"
# A red run can be had again, on any machine; new examples are looked for by `lab.soak`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("same")
_STARTERS: Final = ("fork", "forkpty", "execv", "execve", "posix_spawn", "posix_spawnp")


@pytest.fixture(autouse=True)
def _starts_no_program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a unit test fail that would really start a program.

    ``sh`` forks by itself, so a program faked by pytest-subprocess would run for real, as root.
    """
    if _UNIT not in request.path.parents or request.node.get_closest_marker("forks"):
        return

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a unit test starts a real program: use the fixtures run and fp")

    for name in _STARTERS:
        monkeypatch.setattr(os, name, refuse)


@pytest.fixture
def run() -> Commander:
    """Give a Commander whose programs pytest-subprocess can fake."""
    from dmcopy.kernel.command import Commander, launch_subprocess

    return Commander(launch_subprocess)
