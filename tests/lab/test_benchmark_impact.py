"""The benchmark of the impact runs in the guest, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.impact_methods import LVM_DD, RETIRE
from benchmarks.impact_samples import Run

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_lvm_and_dmcopy_are_measured_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "samples.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.impact_stage", "--size", str(16 << 20),
            "--rounds", "1", "--iops", "300", "--delay", "100", "--pause", "0.6",
            "--retired-rounds", "1", "--retired-seconds", "0.2", "--load", "uniform",
            f"--only={LVM_DD}", f"--only={RETIRE}", "--out", str(out),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.from_json(json.loads(out.read_text()))
    assert {one.part for one in run.retired} == {"plain", "retired", "snapshot"}
    assert [one.method for one in run.samples] == [LVM_DD, RETIRE]
    for one in run.samples:
        assert one.copy_seconds > 0.35, "four pieces, each of which is delayed"
        assert 0 < (one.chunks or 0) <= 256
        assert one.during is not None
        assert one.windows
        assert one.copy_seconds < one.snapshot_seconds < one.command_seconds
    assert "begin" in {held.reason for held in run.samples[1].holds}
