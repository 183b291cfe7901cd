"""Names of our devices say whose they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.stack.names import Role, check_job, device_name, device_uuid, owner

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
