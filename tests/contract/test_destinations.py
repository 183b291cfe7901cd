"""The promises of a destination, over the kinds that work on any host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.destinations import image
from dmcopy.destinations.base import Surroundings
from dmcopy.destinations.image import ImageDestination
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.units import Sectors
from tests.contract.destination_promises import PROMISES, Place
from tests.unit.kernel.tree import Tree

LENGTH = Sectors(4 * 2048 + 3)  # ends in the middle of a page


@pytest.fixture(params=["direct", "through the page cache", "no holes"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param != "direct":
        monkeypatch.setattr(image, "_works", lambda _fd: False)
    if request.param == "no holes":
        monkeypatch.setattr(image, "punch_hole", _refuse_hole)
    tree = Tree(tmp_path / "host")
    path = tmp_path / "db.img"
    return Place(
        ImageDestination.parse(str(path)),
        LENGTH,
        Surroundings(
            sysfs=tree.sysfs(), run=Commander(launch_subprocess), source=tree.disk("sda", "8:0")
        ),
        lambda: path.read_bytes() if path.exists() else b"",
    )


def _refuse_hole(_fd: int, _offset: int, _length: int) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_image_keeps(promise: Callable[[Place], None], place: Place) -> None:
    promise(place)
