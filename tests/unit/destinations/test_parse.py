"""How a destination is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.destinations import parse
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination
from dmcopy.errors import Refused, UsageError


def test_kind_is_taken_from_the_word_before_the_colon() -> None:
    assert parse("block:/dev/sdb") == BlockDestination("/dev/sdb")
    assert parse("image:/srv/db.img") == ImageDestination("/srv/db.img")


def test_bare_path_that_is_no_device_is_an_image(tmp_path: Path) -> None:
    assert parse(f"{tmp_path}/x") == ImageDestination(f"{tmp_path}/x")
    assert parse(f"{tmp_path}/with:colon") == ImageDestination(f"{tmp_path}/with:colon")


def test_relative_path_is_made_absolute_for_the_worker_may_stand_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("image:./a:b", "./a:b", "image:a:b"):
        assert parse(text) == ImageDestination(f"{tmp_path}/a:b")


def test_unknown_kind_lists_the_kinds_and_the_way_to_write_a_file() -> None:
    for text in ("tape:/dev/nst0", r"C:\db.img", "nbd://host/export", "host:/srv"):
        with pytest.raises(UsageError, match=r"there are: block, image.*write image:\./"):
            parse(text)


def test_empty_names_are_wrong_usage() -> None:
    for text in ("", "block:", "image:"):
        with pytest.raises(UsageError):
            parse(text)


def test_missing_device_is_refused_and_no_file_made_in_its_place() -> None:
    for text in ("/dev/dmcopy-none", "/dev/disk/by-id/none", "/dev/null"):
        with pytest.raises(Refused, match="there is no block device"):
            parse(text)
        assert text == "/dev/null" or not os.path.lexists(text)
