"""The control socket: enrolling through a running daemon, and what it answers to others."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from brokers import wait_until

from edgefer import control
from edgefer.cameras import sample
from edgefer.control import NAME, Control, ask_for_looks, is_daemon_there, socket_paths
from edgefer.enroll import enroll
from edgefer.errors import CameraError, InputError
from edgefer.messages import Box, Detection
from edgefer.settings import Settings

try:
    GRACE = sample.picture_path(sample.GRACE)
    no_pictures = ""
except InputError as missing:
    no_pictures = str(missing)

MODEL = "model 1"
LANDMARKS = ((70.0, 80.0), (130.0, 80.0), (100.0, 110.0), (75.0, 140.0), (125.0, 140.0))
FACE = Detection(Box(40, 40, 120, 130), 0.9, LANDMARKS)
NOISE = np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
VECTOR = np.eye(4, dtype=np.float32)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A runtime folder, as systemd gives one."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def serve(closing, tmp_path, folder):
    """A socket whose daemon sees one face again and again."""

    def start(state_dir: Path = tmp_path, model: str | None = MODEL) -> Control:
        served = Control(state_dir, model, (lambda *_: VECTOR) if model else None)
        closing.callback(served.close)
        return served

    return start


@contextlib.contextmanager
def talking(folder):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(folder / NAME))
        yield connection, connection.makefile("rb")


def test_looks_come_from_the_frames_of_the_daemon(serve, tmp_path, monkeypatch, closing):
    monkeypatch.setattr(control, "EVERY_S", 0.0)
    found = itertools.cycle([[FACE], [], [FACE, FACE]])
    detect, stop = serve().watched(lambda _: next(found)), threading.Event()

    def loop() -> None:
        while not stop.wait(0.005):
            detect(NOISE)

    daemon = threading.Thread(target=loop)
    daemon.start()
    closing.callback(daemon.join)
    closing.callback(stop.set)
    asked = ask_for_looks(tmp_path, MODEL, 60, keep=True)
    seen = list(itertools.islice(asked, 6))
    asked.close()
    two = "there are 2 faces (125 px at 40,40, 125 px at 40,40), and whose is meant? Cut the others off"
    assert {look.refused for look in seen} == {None, "no face was found", two}
    used = [look.template for look in seen if look.refused is None]
    assert len(used) == 2
    assert (used[0].embedding == VECTOR).all()
    assert 0 < used[0].quality <= 1
    assert cv2.imdecode(np.frombuffer(used[0].picture, np.uint8), cv2.IMREAD_COLOR).ndim == 3


def test_only_the_user_and_the_group_may_connect(serve, folder):
    serve()
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_a_stranger_is_refused_even_where_the_file_lets_them_in(serve, folder):
    serve()
    folder.chmod(0o755)
    (folder / NAME).chmod(0o666)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); s.connect('control.sock'); "
        's.sendall(b\'{"ask": "state"}\\n\'); print(s.makefile().readline())'
    )
    asked = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=60, check=True
    )
    assert "only the service's user and group" in json.loads(asked.stdout)["problem"]


@pytest.mark.parametrize(
    "request_line", [b"hello\n", b'{"ask": "everything"}\n', b'{"ask": "looks", "seconds": 1e9}\n', b"x" * 10_000]
)
def test_what_is_no_request_is_told(serve, folder, request_line):
    serve()
    with talking(folder) as (connection, answer):
        connection.sendall(request_line)
        assert json.loads(answer.readline())["problem"]


def test_who_says_nothing_is_not_waited_for(serve, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_S", 0.1)
    serve()
    with talking(folder) as (connection, answer):
        connection.sendall(b'{"ask"')
        assert "no whole line came" in json.loads(answer.readline())["problem"]
    wait_until(lambda: is_daemon_there(tmp_path), "the next to be served")


def test_each_look_may_take_its_time_however_late_the_first_answer_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "ANSWER_S", 2.0)
    state = {"edgefer": "1", "state_dir": str(tmp_path), "model": MODEL}
    folder.mkdir()

    def daemon() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            for late_s, line in ((1.1, state), (1.1, {"refused": "no face"}), (0.0, {"done": True})):
                time.sleep(late_s)
                connection.sendall(json.dumps(line).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / NAME))
        listening.listen()
        hand = threading.Thread(target=daemon)
        hand.start()
        looks = list(ask_for_looks(tmp_path, MODEL, 1.0, keep=False))
        hand.join()
    assert [look.refused for look in looks] == ["no face"]


def test_one_person_is_looked_at_at_a_time(serve, folder):
    serve()
    with talking(folder) as (first, answer):
        first.sendall(b'{"ask": "looks", "seconds": 60}\n')
        assert json.loads(answer.readline())["problem"] is None
        with talking(folder) as (second, refusal):
            second.sendall(b'{"ask": "looks"}\n')
            assert "already" in json.loads(refusal.readline())["problem"]


def test_a_camera_that_gives_nothing_is_told(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "SILENCE_S", 0.05)
    serve()
    seen = list(ask_for_looks(tmp_path, MODEL, 0.3, keep=False))
    assert seen
    assert {look.refused for look in seen} == {"the daemon's camera gives no frame"}
    with pytest.raises(CameraError, match="gives no frame: its health"):
        enroll(Settings(state_dir=tmp_path), "Ada", seen)


def test_a_daemon_with_another_model_or_none_is_told(serve, tmp_path):
    for model, told in (("model 2", r"model 2, this command with model 1.*EDGEFER_IDENTITY__MODEL"), (None, "ENABLED")):
        served = serve(model=model)
        with pytest.raises(InputError, match=told):
            ask_for_looks(tmp_path, MODEL, 1, keep=False)
        served.close()


def test_a_daemon_with_another_gallery_is_not_meant(serve, tmp_path, caplog):
    serve(tmp_path / "other")
    assert ask_for_looks(tmp_path, MODEL, 1, keep=False) is None
    assert f"EDGEFER_STATE_DIR={tmp_path / 'other'}" in caplog.text


def test_where_no_daemon_runs_nobody_answers(folder, tmp_path):
    assert not is_daemon_there(tmp_path)


def test_a_killed_daemons_socket_is_taken_over_and_a_living_ones_is_not(serve, folder, tmp_path):
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / NAME))
    first = serve()
    assert is_daemon_there(tmp_path)
    serve().close()  # a second daemon goes without, and leaves the first one's alone
    assert is_daemon_there(tmp_path)
    first.close()
    assert not (folder / NAME).exists()


def test_a_socket_that_cannot_be_made_is_told_with_its_reason(serve, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / ("x" * 110)))
    serve()
    assert "path too long" in caplog.text


def test_the_socket_is_where_systemd_or_the_session_says(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert socket_paths() == [Path("/run/user/1000/edgefer") / NAME, Path("/run/edgefer") / NAME]
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/edgefer:/run/other")
    assert socket_paths() == [Path("/run/edgefer") / NAME]
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert socket_paths() == [Path("/run/edgefer") / NAME]


@pytest.mark.skipif(bool(no_pictures), reason=no_pictures)
def test_enrolled_renamed_and_removed_while_the_daemon_runs(edgefer, mosquitto, subscribe, tmp_path, closing):
    """The daemon holds the camera; a person is enrolled through it, renamed and removed, and presence follows."""
    film = tmp_path / "grace.avi"
    part = sample.GRACE.part
    left, top = int(part.x), int(part.y)
    picture = cv2.imread(str(GRACE))[top : top + int(part.height), left : left + int(part.width)]
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 5, (picture.shape[1], picture.shape[0]))
    for _ in range(20):
        writer.write(picture)
    writer.release()
    variables = {
        **mosquitto.variables,
        "EDGEFER_CAMERA": f"file://{film}?realtime=1&loop=1",
        "EDGEFER_DEVICE": "hall-pi",
    }
    watcher = subscribe(mosquitto)
    log = (tmp_path / "log").open("wb")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "edgefer", "run"],
        env=os.environ | {"EDGEFER_STATE_DIR": str(tmp_path / "state")} | variables,
        cwd=tmp_path,
        stdout=log,
        stderr=log,
    )
    closing.callback(log.close)
    closing.callback(daemon.wait)
    closing.callback(daemon.kill)

    def present() -> tuple[list[str], int]:
        states = watcher.payloads("/presence")
        return (states[-1]["known"], states[-1]["unknown_count"]) if states else ([], 0)

    wait_until(lambda: present() == ([], 1), "a stranger in view")
    done = edgefer("enroll", "Grace", "--camera", "--seconds", "1.5", "--keep-images", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Grace: " in done.stdout
    wait_until(lambda: present() == (["Grace"], 0), "the daemon to know her")
    assert edgefer("people", "rename", "Grace", "Admiral", **variables).returncode == 0
    wait_until(lambda: present() == (["Admiral"], 0), "her new name")
    done = edgefer("people", "remove", "Admiral", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: present() == ([], 1), "a stranger again")
    left_over = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert b"Admiral" not in left_over
    assert b"Grace" not in left_over
    # A gallery that is damaged while the daemon runs is told on health, and her model keeps running.
    for path in (tmp_path / "state").glob("gallery.sqlite3*"):
        path.unlink()
    (tmp_path / "state" / "gallery.sqlite3").write_bytes(b"no database" * 100)

    def problems() -> list[str]:
        told = [problem["part"] for health in watcher.payloads("/health")[-1:] for problem in health["problems"]]
        return [part for part in told if part != "machine"]  # the machine may have its own

    wait_until(lambda: problems() == ["gallery"], "the damage to be told")
    shutil.rmtree(tmp_path / "state")
    wait_until(lambda: problems() == [], "the damage to be mended")
    daemon.terminate()
    assert daemon.wait(30) == 0
