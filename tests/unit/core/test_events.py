"""Events: what is printed can be read again."""

from __future__ import annotations

import json

import pytest

from dmcopy.core import events

EVENTS: list[events.Event] = [
    events.Planned(
        job="j", source="/s", destination="image:/d", provider="splice", why="w", bytes_total=1,
        chunk_bytes=None, segment_bytes=2, cow=None, cow_bytes=None, steps=("a", "b"),
    ),
    events.Begun(job="j", source="/s", begin_time="t", hold_seconds=(0.1,), snapshot=None),
    events.Hold(job="j", device="/s", reason="begin", seconds=0.1),
    events.Hook(job="j", hook="h", side="before", status="done", seconds=0.1),
    events.Grown(job="j", cow_used_bytes=1, cow_total_bytes=2, cow_most_bytes=3, seconds=0.1),
    events.Braked(job="j", milliseconds=50),
    events.Paused(job="j", bytes_done=1),
    events.Resumed(job="j", begin_time="t", bytes_done=1),
    events.Warned(job="j", message="m"),
    events.Verified(job="j", digest="d", bytes_total=1, seconds=0.1),
    events.Begun(
        job="g.1", group="g", source="/s", begin_time="t", hold_seconds=(0.1,), snapshot=None,
        window_seconds=0.2, holds={"/s": 0.1},
    ),
    events.Twin(job="j", destination="image:/d", new=False, identity=("ext4 UUID=u",), by_hand="b"),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.event))
def test_event_reads_back_as_itself(event: events.Event) -> None:
    line = json.dumps(event.as_json())
    assert json.loads(line)["event"] == event.event
    assert next(iter(json.loads(line))) == "event"
    assert events.from_json(json.loads(line)) == event


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(KeyError):
        events.from_json({"event": "nonsense", "job": "j"})
    with pytest.raises(TypeError):
        events.from_json({"event": "paused", "job": "j", "odd": 1})
