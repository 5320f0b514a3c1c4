"""The command line: help, settings, doctor, and what it says of mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_models import edit_card, place

from edgefer import __version__
from edgefer.__main__ import main
from edgefer.control import Control
from edgefer.gallery import Gallery
from edgefer.problems import KINDS
from edgefer.store import Store

ROOT = Path(__file__).parent.parent
MACHINE = ["store", "clock", "temperature", "memory", "disk"]


def test_help_names_every_command_with_an_example(edgefer):
    done = edgefer("--help")
    assert done.returncode == 0
    for command in ("run", "demo", "analyze", "enroll", "people", "doctor", "bench", "settings"):
        assert re.search(rf"^    {command} +\w", done.stdout, re.MULTILINE)
    assert "EDGEFER_MQTT__HOST=broker.local edgefer run" in done.stdout
    assert edgefer("--version").stdout == f"edgefer {__version__}\n"


def test_no_command_is_a_usage_error(edgefer):
    done = edgefer()
    assert done.returncode == 64
    assert "COMMAND" in done.stderr


@pytest.mark.parametrize("seconds", ["abc", "0", "61", "nan"])
def test_seconds_that_are_none_are_told(edgefer, seconds):
    done = edgefer("enroll", "Ada", "--camera", "--seconds", seconds)
    assert done.returncode == 64
    assert f"--seconds: '{seconds}' is no number of seconds from 0 to 60\n" in done.stderr


def test_settings_show_values_defaults_and_no_secret(edgefer):
    done = edgefer(
        "settings", EDGEFER_MQTT__HOST="broker.local", EDGEFER_MQTT__USERNAME="u", EDGEFER_MQTT__PASSWORD="topsecret"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "EDGEFER_MQTT__HOST=broker.local   (default: localhost)" in done.stdout
    assert "EDGEFER_MQTT__PASSWORD=**********\n" in done.stdout
    assert "EDGEFER_EVENTS__INTERVAL_S=5\n" in done.stdout
    assert "topsecret" not in done.stdout


@pytest.mark.parametrize(
    ("camera", "shown"),
    [
        ("rtsp://ada:topsecret@door/stream", "rtsp://***@door/stream"),
        ("ada:topsecret@door/stream", "***@door/stream"),
        ("http://door/cgi?user=ada&password=topsecret", "http://door/cgi?***"),
        ("rtsp://door/live/user=ada&password=topsecret", "rtsp://door/live/user=***"),
        ("gstreamer://rtspsrc location=rtsp://door user-pw=topsecret ! decodebin", "gstreamer://rtspsrc location=***"),
        ("rtspsrc user-pw=topsecret location=rtsp://door/x ! decodebin", "rtspsrc user-pw=***"),
        ("ada:topsecret@door/r=http://x", "***@door/r=***"),
        ("file:///clips/ada@home.mp4", "file:///clips/ada@home.mp4"),
        ("v4l2:///dev/video0?format=MJPG", "v4l2:///dev/video0?format=MJPG"),
        ("file:///clips/a%20b.mp4?loop=1", "file:///clips/a%20b.mp4?loop=1"),
    ],
)
def test_settings_show_no_password_in_an_address(edgefer, camera, shown):
    done = edgefer("settings", EDGEFER_CAMERA=camera, EDGEFER_MQTT__HOST="mqtt://u:topsecret@h")
    assert f"EDGEFER_CAMERA={shown}  " in done.stdout
    assert "topsecret" not in done.stdout + done.stderr
    assert "EDGEFER_MQTT__HOST: the name or address alone" in done.stderr


def test_settings_are_listed_even_when_some_are_wrong(edgefer):
    done = edgefer("settings", EDGEFER_MQTT__PORT="many")
    assert done.returncode == 78
    assert "EDGEFER_MQTT__PORT=many\n" in done.stdout
    assert "EDGEFER_THREADS=1\n" in done.stdout
    assert "EDGEFER_MQTT__PORT=many: " in done.stderr


def test_doctor_tells_of_each_part_and_its_fix(edgefer):
    done = edgefer("doctor", EDGEFER_CAMERA="synthetic://", EDGEFER_MQTT__PORT="1", EDGEFER_EMOTION__MODEL="smile")
    told = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert list(told) == ["runtime", "models", "camera", "broker", "permissions", "people", *MACHINE]
    assert told["runtime"].startswith("ok")
    assert told["models"].startswith("FAIL")
    assert "no model named 'smile'" in told["models"]
    assert told["camera"].startswith("ok")
    assert "640x480" in told["camera"]
    assert told["broker"].startswith("FAIL")
    assert "EDGEFER_MQTT__HOST" in told["broker"]
    assert done.returncode == 66  # that of the first failure


def test_doctor_tells_of_a_camera_that_is_not_there(edgefer):
    done = edgefer("doctor", EDGEFER_CAMERA="/dev/video97", EDGEFER_MQTT__PORT="1")
    assert re.search(r"^FAIL camera +.*/dev/video97", done.stdout, re.MULTILINE)
    assert done.returncode == 74


def test_a_camera_that_the_daemon_holds_is_no_failure(edgefer, tmp_path, monkeypatch, closing):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    busy = {
        "EDGEFER_CAMERA": "picamera2://0",
        "EDGEFER_SINKS": "stdout",
        "PYTHONPATH": str(Path(__file__).parent / "stand_in"),
        "STAND_IN": "busy",
    }
    done = edgefer("doctor", **busy)
    assert re.search(r"^FAIL camera +.*does another program use it", done.stdout, re.MULTILINE)
    assert done.returncode == 74
    closing.callback(Control(tmp_path / "state", None, None).close)
    done = edgefer("doctor", **busy)
    assert re.search(r"^note camera +the daemon runs, and holds the camera most likely", done.stdout, re.MULTILINE)
    assert done.returncode == 0
    done = edgefer("doctor", EDGEFER_CAMERA="/dev/video97", EDGEFER_SINKS="stdout")
    assert re.search(r"^FAIL camera +there is no /dev/video97", done.stdout, re.MULTILINE)
    assert done.returncode == 74


def test_doctor_notes_a_black_picture_and_says_what_to_do(edgefer, tmp_path):
    (tmp_path / "fault").write_text("dark")
    done = edgefer("doctor", EDGEFER_CAMERA=f"faulty://{tmp_path}/fault")
    (line,) = (line for line in done.stdout.splitlines() if " camera " in line)
    assert line.startswith("note camera")
    assert "Take the cover off the lens" in line


def test_doctor_notes_a_gallery_that_the_daemon_outlasts(edgefer, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "gallery.sqlite3").write_bytes(b"damaged" * 100)
    done = edgefer("doctor", "--offline")
    assert re.search(r"^note people +.*gallery\.sqlite3: the file is damaged", done.stdout, re.MULTILINE)
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_doctor_notes_a_gallery_that_its_folders_owner_cant_use(edgefer, tmp_path):
    """As root copies one into the service's folder: root sees no difference."""
    (tmp_path / "state").mkdir()
    Gallery(tmp_path / "state", "any", create=True).close()
    assert "note people" not in edgefer("doctor", "--offline").stdout
    os.chown(tmp_path / "state/gallery.sqlite3", 12345, 12345)
    assert "note people" not in edgefer("doctor", "--offline").stdout, "root may use what is another's"
    os.chown(tmp_path / "state/gallery.sqlite3", 0, 0)
    os.chown(tmp_path / "state", 12345, 12345)
    done = edgefer("doctor", "--offline")
    assert re.search(
        r"^note people +.*gallery\.sqlite3: it belongs to root, and its folder to user 12345", done.stdout, re.MULTILINE
    )
    (mend,) = re.findall("`(sudo chown .*)`", done.stdout)
    shell(mend.removeprefix("sudo "), tmp_path)
    assert "note people" not in edgefer("doctor", "--offline").stdout


def test_a_folder_that_nobody_may_enter_ends_in_no_traceback(monkeypatch, capsys):
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/root/x")

    monkeypatch.setattr(Store, "set_aside", property(forbidden))
    assert main(["doctor", "--offline"]) == 0
    assert re.search(r"^note store +.*may not look into it$", capsys.readouterr().out, re.MULTILINE)


def test_a_defect_is_told_as_one(monkeypatch, capsys):
    monkeypatch.setattr("edgefer.__main__._settings", lambda: 1 / 0)
    assert main(["doctor"]) == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert told.endswith("edgefer: a defect of edgefer's own: please report what stands above\n")


def test_a_closed_output_is_no_defect(tmp_path):
    for command in ("people list", "settings", f"analyze {ROOT}/README.md"):
        done = shell(f"EDGEFER_STATE_DIR={tmp_path} {sys.executable} -m edgefer {command} >&-", tmp_path)
        assert done.returncode == (66 if "analyze" in command else 0)
        assert "Traceback" not in done.stderr


def test_a_name_with_a_space_wants_quotes(edgefer):
    done = edgefer("enroll", "Ada", "Lovelace", "--images", "x.jpg")
    assert done.returncode == 64
    assert "unrecognized arguments: Lovelace; what holds a space is put in quotes" in done.stderr


def test_analyze_wants_files(edgefer):
    done = edgefer("analyze", "rtsp://me:secret@host/x")
    assert done.returncode == 66
    assert "rtsp://… is no file: cameras are for `edgefer run`" in done.stderr
    assert "secret" not in done.stderr


def test_a_home_of_nobody_is_a_wrong_setting(edgefer):
    done = edgefer("doctor", "--offline", EDGEFER_STATE_DIR="~nobodyofthisname/state")
    assert done.returncode == 78
    assert "EDGEFER_STATE_DIR" in done.stderr
    assert "nobody here has the home ~nobodyofthisname" in done.stderr


def test_a_models_name_may_be_anything(edgefer):
    done = edgefer("doctor", "--offline", EDGEFER_EMOTION__MODEL="x" * 300)
    assert done.returncode == 66
    assert "there is no model named 'xxx" in done.stdout


def test_doctor_shows_a_card_without_its_control_characters(edgefer, tmp_path):
    card = place(tmp_path)
    edit_card(card, version="\x1b[31mred")
    done = edgefer("doctor", "--offline", EDGEFER_EMOTION__MODEL=str(card))
    assert r"\x1b[31mred" in done.stdout


def test_doctor_notes_waiting_events_that_cannot_be_used(edgefer, tmp_path):
    aside = tmp_path / "state" / "outbox.sqlite3.aside-20261121-112835-1"
    aside.parent.mkdir(exist_ok=True)
    aside.touch()
    done = edgefer("doctor", "--offline")
    assert f"note store        {aside}: it couldn't be used" in done.stdout
    assert done.returncode == 0


def test_doctor_explains_every_problem_with_its_fix(edgefer):
    done = edgefer("doctor", "--explain")
    assert done.returncode == 0
    for known in KINDS:
        assert f"{known.part}/{known.code} ({known.status}): {known.meaning}\n    {known.fix}\n" in done.stdout


def test_doctor_offline_asks_of_the_installation_alone(edgefer):
    done = edgefer("doctor", "--offline", EDGEFER_CAMERA="/dev/video97", EDGEFER_MQTT__PORT="1")
    told = [line.split()[1] for line in done.stdout.splitlines()]
    assert told == ["runtime", "models", "permissions", "people", *MACHINE]
    assert done.returncode == 0
    assert edgefer("doctor", "--offline", EDGEFER_EMOTION__MODEL="smile").returncode == 66


def test_doctor_names_the_weights_licence(edgefer):
    assert "non-commercial research" in edgefer("doctor", EDGEFER_CAMERA="synthetic://").stdout


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, shell=True, capture_output=True, text=True, cwd=folder, timeout=60, check=False)


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = shell(f"{sys.executable} -m edgefer settings | head -1", tmp_path)
    assert done.stdout.startswith("EDGEFER_DEVICE=")
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["settings", "people export"])
def test_an_output_that_cant_be_written_is_told(tmp_path, command):
    """As on a full disk: /dev/full is one."""
    done = shell(f"EDGEFER_STATE_DIR={tmp_path} {sys.executable} -m edgefer {command} > /dev/full", tmp_path)
    assert done.stderr == "edgefer: standard output can't be written: No space left on device\n"
    assert done.returncode == 66


@pytest.mark.parametrize(
    ("variables", "code", "told"),
    [
        ({"EDGEFER_DEVICE": "a/b", "EDGEFER_MQTT__PORT": "0"}, 78, ["EDGEFER_DEVICE=a/b", "EDGEFER_MQTT__PORT=0"]),
        (
            {"EDGEFER_DETECTOR__MODEL": "nearest"},
            66,
            ["EDGEFER_DETECTOR__MODEL", "no model named 'nearest'", "far, "],
        ),
        (
            {"EDGEFER_IDENTITY__MODEL": "/nowhere/x.tflite"},
            66,
            ["EDGEFER_IDENTITY__MODEL", "/nowhere/x.json"],
        ),
        ({"EDGEFER_CAMERA": "ftp://host/x"}, 78, ["EDGEFER_CAMERA", "ftp://", "v4l2://"]),
        ({"EDGEFER_CAMERA": "synthetic://?color=red"}, 78, ["EDGEFER_CAMERA", "color", "fps"]),
        ({"EDGEFER_SINKS": "mqtt,mqtt"}, 78, ["EDGEFER_SINKS=mqtt,mqtt", "each once"]),
        ({"EDGEFER_SINKS": "kafka"}, 78, ["EDGEFER_SINKS", "mqtt, stdout"]),
        ({"EDGEFER_CAMERA": "missing.mp4"}, 66, ["missing.mp4 isn't there\n"]),
        ({"EDGEFER_CAMERA": "usb"}, 66, ["usb isn't there; a camera is auto, 0, /dev/video0 or picamera2://0"]),
        ({"EDGEFER_CAMERA": "rtsp:/host/x"}, 78, ["EDGEFER_CAMERA: the camera is no file", "rtsp://user"]),
        ({"EDGEFER_CAMERA": "me:secret@host/x"}, 78, ["EDGEFER_CAMERA: the camera is no file", "rtsp://user"]),
    ],
)
def test_run_says_what_is_wrong_and_ends(edgefer, variables, code, told):
    done = edgefer("run", **variables)
    assert done.returncode == code
    for part in told:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
