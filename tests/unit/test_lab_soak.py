"""The soak adds up what its rounds say, and is only content with nothing wrong."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from lab.soak import Counts
from tests.cuts.machine import Tally as Cuts
from tests.lab.torture import Tally as Kills


def test_soak_adds_up_kills_and_cuts() -> None:
    counts = Counts()
    for longest in (0.5, 0.25):
        kills = Kills(kills=10, begun=4, images=4, longest=longest)
        kills.say_lost("too early")
        counts.add_kills(asdict(kills))
    counts.add_cuts(f"....\n{Cuts(cuts=7, right=5, lost=2)}\n4 passed\n")
    counts.add_cuts("no summary: it was stopped")
    rows = dict(line.split("  ", 1) for line in counts.table(90).splitlines() if line[0] != " ")
    said = {name: value.strip() for name, value in rows.items()}
    assert said["minutes"] == "1.5"
    assert (said["kills"], said["power cuts"]) == ("20", "7")
    assert (said["images compared"], said["said lost"]) == ("13", "4")
    assert said["stuck writes"] == "0 (longest write 0.50 s)"
    assert counts.status == 0


@pytest.mark.parametrize(
    "bad",
    [Kills(wrong=1), Kills(stuck=1), Cuts(wrong=1), "a round that failed"],
    ids=["wrong", "stuck", "wrong after a cut", "failure"],
)
def test_soak_is_not_content_with_anything_wrong(bad: Kills | Cuts | str) -> None:
    counts = Counts()
    if isinstance(bad, Kills):
        counts.add_kills(asdict(bad))
    elif isinstance(bad, Cuts):
        counts.add_cuts(str(bad))
    else:
        counts.failures.append(bad)
    assert counts.status == 1
