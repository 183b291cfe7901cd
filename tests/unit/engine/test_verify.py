"""Reading back, with a fake destination."""

from __future__ import annotations

import hashlib

import pytest

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.runs import Run
from dmcopy.engine.verify import Verifier
from dmcopy.errors import DestinationFailed, Interrupted, VerifyFailed
from dmcopy.units import Sectors, to_bytes
from tests.unit.engine.fakes import SEGMENT, FakeSession, content, digest_of

LENGTH = 16 * 6 + 5


def verifier(session: FakeSession, pool: BufferPool, stop: Stop | None = None) -> Verifier:
    return Verifier(session, pool, hashlib.sha256, stop=stop)


def whole(digest: str) -> list[Run]:
    return [Run(Extent(Sectors(0), Sectors(LENGTH)), digest)]


@pytest.fixture
def session() -> FakeSession:
    session = FakeSession(LENGTH)
    session.data = content(LENGTH)
    return session


def test_same_content_gives_its_digest(session: FakeSession) -> None:
    expected = digest_of(session.data)
    with BufferPool(2, to_bytes(SEGMENT)) as pool:
        assert verifier(session, pool).verify(whole(expected), SEGMENT) == expected
        assert pool.free == 2


def test_one_changed_byte_is_found(session: FakeSession) -> None:
    expected = digest_of(session.data)
    session.data[-1] ^= 1
    with BufferPool(2, to_bytes(SEGMENT)) as pool, pytest.raises(VerifyFailed, match=expected):
        verifier(session, pool).verify(whole(expected), SEGMENT)


def test_image_made_in_several_runs_is_proved_run_by_run(session: FakeSession) -> None:
    at = 32 * 512
    runs = [
        Run(Extent(Sectors(0), Sectors(32)), digest_of(session.data[:at])),
        Run(Extent(Sectors(32), Sectors(LENGTH - 32)), digest_of(session.data[at:])),
    ]
    image = digest_of(session.data)
    with BufferPool(2, to_bytes(SEGMENT)) as pool:
        assert verifier(session, pool).verify(runs, SEGMENT) == image
        session.data[at] ^= 1
        where = f"from {at} to {LENGTH * 512}"
        with pytest.raises(VerifyFailed, match=where):
            verifier(session, pool).verify(runs, SEGMENT)


def test_segment_that_cannot_be_read_back_is_named(session: FakeSession) -> None:
    session.fails_at, session.error = Sectors(32), DestinationFailed("cannot read back")
    with BufferPool(2, to_bytes(SEGMENT)) as pool:
        one = verifier(session, pool)
        with pytest.raises(DestinationFailed):
            one.verify(whole(""), SEGMENT)
        assert one.failed_at == Extent(Sectors(32), SEGMENT)


def test_stop_ends_it(session: FakeSession) -> None:
    stop = Stop()
    stop.set("stopped")
    with BufferPool(2, to_bytes(SEGMENT)) as pool, pytest.raises(Interrupted):
        verifier(session, pool, stop).verify(whole(""), SEGMENT)
