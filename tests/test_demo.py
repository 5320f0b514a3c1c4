"""`edgefer demo`, as a person starts it."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import jsonschema
import pytest
from brokers import free_port

from edgefer import demo
from edgefer.cameras import sample
from edgefer.demo import playable
from edgefer.errors import InputError

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "face.schema.json").read_text())
RUN_S = 100
"""How long a demo may take: a guard, never a measure."""

pytest.importorskip("amqtt", reason="the demo's broker isn't installed: pip install '.[demo]'")
try:
    for actor in sample.CAST:
        sample.picture_path(actor)
except InputError as missing:
    pytest.skip(str(missing), allow_module_level=True)


class Home:
    """A user's home and temporary folder, in which demos are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFER_") and k != "NO_COLOR"}
        folders = {"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder), "TMPDIR": str(self.temporary)}
        return kept | folders | variables

    def start(self, *arguments: str, blocked: str = "", stdout: int = subprocess.PIPE, **variables: str):
        """A demo's process; `blocked` is a package that it finds not installed."""
        block = f"sys.modules[{blocked!r}] = None; " if blocked else ""
        # Its broker shares its processor: on a busy machine the last messages take their time.
        patience = "from edgefer import service; service.CLOSE_SINKS_S = 20.0; "
        main = "from edgefer.__main__ import main; sys.exit(main(['demo', *sys.argv[1:]]))"
        code = f"import sys; {block}{patience}{main}"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """A demo from its beginning to its end."""
        with self.start(*arguments, **options) as process:  # type: ignore[arg-type]
            out, err = process.communicate(timeout=RUN_S)
        assert not list(self.temporary.iterdir()), "something was left behind"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Two seconds of Grace Hopper, as a file whose name isn't plain."""
    path = tmp_path_factory.mktemp("clip") / "grace 100%?.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), sample.FPS, (sample.WIDTH, sample.HEIGHT))
    assert writer.isOpened()
    for n in range(50):
        writer.write(sample.draw(3 + n / sample.FPS))
    writer.release()
    return path


def run_in_terminal(home: Home, *arguments: str, **variables: str) -> tuple[int, str]:
    """A demo whose output is a terminal's; its exit code and what the terminal got."""
    screen, terminal = pty.openpty()
    shown = b""
    with home.start(*arguments, stdout=terminal, **variables) as process:
        os.close(terminal)
        try:
            while data := os.read(screen, 65536):
                shown += data
        except OSError:  # how Linux says that the other end is closed
            pass
        finally:
            os.close(screen)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        return process.wait(RUN_S), shown.decode()


def plain(text: str) -> str:
    return re.sub(r"\033\[\d*m", "", text)


def event_lines(text: str) -> list[str]:
    return [
        line for line in plain(text).splitlines() if re.match(r"\d\d:\d\d:\d\d\.\d{3}  (appeared|updated|left)", line)
    ]


def figures(text: str) -> tuple[int, int, int]:
    """Frames, faces and events, from the summary."""
    found = re.search(r"^(\d+) frames, (\d+) faces in (\d+) events, [\d.]+ frames/s", text, re.MULTILINE)
    assert found, text
    frames, faces, events = map(int, found.groups())
    return frames, faces, events


def test_the_sample_shows_a_friend_and_a_stranger_in_colour(home):
    code, shown = run_in_terminal(home)
    assert code == 0
    lines = event_lines(shown)
    assert any("Grace Hopper" in line for line in lines)
    assert any(re.search(r"  unknown \(", line) for line in lines)
    assert "Eileen" not in shown
    assert "\033[32mappeared\033[0m" in shown
    frames, faces, events = figures(plain(shown))
    assert 0 < frames <= sample.SECONDS * sample.FPS
    assert (len(lines), sum(" appeared " in line for line in lines)) == (events, faces)
    assert sum(" left " in line for line in lines) == faces
    assert "EDGEFER_MQTT__HOST=broker.local edgefer run" in shown
    assert "Your own camera:" in shown
    assert not (home.folder / "edgefer").exists(), "the user's gallery was touched"
    assert not list(home.temporary.iterdir())


def test_a_clip_is_played_and_its_payloads_come_as_they_are(home, clip):
    done = home.run(str(clip), "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    for event in events:
        jsonschema.validate(event, SCHEMA)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["event"] for event in events} >= {"appeared", "left"}
    # Beside the payloads, what is meant for a person goes to standard error.
    _, faces, count = figures(done.stderr)
    assert (faces, count) == (len({event["track_id"] for event in events}), len(events))


def test_no_colour_where_none_is_wanted(home, clip):
    code, shown = run_in_terminal(home, str(clip), NO_COLOR="1")
    assert code == 0
    assert event_lines(shown)
    assert "\033" not in shown


def test_identity_can_be_off(home):
    with home.start(EDGEFER_IDENTITY__ENABLED="false") as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=RUN_S)
    assert (process.returncode, err) == (0, "")
    assert " off " in shown[1]
    assert "Grace" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_can_be_stopped_and_sums_up(home, number):
    with home.start() as process:
        assert process.stdout is not None
        head = process.stdout.readline()
        shown = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=RUN_S)
    assert (process.returncode, err) == (0, "")
    assert head.startswith("sample:// -> 127.0.0.1:")
    assert "\033" not in shown + out, "colour is for terminals"
    lines = event_lines(shown + out)
    assert " appeared " in lines[0]
    assert " left " in lines[-1]
    assert figures(out)[1:] == (1, len(lines))
    assert not list(home.temporary.iterdir())


def test_a_reader_that_goes_away_ends_it(home):
    with home.start() as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert (process.wait(RUN_S), err) == (0, "")


def test_a_configured_broker_is_used_beside_the_device_s_own_topics(home, clip, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    done = home.run(str(clip), "--json", EDGEFER_DEVICE="hall-pi", **mosquitto.variables)
    assert done.returncode == 0, done.stderr
    subscriber.wait_for(lambda all_: all_[-1].payload == "offline")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert printed
    assert printed == subscriber.payloads("hall-pi-demo/face")
    assert {message.topic.split("/")[1] for message in subscriber.messages} == {"hall-pi-demo"}
    assert f"localhost:{mosquitto.port}" in done.stderr


def test_a_login_and_tls_work_as_for_the_daemon(home, clip, run_mosquitto, authority):
    broker = run_mosquitto(password="pa55 word", authority=authority)
    assert "ada" in broker.variables["EDGEFER_MQTT__USERNAME"]
    # The one user may read and write: the demo does both.
    done = home.run(str(clip), "--json", **broker.variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("edgefer.face/1") >= 2


def test_a_broker_that_is_not_there_or_refuses_is_told(home, run_mosquitto):
    done = home.run(EDGEFER_MQTT__HOST="localhost", EDGEFER_MQTT__PORT=str(free_port()))
    assert done.returncode == 69
    assert "EDGEFER_MQTT__HOST" in done.stderr
    refused = home.run(**run_mosquitto(password="right").variables | {"EDGEFER_MQTT__PASSWORD": "wrong"})
    assert refused.returncode == 69
    assert "EDGEFER_MQTT__PASSWORD" in refused.stderr
    assert "wrong" not in refused.stderr.replace("wrong user", "")


@pytest.mark.parametrize(("blocked", "told"), [("amqtt", "EDGEFER_MQTT__HOST"), ("skimage", "skimage")])
def test_what_is_not_installed_is_told_with_how_to_get_it(home, blocked, told):
    done = home.run(blocked=blocked)
    assert done.returncode == 66
    assert "pip install '.[demo]'" in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("clip", "content", "code"), [("film.mp4", b"", 66), ("film.mp4", None, 66), ("ftp://host/film", None, 64)]
)
def test_what_cannot_be_played_is_told(home, clip, content, code):
    if content is not None:
        (home.folder / clip).write_bytes(content)
    done = home.run(clip)
    assert done.returncode == code
    assert clip.partition("/")[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_camera_that_is_not_there_is_told_while_it_is_waited_for(home):
    with home.start("/dev/video97") as process:
        assert process.stderr is not None
        assert "/dev/video97" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=RUN_S)
    assert process.returncode == 0
    assert figures(out) == (0, 0, 0)


def test_only_a_plain_path_is_given_a_pace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert playable("a b?.mp4") == f"file://{tmp_path}/a%20b%3F.mp4?realtime=1"
    for uri in ("file:///x.mp4?loop=1", "0", "rtsp://host/x", "sample://?loop=1"):
        assert playable(uri) == uri


def test_a_broker_that_does_not_stop_in_time_is_left_to_end_with_the_process(monkeypatch):
    from amqtt.broker import Broker

    shut_down = Broker.shutdown

    async def hang(broker):
        await shut_down(broker)
        await asyncio.sleep(3600)

    monkeypatch.setattr(Broker, "shutdown", hang)
    with demo.embedded_broker():  # leaving it is what would fail
        monkeypatch.setattr(demo, "PATIENCE_S", 0.5)
