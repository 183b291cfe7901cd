"""Where stripes lie on what is made of an array."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.stack.stripes import full_stripe
from tests.unit.fake_dm import FakeDm
from tests.unit.kernel.tree import Tree

MD = "9:0"
STRIPE = 384  # sectors


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.disk("md0", MD)
    made.write(MD, "md/array_state", "clean")
    made.write(MD, "md/chunk_size", "65536")
    made.write(MD, "queue/optimal_io_size", str(STRIPE * 512))
    return made


@pytest.mark.parametrize(
    ("table", "has"),
    [
        (f"0 1000 linear {MD} 0", True),
        (f"0 1000 linear {MD} {STRIPE * 7}", True),
        (f"0 1000 linear {MD} 2048", False),
        # the second row goes on as if there were no cut
        (f"0 100 linear {MD} 0\n100 100 linear {MD} {STRIPE * 2 + 100}", True),
        (f"0 100 linear {MD} 0\n100 100 linear {MD} {STRIPE * 2}", False),
        (f"0 100 linear {MD} 0\n100 100 zero", False),
    ],
)
def test_rows_must_lie_on_stripes(tree: Tree, table: str, *, has: bool) -> None:
    dm = FakeDm()
    devno = dm.add("data", table).devno
    tree.disk("dm-0", devno, slaves=(MD,))
    tree.write(devno, "dm/name", "data")
    assert full_stripe(devno, dm, tree.sysfs()) == (STRIPE * 512 if has else 0)


@pytest.mark.parametrize(("start", "has"), [(STRIPE * 6, True), (2048, False)])
def test_partition_must_begin_with_a_stripe(tree: Tree, start: int, *, has: bool) -> None:
    tree.partition(MD, 1, "259:0", infix="p")
    tree.write("259:0", "start", str(start))
    assert full_stripe("259:0", None, tree.sysfs()) == (STRIPE * 512 if has else 0)


def test_plain_disk_has_no_stripes(tree: Tree) -> None:
    tree.disk("sda", "8:0")
    tree.write("8:0", "queue/optimal_io_size", "1048576")
    assert full_stripe("8:0", FakeDm(), tree.sysfs()) == 0
