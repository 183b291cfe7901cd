"""Calendar expressions, as systemd-analyze of systemd 252 tells of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.agent.calendar import Calendars, next_elapse, parse_elapse
from dmcopy.agent.timers import Due
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander

_ARGV = ["systemd-analyze", "calendar", "--iterations=1", "--base-time=@1800000000", "--"]
_UTC = """\
  Original form: daily
Normalized form: *-*-* 00:00:00
    Next elapse: Sat 2027-01-16 00:00:00 UTC
       From now: 1 month 19 days left
"""
_BERLIN = """\
  Original form: daily
Normalized form: *-*-* 00:00:00
    Next elapse: Sat 2027-01-16 00:00:00 CET
       (in UTC): Fri 2027-01-15 23:00:00 UTC
       From now: 1 month 19 days left
"""


def test_time_is_utc_wherever_the_host_is() -> None:
    assert parse_elapse(_UTC) == 1800057600
    assert parse_elapse(_BERLIN) == 1800054000


def test_what_never_comes_is_none(fp: FakeProcess, run: Commander) -> None:
    said = "  Original form: 2000-01-01\n    Next elapse: never\n"
    fp.register([*_ARGV, "2000-01-01"], stdout=said)
    assert next_elapse("2000-01-01", 1800000000.9, run) is None


def test_what_is_no_expression_is_told(fp: FakeProcess, run: Commander) -> None:
    said = "Failed to parse calendar specification 'dailyx': Invalid argument\n"
    fp.register([*_ARGV, "dailyx"], stderr=said, returncode=1)
    with pytest.raises(UsageError, match="'dailyx' is no calendar expression: Failed to parse"):
        next_elapse("dailyx", 1800000000, run)


def test_what_cannot_be_read_is_never_guessed() -> None:
    with pytest.raises(DmcopyError, match="cannot be read"):
        parse_elapse("Next elapse: Sat 2027-01-16 00:00:00 CET\n")


def test_policies_with_a_calendar_are_read_anew_and_a_fault_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = Places(tmp_path, tmp_path, tmp_path)
    calendars = Calendars(places)
    assert calendars() == []
    places.policies.mkdir()
    text = 'source = "/dev/vg/x"\ndestination = { image = "/b/{job}" }\n'
    (places.policies / "a.toml").write_text(text + 'when = { calendar = "daily" }')
    (places.policies / "b.toml").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert calendars() == [Due("a", "daily")]
        assert calendars() == [Due("a", "daily")]
    assert len([one for one in caplog.records if "b.toml" in one.message]) == 1
