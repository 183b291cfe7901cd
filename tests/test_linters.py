"""The linters, as tests: what they say fails the suite like any other fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
TREES = ("dmcopy", "tests", "lab", "benchmarks")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "argv",
    [
        ["ruff", "check", "--quiet", *TREES],
        ["ruff", "format", "--check", "--quiet", *TREES],
        ["mypy", "--strict", *TREES],
        ["lint-imports"],
    ],
    ids=["ruff-check", "ruff-format", "mypy", "imports"],
)
def test_linter_has_nothing_to_say(argv: list[str]) -> None:
    program = Path(sys.executable).with_name(argv[0])
    done = subprocess.run(
        [str(program), *argv[1:]], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
