"""Debian's own checker has nothing to say of the package."""

from __future__ import annotations

import subprocess

import pytest

from lab import deb


@pytest.mark.timeout(300)
def test_lintian_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb.current())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""
