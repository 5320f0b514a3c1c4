"""The reporter: what is told of faces, when, and in which order."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefer.messages import (
    Box,
    Detection,
    Emotion,
    Face,
    FaceEvent,
    Frame,
    Identity,
    PixelBox,
    Presence,
    Quality,
    Track,
)
from edgefer.report import Origin, Reporter, pixel_box

START = datetime(2026, 11, 20, tzinfo=timezone.utc)
POINTS = ((110.0, 110.0), (130.0, 110.0), (120.0, 120.0), (112.0, 130.0), (128.0, 130.0))
ADA = Identity("known", "Ada", 0.8, 0.3)
HAPPY = Emotion("decided", "happy", 0.9, {"happy": 0.9, "sad": 0.1})


def frame(stream_s: float) -> Frame:
    image = np.zeros((480, 640, 3), np.uint8)
    return Frame(image, 0, stream_s, START + timedelta(seconds=stream_s), stream_s, "v4l2:///dev/video0")


def face(name: str, now_s: float, **changes) -> Face:
    detection = Detection(Box(100, 100, 40, 50), 0.9, POINTS)
    track = Track(name, detection, 0.25, START + timedelta(seconds=0.25), now_s, START + timedelta(seconds=now_s))
    return replace(Face(track, Quality(45, 0.8, 0.9), Identity("undecided"), Emotion("undecided")), **changes)


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(Origin("hall-pi", "b00t"), 5.0, lambda: True)


def told(messages) -> list[tuple[str, str]]:
    return [(m.event, m.track_id) for m in messages if isinstance(m, FaceEvent)]


def presence(messages) -> Presence | None:
    found = [m for m in messages if isinstance(m, Presence)]
    assert len(found) <= 1
    assert not found or messages[-1] is found[0], "the presence comes after the events"
    return found[0] if found else None


def test_nothing_is_told_of_nobody(reporter):
    assert reporter(frame(1), []) == []


def test_a_face_appears_stays_and_leaves(reporter):
    messages = reporter(frame(1), [face("a", 1)])
    assert told(messages) == [("appeared", "a")]
    assert [(f.track_id, f.since) for f in presence(messages).faces] == [("a", START + timedelta(seconds=0.25))]
    assert reporter(frame(2), [face("a", 2)]) == []
    messages = reporter(frame(3), [])
    (left, after) = messages
    assert (left.event, left.track_age_s, left.last_seen) == ("left", 1.75, START + timedelta(seconds=2))
    assert left.time == START + timedelta(seconds=3)
    assert (after.count, after.faces) == (0, ())


def test_a_change_is_told_at_once_and_no_change_every_interval(reporter):
    reporter(frame(1), [face("a", 1)])
    messages = reporter(frame(1.1), [face("a", 1.1, identity=ADA)])
    assert told(messages) == [("updated", "a")]
    assert presence(messages).known == ("Ada",)
    messages = reporter(frame(1.2), [face("a", 1.2, identity=ADA, emotion=HAPPY)])
    assert told(messages) == [("updated", "a")]
    assert presence(messages).faces[0].emotion == "happy"
    surer = replace(ADA, similarity=0.9)
    assert reporter(frame(6.1), [face("a", 6.1, identity=surer, emotion=HAPPY)]) == []
    messages = reporter(frame(6.3), [face("a", 6.3, identity=surer, emotion=HAPPY)])
    assert told(messages) == [("updated", "a")]
    assert presence(messages) is None
    assert messages[0].identity.similarity == 0.9


def test_a_face_that_is_not_found_just_now_is_not_updated(reporter):
    reporter(frame(1), [face("a", 1)])
    assert reporter(frame(9), [face("a", 1)]) == []
    assert told(reporter(frame(9.1), [face("a", 9.1)])) == [("updated", "a")]


def test_left_carries_the_last_values(reporter):
    reporter(frame(1), [face("a", 1)])
    reporter(frame(2), [face("a", 2, identity=ADA, emotion=HAPPY)])
    (left, _) = reporter.end()
    assert (left.identity, left.emotion, left.last_seen) == (ADA, HAPPY, START + timedelta(seconds=2))
    assert left.camera == "v4l2:///dev/video0"


def test_who_is_forgotten_while_out_of_sight_is_not_named_any_more(reporter):
    reporter(frame(1), [face("a", 1, identity=ADA)])
    reporter.forget(frozenset({"Ada"}))
    (after,) = reporter(frame(1.5), [face("a", 1)])
    assert (after.known, after.unknown_count) == ((), 1)
    (left, last) = reporter.end()
    assert (left.identity, last.count) == (Identity("unknown"), 0)


def test_presence_counts_each_kind(reporter):
    faces = [face("a", 1, identity=ADA), face("b", 1, identity=Identity("unknown")), face("c", 1)]
    now = presence(reporter(frame(1), faces))
    assert (now.count, now.known, now.unknown_count, now.undecided_count) == (3, ("Ada",), 1, 1)
    assert [(f.track_id, f.name) for f in now.faces] == [("a", "Ada"), ("b", None), ("c", None)]
    decided = [faces[0], faces[1], face("c", 2, identity=Identity("unknown"))]
    after = presence(reporter(frame(2), [replace(f, track=replace(f.track, last_seen_s=2)) for f in decided]))
    assert (after.unknown_count, after.undecided_count) == (2, 0)


def test_the_end_is_told_even_of_an_empty_room(reporter):
    (last,) = reporter.end()
    assert last.count == 0
    assert reporter.count == 0


def test_latency_is_from_capture_to_the_event_in_milliseconds(reporter, monkeypatch):
    monkeypatch.setattr("edgefer.report.time.monotonic", lambda: 1.25)
    (event, _) = reporter(frame(1), [face("a", 1)])
    assert event.latency_ms == 250
    (left, _) = reporter(frame(1.5), [])  # a clock that went back isn't told of
    assert left.latency_ms == 0


def test_events_describe_the_face_inside_its_frame(reporter):
    outside = Detection(Box(-10.4, 470.2, 60.0, 60.0), 0.9, None)
    shown = face("a", 1)
    (event, _) = reporter(frame(1), [replace(shown, track=replace(shown.track, detection=outside))])
    assert event.bbox == PixelBox(0, 470, 50, 10)
    assert (event.frame.width, event.frame.height, event.landmarks) == (640, 480, None)
    assert (event.device, event.boot_id, event.clock_synced, event.replayed) == ("hall-pi", "b00t", True, False)
    assert event.latency_ms >= 0


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=30))
def test_every_story_has_one_beginning_and_one_end_and_no_gap(rooms):
    reporter = Reporter(Origin("hall-pi", "b00t"), 0.2, lambda: False)
    messages = []
    for n, room in enumerate(rooms):
        messages += reporter(frame(n / 10), [face(name, n / 10) for name in sorted(room)])
    messages += reporter.end()
    events = [m for m in messages if isinstance(m, FaceEvent)]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    for name in "abcd":
        story = "".join(e.event[0] for e in events if e.track_id == name)
        # appeared, any number of updates, left; and all over again
        assert all(part.startswith("a") and set(part[1:]) <= {"u"} for part in story.split("l")[:-1])
        assert story == "" or story.endswith("l")
    present = set()
    for message in messages:
        if isinstance(message, FaceEvent):
            present = present - {message.track_id} if message.event == "left" else present | {message.track_id}
        else:
            assert {f.track_id for f in message.faces} == present


def test_a_box_beyond_the_frame_is_a_pixel_at_its_edge():
    assert pixel_box(Box(700, 500, 30, 30), 640, 480) == PixelBox(639, 479, 1, 1)
    assert pixel_box(Box(-50, -50, 30, 30), 640, 480) == PixelBox(0, 0, 1, 1)
    assert pixel_box(Box(10.4, 20.6, 30.2, 0.2), 640, 480) == PixelBox(10, 21, 31, 1)


@given(st.floats(-50, 700), st.floats(-50, 500), st.floats(0.1, 300), st.floats(0.1, 300))
def test_published_boxes_lie_in_the_frame(x, y, width, height):
    box = pixel_box(Box(x, y, width, height), 640, 480)
    assert box.width >= 1
    assert box.height >= 1
    assert box.x + box.width <= 640
    assert box.y + box.height <= 480
