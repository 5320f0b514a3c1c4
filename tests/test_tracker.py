"""The tracker: one id for one face, through misses and crossings."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefer.messages import Box, Detection, Frame
from edgefer.tracker import CONFIRM_HITS, LOST_AFTER_S, LOST_MISSES, Expected, Tracker, match

START = datetime(2026, 11, 20, tzinfo=timezone.utc)


def frame(stream_s: float) -> Frame:
    image = np.zeros((480, 640, 3), np.uint8)
    return Frame(image, 0, stream_s, START + timedelta(seconds=stream_s), stream_s, "synthetic://")


def face(x: float, y: float = 100, side: float = 80) -> Detection:
    return Detection(Box(x - side / 2, y - side / 2, side, side), 0.9, None)


class Film:
    """Shows detections to a tracker, 20 frames a second."""

    def __init__(self) -> None:
        self.tracker = Tracker("b00t")
        self.now_s = 0.0

    def show(self, *faces: Detection) -> dict[str, float]:
        """One frame; the confirmed tracks and where they are."""
        self.now_s += 0.05
        return {t.track_id: t.detection.box.centre[0] for t in self.tracker(frame(self.now_s), faces)}


@pytest.fixture
def film() -> Film:
    return Film()


def test_a_face_is_confirmed_by_its_third_frame(film):
    assert [len(film.show(face(100))) for _ in range(4)] == [0, 0, 1, 1]
    assert list(film.show(face(100))) == ["b00t-1"]


def test_a_false_detection_never_shows(film):
    for n in range(60):
        # Every third frame something flares up, at the same place.
        assert film.show(*([face(300)] if n % 3 == 0 else [])) == {}


def test_one_miss_is_forgiven_to_a_new_face_and_two_are_not(film):
    def confirmed(pattern: str) -> list[int]:
        film.tracker.reset()
        return [len(film.show(*([face(100)] if found == "x" else []))) for found in pattern]

    assert confirmed("x-xx") == [0, 0, 0, 1]
    assert confirmed("x--xxx") == [0, 0, 0, 0, 0, 1]


def test_an_id_outlives_a_short_miss_and_keeps_its_last_box(film):
    for _ in range(5):
        film.show(face(100))
    missed = [film.show() for _ in range(round(LOST_AFTER_S / 0.05) - 2)]
    assert all(tracks == {"b00t-1": 100} for tracks in missed)
    assert list(film.show(face(104))) == ["b00t-1"]


def test_a_face_that_is_covered_bit_by_bit_goes_on_behind(film):
    for n in range(10):
        film.show(face(100 + 10 * n))
    for n, width in enumerate((50, 20), 10):  # its right side goes first, then it is wholly hidden
        box = Box(60 + 10 * n, 60, width, 80)
        assert film.show(Detection(box, 0.6, None)).keys() == {"b00t-1"}
    for _ in range(12):
        film.show()
    left = 60 + 10 * 24
    for n, width in enumerate((20, 50, 80)):  # its right side comes out first, where it would be by now
        assert film.show(Detection(Box(left + 10 * n + 80 - width, 60, width, 80), 0.6, None)).keys() == {"b00t-1"}


def test_a_face_that_stays_away_is_lost_and_gets_a_new_id(film):
    for _ in range(5):
        film.show(face(100))
    for _ in range(round(LOST_AFTER_S / 0.05) + 2):
        gone = film.show()
    assert gone == {}
    for _ in range(CONFIRM_HITS):
        back = film.show(face(100))
    assert list(back) == ["b00t-2"]


def test_two_faces_that_cross_keep_their_ids(film):
    for n in range(60):
        left, right = 100 + 8 * n, 580 - 8 * n
        hidden = abs(left - right) < 60  # the one behind isn't found then
        tracks = film.show(face(left), *([] if hidden else [face(right, y=110)]))
    assert tracks == {"b00t-1": left, "b00t-2": right}


@pytest.mark.parametrize("fps", [10, 25, 60])
def test_a_face_that_is_hidden_by_another_comes_out_as_itself(fps):
    """Its box shrinks as the other covers it, so that it seems to slow down; then it isn't found for 0.65 s."""
    tracker = Tracker("b00t")
    for n in range(2 * fps):
        behind, before = 60 + 200 * n / fps, 460 - 200 * n / fps
        shown = [face(before, side=100)]
        distance = abs(before - behind)
        if distance >= 130:
            cut = max(0, 170 - distance)
            left = behind - 50 + (cut if before < behind else 0)
            shown.append(Detection(Box(left, 50, 100 - cut, 100), 0.9, None))
        tracks = tracker(frame(n / fps), shown)
    assert {t.track_id: t.detection.box.centre[0] for t in tracks} == {"b00t-1": before, "b00t-2": behind}


def test_a_fast_face_keeps_its_id(film):
    for n in range(12):
        tracks = film.show(face(100 + 45 * n))  # over half of its size a frame
    assert list(tracks) == ["b00t-1"]


def test_two_faces_side_by_side_do_not_mix(film):
    rng = np.random.default_rng(3)
    for _ in range(100):
        places = [200, 285]
        shown = [face(x + rng.normal(0, 4)) for x in places]
        tracks = film.show(*(shown if rng.random() < 0.5 else shown[::-1]))
    assert {i: round(x / 85) for i, x in tracks.items()} in ({"b00t-1": 2, "b00t-2": 3}, {"b00t-2": 2, "b00t-1": 3})
    assert len(tracks) == 2


def test_a_face_of_another_size_is_another_face(film):
    for _ in range(5):
        film.show(face(100, side=40))
    for _ in range(CONFIRM_HITS):
        tracks = film.show(face(130, side=160))
    assert set(tracks) == {"b00t-1", "b00t-2"}


def test_a_camera_with_a_frame_a_second_has_tracks_too():
    tracker = Tracker("b00t")
    shown = [tracker(frame(second), [face(100)]) for second in range(6)]
    assert [len(tracks) for tracks in shown] == [0, 0, 1, 1, 1, 1]
    away = [tracker(frame(6 + second), []) for second in range(LOST_MISSES + 1)]
    assert [len(tracks) for tracks in away] == [1, 1, 0, 0]


def test_a_face_that_a_slow_camera_sees_now_and_then_stays_one():
    tracker = Tracker("b00t")
    found = [face(100)] * CONFIRM_HITS + [None, None, face(100)] * 4
    shown = [tracker(frame(second), [f] if f else []) for second, f in enumerate(found)]
    assert {t.track_id for tracks in shown[CONFIRM_HITS - 1 :] for t in tracks} == {"b00t-1"}
    assert all(shown[CONFIRM_HITS - 1 :])


def test_times_are_those_of_the_frames(film):
    for _ in range(4):
        film.show(face(100))
    (track,) = film.tracker(frame(5.0), [])
    assert (track.first_seen_s, track.last_seen_s) == pytest.approx((0.05, 0.2))
    assert track.last_seen - track.first_seen == timedelta(seconds=0.15)


def test_reset_forgets_faces_and_never_gives_an_id_again(film):
    for _ in range(3):
        film.show(face(100))
    film.tracker.reset()
    for _ in range(CONFIRM_HITS):
        tracks = film.show(face(100))
    assert list(tracks) == ["b00t-2"]


def seen(box: Box) -> Expected:
    """A face that was there in the frame before."""
    return Expected(box, reach=0.7, unseen_s=0.05)


def test_the_better_pair_wins():
    old = [seen(Box(0, 0, 100, 100)), seen(Box(40, 0, 100, 100))]
    new = [Box(35, 0, 100, 100)]
    assert match(old, new) == {1: 0}
    assert match([], new) == match(old, []) == {}


def test_a_trembling_box_keeps_its_face_where_another_is_missed(film):
    """Two faces overlap by less than the detector takes for one; it misses the first, and the other shrinks."""
    for _ in range(CONFIRM_HITS):
        film.show(face(50, side=100), face(90, side=100))
    film.show(face(50, side=100), face(89.5, side=99))
    assert film.show(face(89.5, side=99)) == {"b00t-1": 50, "b00t-2": 89.5}


def test_whoever_was_seen_just_now_comes_before_whoever_was_hidden():
    hidden = Expected(Box(0, 0, 100, 100), reach=1.4, unseen_s=1.0)
    assert match([hidden, seen(Box(10, 0, 100, 100))], [Box(0, 0, 100, 100)]) == {1: 0}
    # Overlap comes before nearness all the same.
    assert match([hidden, seen(Box(65, 0, 100, 100))], [Box(-5, 0, 100, 100)]) == {0: 0}


def test_whoever_is_known_to_be_there_comes_before_what_a_part_of_a_face_began():
    hidden, part, face = Expected(Box(0, 0, 100, 100), 1.5, 1.1), seen(Box(85, 20, 45, 60)), Box(70, 0, 75, 100)
    assert hidden.box.iou(face) < part.box.iou(face)
    assert match([hidden, part], [face]) == {1: 0}
    assert match([hidden, part], [face], doubtful={1}) == {0: 0}


def test_a_face_is_looked_for_within_its_reach():
    def found(distance: float, reach: float) -> bool:
        return match([Expected(Box(0, 0, 100, 100), reach, 0.0)], [Box(distance, 0, 100, 100)]) == {0: 0}

    assert found(69, 0.7)
    assert not found(71, 0.7)
    assert found(139, 1.4)
    assert not found(141, 1.4)


boxes = st.builds(Box, st.floats(0, 600), st.floats(0, 400), st.floats(10, 200), st.floats(10, 200))


@given(st.lists(boxes, max_size=6), st.lists(boxes, max_size=6))
def test_no_box_is_in_two_pairs(old, new):
    pairs = match([seen(box) for box in old], new)
    assert len(set(pairs.values())) == len(pairs)
    assert all(0 <= i < len(old) and 0 <= j < len(new) for i, j in pairs.items())


@given(st.lists(boxes, max_size=5, unique=True))
def test_what_stands_still_is_found_again(old):
    pairs = match([seen(box) for box in old], old)
    assert len(pairs) == len(old)
    assert all(old[i].iou(old[j]) > 0.999 for i, j in pairs.items())
