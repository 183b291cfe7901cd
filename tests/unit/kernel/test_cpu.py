"""How idle the CPUs are."""

from __future__ import annotations

import os
from pathlib import Path

from dmcopy.kernel.cpu import idle_seconds


def test_idle_time_is_idle_and_iowait_in_seconds(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  7 7 7 {3 * ticks} {2 * ticks} 7 7 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n")
    assert idle_seconds(str(stat)) == 5.0


def test_real_idle_time_never_goes_back() -> None:
    assert 0 <= idle_seconds() <= idle_seconds()
