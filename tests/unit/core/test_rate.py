"""The words of ``--rate``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.rate import LARGEST_RATE, Rate
from dmcopy.errors import UsageError
from dmcopy.units import MIB, Bytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("none", Rate()),
        (" AUTO ", Rate(auto=True)),
        ("50m", Rate(Bytes(50 * MIB))),
        ("200MiB/s", Rate(Bytes(200 * MIB))),
        ("1.5 GiB/S", Rate(Bytes(1536 * MIB))),
        ("4096", Rate(Bytes(4096))),
    ],
)
def test_words_of_a_person_are_understood(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "0", "0MiB/s", "-5m", "50m/h", "/s", "1.0001", "2e", "auto/s", "5m/s/s"]
)
def test_anything_else_is_refused_in_one_line_that_says_what_to_write(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rate.parse(text)
    assert f"'{text}' is not a rate" in str(caught.value)
    assert "50MiB/s, or none, or auto" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.one_of(
        st.builds(Rate),
        st.just(Rate(auto=True)),
        st.builds(lambda n: Rate(Bytes(n)), st.integers(1, LARGEST_RATE)),
        st.builds(lambda n, p: Rate(Bytes(n << p)), st.integers(1, 1023), st.integers(0, 50)),
    )
)
def test_what_is_written_reads_the_same(rate: Rate) -> None:
    assert Rate.parse(str(rate)) == rate


def test_rate_is_written_in_the_largest_unit_that_is_exact() -> None:
    assert str(Rate(Bytes(200 * MIB))) == "200MiB/s"
    assert str(Rate(Bytes(1536))) == "1536B/s"
    assert str(LARGEST_RATE) != str(Rate(LARGEST_RATE)) == "1EiB/s"


@pytest.mark.parametrize("limit", [0, -1, LARGEST_RATE + 1])
def test_limit_that_is_none_is_no_value(limit: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        Rate(Bytes(limit))


def test_limit_and_auto_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="no rate"):
        Rate(Bytes(1), auto=True)
