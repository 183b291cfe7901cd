"""The suite counts what passed, and takes everything else for a failure."""

from __future__ import annotations

from lab.residue import cookie_ids
from lab.suite import Count, count, faults, judge

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="passes"/>
<testcase classname="a" name="fails"><failure message="x"/></testcase>
<testcase classname="a" name="is left out"><skipped message="y"/></testcase>
<testcase classname="a" name="fails twice"><failure message="x"/></testcase>
<testcase classname="a" name="fails twice"><error message="in teardown"/></testcase>
<testcase classname="a" name="leaves something"/>
<testcase classname="a" name="leaves something"><error message="in teardown"/></testcase>
</testsuite></testsuites>"""


def test_each_test_is_counted_once_by_its_worst() -> None:
    assert count(JUNIT) == Count(passed=1, failed=3, skipped=1)


def test_each_fault_is_told_in_a_line_with_its_reason() -> None:
    junit = """<testsuite><testcase classname="tests.lab.test_x" name="y[z]">
    <failure message="assert set() == {1}&#10;  Extra items"/></testcase></testsuite>"""
    assert faults(junit) == ["test_x::y[z]: assert set() == {1} Extra items"]
    assert faults(JUNIT) == [
        "a::fails: x", "a::is left out: y", "a::fails twice: x", "a::fails twice: in teardown",
        "a::leaves something: in teardown",
    ]  # fmt: skip


def test_all_passed_is_the_only_success() -> None:
    assert judge(0, Count(5, 0, 0), 5) == (Count(5, 0, 0), [])


def test_skipped_test_has_failed() -> None:
    result, why = judge(0, Count(4, 0, 1), 5)
    assert result == Count(4, 1, 0)
    assert why == ["1 skipped"]


def test_test_that_did_not_run_has_failed() -> None:
    assert judge(0, Count(4, 0, 0), 6)[0] == Count(4, 2, 0)


def test_guest_without_a_result_fails_all_that_was_collected() -> None:
    assert judge(255, None, 9)[0] == Count(0, 9, 0)
    assert judge(0, None, None)[0].failed == 1


def test_run_of_no_test_has_failed() -> None:
    assert judge(0, Count(0, 0, 0), 0)[0].failed == 1


def test_status_that_no_test_explains_has_failed() -> None:
    assert judge(255, Count(5, 0, 0), 5)[0] == Count(5, 1, 0)


def test_cookies_are_told_from_other_semaphores() -> None:
    # Keys are printed as signed decimals; 0x0D4D is libdevmapper's magic number.
    text = "       key      semid perms\n 223165813         4   600\n         7         5   600\n"
    assert 223165813 >> 16 == 0x0D4D
    assert cookie_ids(text) == {4}
