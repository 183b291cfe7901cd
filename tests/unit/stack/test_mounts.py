"""Which file systems are frozen for a begin time, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.stack.mounts import all_points, mounts_over
from tests.unit.kernel.tree import Tree

SOURCE, UPPER, TOP = "254:0", "254:1", "254:2"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.disk("sda", "8:0")
    tree.disk("dm-0", SOURCE, slaves=("8:0",))
    tree.disk("dm-1", UPPER, slaves=(SOURCE,))
    tree.disk("dm-2", TOP, slaves=(UPPER,))
    return tree


def mount(tree: Tree, devno: str, point: str, kind: str = "ext4") -> None:
    tree.mount(devno, point, kind, f"/dev/{devno}")
    tree.put_file(point, devno)


def test_what_lies_higher_is_frozen_first_and_what_lies_below_never(tree: Tree) -> None:
    mount(tree, "8:0", "/below")
    mount(tree, UPPER, "/upper")
    mount(tree, TOP, "/top")
    found = mounts_over(tree.sysfs(), [SOURCE])
    assert found == ((), ("/top", "/upper"), ())


def test_file_system_on_the_source_is_left_to_the_suspend(tree: Tree) -> None:
    mount(tree, SOURCE, "/data")
    assert mounts_over(tree.sysfs(), [SOURCE]) == (("/data",), (), ())


def test_of_two_sources_none_is_above_the_other(tree: Tree) -> None:
    mount(tree, UPPER, "/upper")
    mount(tree, TOP, "/top")
    found = mounts_over(tree.sysfs(), [SOURCE, UPPER])
    assert found == (("/upper",), ("/top",), ())


def test_each_file_system_is_frozen_once(tree: Tree) -> None:
    mount(tree, UPPER, "/upper")
    mount(tree, UPPER, "/bound")
    assert len(mounts_over(tree.sysfs(), [SOURCE]).above) == 1
    assert all_points(tree.sysfs(), [SOURCE]) == ("/bound", "/upper")


def test_overlay_is_not_frozen_but_what_is_under_it_is(tree: Tree) -> None:
    mount(tree, UPPER, "/upper")
    tree.put_file("/upper/up", UPPER)
    tree.mount("0:40", "/merged", "overlay", "overlay", "rw,upperdir=/upper/up")
    assert mounts_over(tree.sysfs(), [SOURCE]).above == ("/upper",)


def test_mount_that_another_hides_is_not_mistaken_for_it(tree: Tree) -> None:
    mount(tree, UPPER, "/data")
    mount(tree, "8:0", "/data")
    assert mounts_over(tree.sysfs(), [SOURCE]) == ((), (), ("/data",))
