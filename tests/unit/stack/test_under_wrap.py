"""What is under a wrap, whatever jobs do meanwhile."""

from __future__ import annotations

from functools import partial

import pytest

from dmcopy.core.table import Table
from dmcopy.kernel.dm import WRAPS
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.wrap import under_wrap
from tests.unit.fake_dm import Asked, FakeDm

BARE = "0 2048 linear 8:1 0"


def _begin(dm: FakeDm) -> None:
    source = dm.add(device_name("j", Role.SOURCE), BARE, uuid=device_uuid("j", Role.SOURCE))
    dm.all["w"].live = Table.parse(f"0 2048 snapshot-origin {source.devno}")


def _end(dm: FakeDm) -> None:
    dm.all["w"].live = Table.parse(BARE)
    del dm.all[device_name("j", Role.SOURCE)]


def _wrapped() -> FakeDm:
    dm = FakeDm()
    dm.add("w", BARE, uuid=f"{WRAPS}w")
    return dm


@pytest.mark.parametrize("what", ["begins", "ends"])
def test_it_is_the_device_and_never_one_of_ours_while_a_job(what: str) -> None:
    moments = 0
    while True:
        dm = _wrapped()
        if what == "ends":
            _begin(dm)
        wrap = dm.info("w")
        assert wrap is not None
        dm.asked = asked = Asked(moments, partial(_begin if what == "begins" else _end, dm))
        assert under_wrap(dm, wrap) == "8:1"
        if not asked.has_come:
            break
        moments += 1
    assert moments > 2, "as often as the kernel is asked"


def test_wrap_that_is_taken_away_is_over_nothing() -> None:
    dm = _wrapped()
    wrap = dm.info("w")
    assert wrap is not None
    del dm.all["w"]
    assert under_wrap(dm, wrap) is None
