"""Who it is and what it shows: decided over several frames."""

from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefer import emotions, identify, schedule
from edgefer.emotions import EmotionWatcher
from edgefer.gallery import Gallery, Template
from edgefer.identify import Identifier, IdentityRule, identity_rule
from edgefer.messages import Box, Detection, Face, Frame, Quality, Track
from edgefer.settings import Settings
from edgefer.vision.model import find_card

START = datetime(2026, 11, 20, tzinfo=timezone.utc)
GOOD = Quality(120, 0.9, 0.9)
POOR = Quality(20, 0.1, 0.2)
LABELS = ("happy", "sad", "neutral")
RULE = IdentityRule(threshold=0.6, margin=0.1)


def frame(stream_s: float) -> Frame:
    return Frame(np.zeros((8, 8, 3), np.uint8), 0, stream_s, START, stream_s, "synthetic://")


def face(track_id: str, now_s: float, quality: Quality = GOOD) -> Face:
    detection = Detection(Box(0, 0, quality.face_px, quality.face_px), 0.9, None)
    return Face(Track(track_id, detection, 0.0, START, now_s, START), quality)


def direction(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


ADA, GRACE, STRANGER = direction(1, 0, 0), direction(0, 1, 0), direction(0.3, 0.2, 1)


class Script:
    """A model that answers what the test says, and counts how often it was asked."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, image: object, detection: object) -> np.ndarray:
        self.asked += 1
        return self.answer


@pytest.fixture
def gallery(tmp_path):
    opened = Gallery(tmp_path, "model", create=True)
    opened.enroll("Ada", ADA, 1.0)
    opened.enroll("Grace", GRACE, 1.0)
    yield opened
    opened.close()


def watch(stage, answers, model: Script, quality: Quality = GOOD, start: int = 0):
    """Shows one face in a frame every EVERY_S, so that each is read; the outcome after each."""
    outcomes = []
    for n, answer in enumerate(answers, start):
        model.answer = answer
        now_s = n * identify.EVERY_S
        (shown,) = stage(frame(now_s), [face("a", now_s, quality)])
        outcomes.append(shown)
    return outcomes


class TestIdentity:
    def test_is_never_decided_from_one_reading(self, gallery):
        model = Script(ADA)
        shown = watch(Identifier(model, gallery, RULE), [ADA] * 4, model)
        assert [f.identity.status for f in shown] == ["undecided"] * (identify.MIN_READINGS - 1) + ["known", "known"]
        assert shown[-1].identity.name == "Ada"
        assert shown[-1].identity.similarity == pytest.approx(1, abs=1e-5)

    def test_a_stranger_has_no_name_but_a_similarity(self, gallery):
        model = Script(STRANGER)
        identity = watch(Identifier(model, gallery, RULE), [STRANGER] * 5, model)[-1].identity
        assert (identity.status, identity.name) == ("unknown", None)
        assert identity.similarity == pytest.approx(STRANGER[0], abs=1e-5)

    def test_between_two_people_is_nobody(self, gallery):
        between = direction(1, 0.95, 0)
        model = Script(between)
        identity = watch(Identifier(model, gallery, RULE), [between] * 5, model)[-1].identity
        assert identity.similarity > RULE.threshold
        assert identity.status == "unknown"

    def test_one_bad_reading_changes_no_name(self, gallery):
        model = Script(ADA)
        shown = watch(Identifier(model, gallery, RULE), [ADA] * 6 + [GRACE] + [ADA] * 3, model)
        assert {f.identity.name for f in shown[3:]} == {"Ada"}

    def test_a_swap_of_faces_is_noticed_in_three_frames_from_the_next_look_on(self, gallery):
        """Ten frames a second, of Grace for three seconds and of the other then."""
        for other, name in ((ADA, "Ada"), (STRANGER, None)):
            model = Script(GRACE)
            stage = Identifier(model, gallery, RULE)
            names, asked = [], []
            for n in range(80):
                model.answer = GRACE if n < 30 else other
                (shown,) = stage(frame(n / 10), [face("a", n / 10)])
                names.append((shown.identity.status, shown.identity.name))
                asked.append(model.asked)
            first = next(n for n in range(30, 80) if asked[n] > asked[29])
            assert first <= 30 + 10 * identify.EVERY_S
            assert names[3 : first + 2] == [("known", "Grace")] * (first - 1)
            assert names[first + 2 :] == [("known", name) if name else ("unknown", None)] * (78 - first)

    def test_what_is_seen_badly_is_nobody_elses(self, gallery):
        """Turned away, or blurred, a face is unlike itself: no reason to look at it all the time, nor to begin anew."""
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        watch(stage, [ADA] * 6, model)
        shown = watch(stage, [STRANGER] * 20, model, POOR, start=6)
        assert {f.identity.name for f in shown} == {"Ada"}

    def test_a_name_stays_a_little_under_the_threshold(self, gallery):
        # Cosine 0.58 to Ada: under 0.6, over 0.6 less the hysteresis.
        near = direction(0.58, 0.0, (1 - 0.58**2) ** 0.5)
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        assert watch(stage, [near] * 30, model)[-1].identity.status == "unknown"
        stage = Identifier(model, gallery, RULE)
        assert watch(stage, [ADA] * 4 + [near] * 40, model)[-1].identity.name == "Ada"

    def test_a_good_look_counts_more_than_poor_ones(self, gallery):
        model = Script(STRANGER)
        stage = Identifier(model, gallery, RULE)
        watch(stage, [STRANGER] * 3, model, POOR)
        assert watch(stage, [ADA] * 2, model, GOOD, start=3)[-1].identity.name == "Ada"

    def test_who_is_enrolled_again_in_an_empty_gallery_is_known_as_soon_as_a_new_face(self, gallery):
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        gallery.remove("Grace")
        watch(stage, [ADA] * 6, model)
        gallery.remove("Ada")
        (shown,) = watch(stage, [ADA], model, start=6)
        assert shown.identity.status == "unknown"
        gallery.enroll("Ada", ADA, 1.0)
        at_s = 7 * identify.EVERY_S
        shown = [stage(frame(at_s + n / 10), [face("a", at_s + n / 10)])[0].identity for n in range(3)]
        assert [identity.name for identity in shown] == [None, None, "Ada"]

    def test_an_empty_gallery_needs_no_embedding(self, tmp_path):
        empty = Gallery(tmp_path, "model")
        model = Script(ADA)
        (shown,) = Identifier(model, empty, RULE)(frame(0), [face("a", 0)])
        assert (shown.identity.status, model.asked) == ("unknown", 0)
        empty.close()

    def test_a_track_that_ended_is_forgotten(self, gallery):
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        watch(stage, [ADA] * 4, model)
        stage(frame(90), [])
        assert watch(stage, [ADA], model, start=50)[0].identity.status == "undecided"

    def test_who_is_ignored_is_unknown(self, gallery):
        gallery.add("poster", [Template(STRANGER, 1.0)], ignored=True)
        model = Script(STRANGER)
        identity = watch(Identifier(model, gallery, RULE), [STRANGER] * 5, model)[-1].identity
        assert (identity.status, identity.name) == ("unknown", None)
        assert identity.similarity == pytest.approx(1, abs=1e-5)

    def test_a_change_of_the_gallery_is_taken_up_in_the_next_second_without_another_reading(self, gallery, tmp_path):
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        assert watch(stage, [ADA] * 6, model)[-1].identity.name == "Ada"
        other = Gallery(tmp_path, "model", create=True)
        asked, now_s = model.asked, 5 * identify.EVERY_S
        for change, name in (
            (lambda: other.rename("Ada", "Countess"), "Countess"),
            (lambda: other.remove("Countess"), None),
        ):
            change()
            now_s += identify.REFRESH_S
            (shown,) = stage(frame(now_s), [face("a", 5 * identify.EVERY_S)])  # not found in this frame
            assert (shown.identity.name, model.asked) == (name, asked)
        other.close()

    def test_only_how_near_strangers_came_is_noted(self, gallery, monkeypatch):
        monkeypatch.setattr(identify, "NOTE_STRANGERS_S", 0.0)
        gallery.add("poster", [Template(direction(0.3, -0.2, -1), 1.0)], ignored=True)
        model = Script(ADA)
        stage = Identifier(model, gallery, RULE)
        for who in (ADA, STRANGER, direction(0.3, -0.2, -1)):
            watch(stage, [who] * 5, model)
            stage(frame(5 * identify.EVERY_S), [])  # it leaves
        assert gallery.strangers() == {}
        stage(frame(100), [])
        # Cosine 0.282 to Ada; neither Ada nor the poster is a stranger.
        assert gallery.strangers() == {0.29: 1}

    def test_one_of_two_who_look_alike_is_no_stranger(self, gallery):
        gallery.add("Twin", [Template(direction(1, 0.1, 0), 1.0)])
        model = Script(direction(1, 0.05, 0))
        stage = Identifier(model, gallery, RULE)
        assert watch(stage, [direction(1, 0.05, 0)] * 5, model)[-1].identity.status == "unknown"
        stage.close()
        assert gallery.strangers() == {}

    def test_how_near_a_stranger_was_to_somebody_who_is_gone_is_forgotten(self, gallery, tmp_path):
        near = direction(0.5, 0.1, 0.86)
        model = Script(near)
        stage = Identifier(model, gallery, RULE)
        watch(stage, [near] * 5, model)
        with closing(Gallery(tmp_path, "model")) as other:
            other.remove("Ada")
        stage(frame(5 * identify.EVERY_S + identify.REFRESH_S), [face("a", 5 * identify.EVERY_S)])
        stage.close()
        assert gallery.strangers() == {0.11: 1}, "to Grace"

    def test_strangers_in_view_at_the_end_are_noted(self, gallery):
        model = Script(STRANGER)
        stage = Identifier(model, gallery, RULE)
        watch(stage, [STRANGER] * 5, model)
        stage.close()
        assert gallery.strangers() == {0.29: 1}

    @given(st.floats(-1, 1), st.one_of(st.none(), st.floats(0, 2)))
    def test_only_the_clearly_near_are_named(self, similarity, margin):
        from edgefer.gallery import Match

        identity = RULE.decide(Match("Ada", similarity, margin))
        named = similarity >= RULE.threshold and (margin is None or margin >= RULE.margin)
        assert (identity.name == "Ada", identity.status == "known") == (named, named)


class TestEmotion:
    def stage(self) -> tuple[EmotionWatcher, Script]:
        model = Script(np.array([1, 0, 0], np.float32))
        return EmotionWatcher(model, LABELS, 0.5), model

    def test_is_never_decided_from_one_reading(self):
        stage, model = self.stage()
        happy = np.array([0.9, 0.05, 0.05], np.float32)
        shown = watch(stage, [happy] * 4, model)
        assert [f.emotion.status for f in shown] == ["undecided"] * (emotions.MIN_READINGS - 1) + ["decided"] * 2
        assert shown[-1].emotion.label == "happy"
        assert shown[-1].emotion.confidence == pytest.approx(0.9)
        assert sum(shown[-1].emotion.scores.values()) == pytest.approx(1)

    def test_what_is_not_likely_is_uncertain(self):
        stage, model = self.stage()
        shown = watch(stage, [np.array([0.4, 0.3, 0.3], np.float32)] * 4, model)
        assert (shown[-1].emotion.status, shown[-1].emotion.label) == ("uncertain", None)
        assert shown[-1].emotion.confidence == pytest.approx(0.4)

    def test_a_trembling_reading_does_not_flicker(self):
        stage, model = self.stage()
        rng = np.random.default_rng(5)
        readings = [rng.dirichlet([5, 4, 1]).astype(np.float32) for _ in range(60)]
        labels = [f.emotion.label for f in watch(stage, readings, model)[10:] if f.emotion.label]
        single = [LABELS[int(r.argmax())] for r in readings[10:]]
        flips = sum(a != b for a, b in pairwise(labels))
        assert sum(a != b for a, b in pairwise(single)) > 10
        assert flips <= 2

    def test_a_label_that_is_uncertain_itself_gives_way_to_one_that_isnt(self):
        stage, model = self.stage()
        happy, both = np.array([0.9, 0.05, 0.05], np.float32), np.array([0.43, 0.52, 0.05], np.float32)
        last = watch(stage, [happy] * 5 + [both] * 30, model)[-1].emotion
        assert (last.status, last.label) == ("decided", "sad")
        assert last.confidence == pytest.approx(0.52, abs=1e-3)

    def test_a_change_of_face_is_followed(self):
        stage, model = self.stage()
        happy, sad = np.array([0.9, 0.05, 0.05], np.float32), np.array([0.05, 0.9, 0.05], np.float32)
        shown = watch(stage, [happy] * 5 + [sad] * 6, model)
        assert shown[4].emotion.label == "happy"
        assert shown[-1].emotion.label == "sad"

    def test_one_reading_by_itself(self):
        sure = emotions.decide(np.array([0.2, 0.7, 0.1], np.float32), LABELS, 0.5)
        assert (sure.status, sure.label) == ("decided", "sad")
        assert emotions.decide(np.array([0.4, 0.3, 0.3], np.float32), LABELS, 0.5).label is None


class TestSchedule:
    def due(self, plan: schedule.Schedule, now_s: float, *faces: Face) -> list[str]:
        return [f.track.track_id for f in plan.due(frame(now_s), faces)]

    def test_a_new_face_is_read_at_once_then_now_and_then(self):
        plan = schedule.Schedule(every_s=2.0, budget=2)
        read = [bool(self.due(plan, n / 10, face("a", n / 10))) for n in range(60)]
        assert all(read[: schedule.EAGER_READINGS])
        assert sum(read[schedule.EAGER_READINGS :]) == 2

    def test_a_better_look_is_taken_at_once(self):
        plan = schedule.Schedule(every_s=60.0, budget=2)
        for n in range(10):
            self.due(plan, n / 10, face("a", n / 10, POOR))
        assert self.due(plan, 1.1, face("a", 1.1, POOR)) == []
        assert self.due(plan, 1.2, face("a", 1.2, GOOD)) == ["a"]
        assert self.due(plan, 1.3, face("a", 1.3, replace(GOOD, sharpness=0.95))) == []

    def test_a_crowd_takes_turns_within_the_budget(self):
        plan = schedule.Schedule(every_s=0.1, budget=2)
        counts: dict[str, int] = {}
        for n in range(60):
            due = self.due(plan, n / 10, *(face(name, n / 10) for name in "abcdef"))
            assert len(due) == 2
            for name in due:
                counts[name] = counts.get(name, 0) + 1
        assert counts == dict.fromkeys("abcdef", 20)

    def test_a_face_that_was_not_found_in_this_frame_is_not_read(self):
        plan = schedule.Schedule(every_s=0.1, budget=2)
        assert self.due(plan, 1.0, face("a", 0.9)) == []


def test_tracks_and_pictures_have_thresholds_of_their_own(monkeypatch):
    card = replace(find_card("identity-112"), thresholds={"match": 0.4, "track": 0.6, "margin": 0.1})
    assert identity_rule(Settings(), card, tracked=False) == IdentityRule(0.4, 0.1)
    assert identity_rule(Settings(), card, tracked=True) == IdentityRule(0.6, 0.1)
    alone = replace(card, thresholds={"match": 0.4})
    assert identity_rule(Settings(), alone, tracked=True) == IdentityRule(0.4, 0.05)
    monkeypatch.setenv("EDGEFER_IDENTITY__THRESHOLD", "0.7")
    assert {identity_rule(Settings(), card, tracked=tracked).threshold for tracked in (False, True)} == {0.7}


def test_a_card_without_a_threshold_is_told(monkeypatch, caplog):
    card = find_card("identity-112")
    bare = replace(card, thresholds={})
    monkeypatch.setenv("EDGEFER_IDENTITY__THRESHOLD", "0.7")
    assert identity_rule(Settings(), bare, tracked=True).threshold == 0.7
    assert not caplog.messages
    monkeypatch.delenv("EDGEFER_IDENTITY__THRESHOLD")
    assert identity_rule(Settings(), bare, tracked=True).threshold == 0.5
    assert "the card of identity-112 has no threshold: 0.5 is taken" in caplog.text
