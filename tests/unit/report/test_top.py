"""The view of all jobs: as wide as it may be, and what does not fit is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from dmcopy.report.jobs_now import JobNow, Now
from dmcopy.report.top import ASCII, clean, compact, cut, lines, plain, short_time
from tests.unit.report import made_up_jobs as made

AWKWARD = "/dev/mapper/" + "日本語-ディスク" * 30
HOSTILE = "/dev/x\n\x1b[31m\x07\udcff/é"


def _text(now: Now, width: int = 80, height: int | None = None) -> list[str]:
    return [line.plain for line in lines(now, width, height=height, keys="q: quit")]


def _awkward() -> Now:
    jobs = made.all_kinds().jobs
    long = "n" * 120
    return Now(
        jobs=(
            made.running(long, source=AWKWARD, destination=AWKWARD, first="full",
                         rate=2.0**60, left=1e9, total=2**62, done=2**61, retired=2**61),
            made.stopped(long + "2", source=HOSTILE, destination=f"image:/{'x' * 300}"),
            *jobs,
        ),
        cap=2**62,
        unread="cannot use the journal " + "/very" * 60,
    )  # fmt: skip


@pytest.mark.parametrize("width", [1, 8, 20, 39, 40, 60, 79, 80, 81, 100, 131, 132, 160, 300])
@pytest.mark.parametrize("height", [1, 2, 5, 24, None])
def test_nothing_is_wider_or_longer_than_the_terminal(width: int, height: int | None) -> None:
    for now in (Now(), made.all_kinds(), _awkward()):
        shown = _text(now, width, height)
        assert max(map(cell_len, shown)) <= width
        assert height is None or len(shown) <= height
        assert all(char.isprintable() for line in shown for char in line)


def test_eighty_columns_have_all_figures_of_a_job() -> None:
    shown = _text(Now(jobs=(made.running(),)))
    assert shown[0].startswith("dmcopy: 1 running, 0 stopped, 0 ended ")
    assert shown[0].endswith(" q: quit")
    assert shown[1].split()[0] == "JOB"
    assert shown[2].split() == [
        "db-20260921", "copying", "42%", "120.0M", "3:07", "12%>62%", "40%", "3.0ms/1.9ms",
    ]  # fmt: skip
    assert shown[3] == "    /dev/mapper/vg0-db → image:/backup/db.img"
    assert len(shown) == 4


def test_each_heading_is_over_its_column() -> None:
    for width in (80, 160):
        heads, row = _text(Now(jobs=(made.running(),)), width)[1:3]
        for head, cell in (
            ("RATE/s", "120.0M"),
            ("LEFT", "3:07"),
            ("RETD", " 40%"),
            ("DONE", "42%"),
        ):
            assert heads.index(head) + len(head) == row.index(cell) + len(cell), (width, head)
        assert heads.index("STATE") == row.index("copying")


def test_wide_terminal_has_a_bar_and_both_paths_in_the_line() -> None:
    shown = _text(Now(jobs=(made.running(),)), 160)
    assert len(shown) == 3
    assert "████······" in shown[2]
    assert shown[2].endswith("/dev/mapper/vg0-db → image:/backup/db.img")
    assert shown[1].endswith("SOURCE → DESTINATION")


def test_narrow_terminal_keeps_what_tells_the_most() -> None:
    shown = _text(Now(jobs=(made.running(),)), 40)
    assert shown[2].split() == ["db-20260921", "copying", "42%"]


def test_long_names_lose_their_middle_and_paths_are_shortened_alike() -> None:
    shown = _text(Now(jobs=(made.running("data-20260131-235959", source="/dev/" + "s" * 99,
                                         destination="image:/" + "d" * 99),)))  # fmt: skip
    assert shown[2].split()[0].startswith("data-")
    assert "…" in shown[2]
    assert shown[2].split()[0].endswith("235959")
    source, destination = shown[3].strip().split(" → ")
    assert abs(len(source) - len(destination)) <= 1
    assert len(shown[3]) == 80
    assert (
        cut("日本語ディスク", 7) == "日…スク"[:3] + "ク" or cell_len(cut("日本語ディスク", 7)) <= 7
    )


def test_forecast_that_is_bad_is_said_in_words() -> None:
    shown = _text(Now(jobs=(made.running(first="full", cow_full=(20.0, 40.0, 90.0)),)))
    assert shown[4].strip() == "COW device full in 20 s to 1:30, before the copy is done"


def test_interrupted_job_says_how_to_go_on_with_its_whole_name() -> None:
    name = "x" * 40
    shown = _text(Now(jobs=(made.stopped(name),)))
    assert " ".join(line.strip() for line in shown[4:]) == (
        f"go on: dmcopy resume {name}; give it up: dmcopy cancel {name}"
    )
    assert all(name in line for line in shown[4:])


def test_volumes_stand_below_their_group_and_are_not_counted() -> None:
    shown = _text(Now(jobs=tuple(made.group())))
    assert shown[0].startswith("dmcopy: 1 running, ")
    assert [line.split()[0] for line in shown[2:] if "%" in line] == ["pair", "pair.1", "pair.2"]
    assert [line[:4] for line in shown[2:] if "pair." in line] == ["  pa", "  pa"]


def test_no_job_is_said() -> None:
    assert _text(Now()) == [_text(Now())[0], "no jobs"]
    assert plain(Now())[0] == "dmcopy: 0 running, 0 stopped, 0 ended"


def test_two_hundred_jobs_say_how_many_do_not_fit() -> None:
    now = Now(jobs=tuple(made.running(f"job-{n}") for n in range(200)))
    shown = _text(now, 80, 24)
    assert len(shown) == 24 - 1  # a job has two lines, and is shown whole or not at all
    names = [line.split()[0] for line in shown if line.startswith("job-")]
    assert names == [f"job-{n}" for n in range(10)]
    assert shown[-1] == "190 more that do not fit here (dmcopy list: all)"
    assert len(plain(now)) == 202


def test_last_job_that_just_fits_needs_no_word() -> None:
    now = Now(jobs=tuple(made.running(f"job-{n}") for n in range(11)))
    assert len(_text(now, 80, 24)) == 24
    assert "more" not in _text(now, 80, 24)[-1]


def test_plain_table_shortens_nothing_and_has_a_line_a_job() -> None:
    now = replace(_awkward(), unread="")
    shown = plain(now)
    assert len(shown) == len(now.jobs) + 2
    assert AWKWARD in shown[2]
    assert "\x1b" not in "".join(shown)
    row = plain(Now(jobs=(made.running(),)))[2].split()
    assert row[:3] == ["db-20260921", "copying", "42%"]
    assert row[-3:] == ["/dev/mapper/vg0-db", "image:/backup/db.img", "-"]
    empty = plain(Now(jobs=(JobNow(job="k", state="unknown"),)))[2].split()
    assert empty == ["k", "unknown", *"-" * 9]


def test_terminal_without_unicode_gets_none() -> None:
    shown = lines(_awkward(), 160, glyphs=ASCII)
    text = "".join(line.plain for line in shown).replace("日", "")
    assert not set("…→█·") & set(text)


def test_control_characters_are_never_printed() -> None:
    assert clean(HOSTILE) == "/dev/x??[31m??/é"


def test_figures_keep_to_their_cells() -> None:
    for n in (0, 999, 1000, 1023, 1024, 1048575, 999.95 * 1024, 2**40, 999 * 2**50):
        assert len(compact(n)) <= 6, n
    for seconds in (0.0, 0.00001, 0.0999, 0.09995, 0.1, 0.9994, 0.9995, 1.0, 99.96, 3600.0):
        assert len(short_time(seconds)) <= 6, seconds
