"""Names of our devices say whose they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.stack.names import (
    Role,
    check_job,
    device_name,
    device_uuid,
    lv_name,
    lv_owner,
    lv_tag,
    owner,
)

JOBS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


@given(JOBS, st.sampled_from(Role))
def test_uuid_tells_job_and_role(job: str, role: Role) -> None:
    assert check_job(job) == job
    found = owner(device_uuid(job, role))
    assert found is not None
    assert (found.job, found.role) == (job, role)
    assert len(device_name(job, role)) < 128
    assert len(device_uuid(job, role)) < 129


@pytest.mark.parametrize(
    "uuid", ["", "LVM-abc", "DMCOPY-", "DMCOPY-x", "DMCOPY-x-none", "DMCOPY--snap"]
)
def test_foreign_uuid_is_nobody_of_ours(uuid: str) -> None:
    assert owner(uuid) is None


@pytest.mark.parametrize("job", ["", "-x", "a b", "a/b", "x" * 101, "ä", "a\n"])
def test_job_name_that_cannot_be_a_device_name_is_refused(job: str) -> None:
    with pytest.raises(UsageError, match="cannot name a job"):
        check_job(job)


LVM_UUID = f"LVM-{'aZ09' * 16}"


@given(JOBS, st.from_regex(r"\A[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,20}\Z"))
def test_active_lv_tells_its_job(job: str, vg: str) -> None:
    lv = lv_name(job)
    dm_name = f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"
    assert lv_owner(dm_name, LVM_UUID) == job
    assert lv_tag(job).endswith(job)


@pytest.mark.parametrize("job", ["tmeta", "a_tdata", "x_mlog-1", "rimage_0", "a_b_vorigin"])
def test_lv_has_none_of_the_words_that_lvm_keeps_for_itself(job: str) -> None:
    assert "_" not in lv_name(job)


def test_lv_is_named_after_its_job() -> None:
    assert lv_name("db_1-x") == "dmcopy_db_1-x"


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("vg-dmcopy_x", "LVM-short"),
        ("vg-dmcopy_x", f"{LVM_UUID}-real"),
        ("vg-dmcopy_x", "DMCOPY-x-cow"),
        ("vg-other", LVM_UUID),
        ("vg-dmcopy_", LVM_UUID),
        ("vg--dmcopy_x", LVM_UUID),
        ("dmcopy_x", LVM_UUID),
    ],
)
def test_other_lv_is_of_no_job(name: str, uuid: str) -> None:
    assert lv_owner(name, uuid) is None
