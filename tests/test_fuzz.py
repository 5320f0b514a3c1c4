"""Whatever a file or a variable holds: a result, or one clear error; no crash, no hang, no line that isn't ours."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from brokers import PATIENCE_S, Broker, wait_until
from daemons import Daemon
from examples import face_event
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_models import CARD, TINY

from edgefer import control
from edgefer.cameras import CameraUri, parse_uri
from edgefer.errors import CameraError, InputError, ModelError, SettingsError, UsageError
from edgefer.escape import SafeFormatter, escape
from edgefer.outbox import Outbox
from edgefer.pictures import read_picture
from edgefer.settings import Settings, load_settings, show, variables
from edgefer.store import FILE, Store
from edgefer.vision.card import ModelCard, read_card
from edgefer.vision.model import RUNTIME, Model

# Bounded in number, not in time: a busy machine isn't what is tested.
bounded = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
few = settings(bounded, max_examples=30)
very_few = settings(bounded, max_examples=8)


@st.composite
def damaged(draw, content: bytes, keep: int = 0) -> bytes:
    """The content, cut off somewhere or with some bytes changed, but for the first `keep` bytes."""
    changed = bytearray(content)
    for place in draw(st.lists(st.integers(keep, len(content) - 1), max_size=8)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.one_of(st.just(len(content)), st.integers(keep, len(content))))])


def outcome(action: Callable[[], object], *errors: type[Exception]) -> object:
    """What an action gives, or the error of one of these kinds that it ends in."""
    try:
        return action()
    except errors as error:
        return error


def is_one_line(message: str) -> None:
    """A clear error says something, on one line, and is no book."""
    assert 0 < len(message) < 2000
    assert escape(message).isprintable()


# Settings

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)
secret_names = {variable.name for variable in variables() if variable.secret}


@few
@given(
    st.dictionaries(
        st.sampled_from([variable.name for variable in variables()]),
        st.one_of(
            text, st.sampled_from(["", "0", "-1", "1e999", "nan", "true", "{}", "[]", "null", "a/b", "x" * 5000])
        ),
        max_size=4,
    )
)
@example({"EDGEFER_CAMERA": "x" * 5000, "EDGEFER_MQTT__PREFIX": "#"})
@example({"EDGEFER_MQTT__PASSWORD_FILE": "/dev/zero", "EDGEFER_MQTT__USERNAME": "ada"})
def test_settings(values):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in values.items():
            environment.setenv(name, value)
        found = outcome(load_settings, SettingsError)
    if isinstance(found, Settings):
        for variable in variables():
            show(getattr(found, variable.path[0]))
    else:
        assert "problem(s) with the settings" in str(found)
        told = " ".join(value for name, value in values.items() if name not in secret_names)  # these may be repeated
        secrets = [values[name] for name in secret_names & values.keys() if len(values[name]) > 8]
        assert not [secret for secret in secrets if secret in str(found) and secret not in told]


@few
@given(st.one_of(st.binary(max_size=2000), text.map(lambda value: f"EDGEFER_DEVICE={value}\n".encode())))
@example(b"EDGEFER_DEVICE=" + b"x" * 2**20)
def test_a_dotenv(content):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as place_of:
        place_of.chdir(name)
        Path(".env").write_bytes(content)
        assert isinstance(outcome(load_settings, SettingsError), (Settings, SettingsError))


@bounded
@given(st.one_of(text, text.map("rtsp://{}".format), text.map("file:///{}".format), text.map("gstreamer://{}".format)))
def test_a_cameras_uri(value):
    found = outcome(lambda: parse_uri(value), UsageError, CameraError)
    if isinstance(found, CameraUri):
        assert escape(found.public) == found.public
    else:
        is_one_line(str(found))


# Cards and models

card_text = CARD.to_json()
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=5,
)


@bounded
@given(
    st.one_of(
        st.binary(max_size=500),
        damaged(card_text.encode()),
        st.builds(
            lambda name, value: json.dumps(json.loads(card_text) | {name: value}).encode(),
            st.sampled_from([*json.loads(card_text), "another", "metrics", "training", "thresholds", "temperature"]),
            json_values,
        ),
    )
)
@example(b"[" * 100_000)
@example(b" " * 2**21)
def test_a_models_card(content):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "card.json"
        path.write_bytes(content)
        found = outcome(lambda: read_card(path), ModelError)
    assert isinstance(found, ModelCard) or str(found).startswith(f"{path}: ")


model = (TINY / "int8.tflite").read_bytes()


def place(folder: Path, content: bytes, digest: str) -> Path:
    path = folder / "tiny.tflite"
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps(json.loads(card_text) | {"sha256": digest}))
    return path


@few
@given(damaged(model))
def test_a_damaged_model_never_reaches_the_runtime_where_its_card_has_a_digest(content):
    with tempfile.TemporaryDirectory() as name:
        path = place(Path(name), content, hashlib.sha256(model).hexdigest())
        if content == model:
            Model(path, "emotion")
        else:
            with pytest.raises(ModelError) as error:
                Model(path, "emotion")
            is_one_line(str(error.value))


@pytest.mark.skipif(not RUNTIME, reason="no TFLite runtime is installed")
@very_few
@given(damaged(model, keep=8))
@example(model[: len(model) // 2])
def test_a_damaged_model_that_no_digest_vouches_for_ends_in_an_error_and_not_in_a_crash(content):
    with tempfile.TemporaryDirectory() as name:
        path = place(Path(name), content, "")
        found = outcome(lambda: Model(path, "emotion"), ModelError)
    assert isinstance(found, Model) or str(found).startswith(f"{path}: ")


# Pictures

picture = np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
encoded = {suffix: cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".png", ".jpg", ".webp", ".bmp")}


@bounded
@given(st.one_of(st.binary(max_size=300), *(damaged(content) for content in encoded.values())))
@example(encoded[".png"][:16] + b"\x7f\xff\xff\xff" * 2 + encoded[".png"][24:])
def test_a_picture(content):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "picture.png"
        path.write_bytes(content)
        found = outcome(lambda: read_picture(path), InputError)
    if isinstance(found, np.ndarray):
        assert found.ndim == 3
        assert found.size <= 3 * 2**26
    else:
        is_one_line(str(found))


def test_a_small_file_cannot_claim_a_picture_of_any_size(tmp_path):
    # 10,000 x 10,000 pixels of black are 100 kB as a PNG, and 300 MB in memory.
    path = tmp_path / "bomb.png"
    assert cv2.imwrite(str(path), np.zeros((10_000, 10_000), np.uint8))
    with pytest.raises(InputError, match="larger than what can be read; make it smaller"):
        read_picture(path)


# What waits on disk


def stored() -> bytes:
    """A file with some waiting events."""
    with tempfile.TemporaryDirectory() as name:
        outbox = Outbox(60, store=Store(Path(name)))
        for seq in range(5):
            outbox.put(face_event(seq), time.monotonic())
        assert outbox.close() == 0
        return (Path(name) / FILE).read_bytes()


waiting_file = stored()


@few
@given(st.one_of(st.binary(max_size=300), damaged(waiting_file)))
@example(waiting_file[:18] + b"\x03" + waiting_file[19:])  # SQLite calls it read-only
def test_the_file_of_waiting_events(content):
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / FILE
        file.write_bytes(content)
        outbox = Outbox(60, store=Store(Path(name)))
        found = outbox.counts
        # A damaged time can be an old one.
        assert 0 <= found.waiting + found.expired <= 5
        outbox.put(face_event(9), time.monotonic())
        assert outbox.counts == dataclasses.replace(found, waiting=found.waiting + 1)
        assert outbox.close() == 0, outbox.problem
        again = Outbox(60, store=Store(Path(name)))
        assert again.counts.waiting == found.waiting + 1
        again.close()


# The control socket


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon that runs through all of it."""
    if not RUNTIME:
        pytest.skip("no TFLite runtime is installed")
    folder = tmp_path_factory.mktemp("daemon")
    running = Daemon(folder, Broker(folder), EDGEFER_SINKS="stdout", EDGEFER_CAMERA="synthetic://?fps=2")
    try:
        wait_until((folder / "run" / control.NAME).exists, "the control socket")
        running.socket = str(folder / "run" / control.NAME)
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.told
        assert "this is a defect" not in running.told
    finally:
        running.process.kill()
        running.process.wait()


def talk(daemon: Daemon, request: bytes) -> dict | None:
    """What it answers to somebody who says this and no more; None where it is nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(daemon.socket)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").readline()
        return json.loads(answer) if answer else None


asked = {"schema": "edgefer.control/1", "ask": "state", "seconds": 5.0, "pictures": False}
requests = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda line: line.replace(b"\n", b"") + b"\n"),
    damaged(json.dumps(asked).encode() + b"\n"),
    json_values.map(lambda value: json.dumps(value).encode() + b"\n"),
    st.builds(
        lambda name, value: json.dumps(asked | {name: value}).encode() + b"\n",
        st.sampled_from([*asked, "another"]),
        json_values,
    ),
    st.integers(control.MAX_REQUEST - 1, 300_000).map(lambda length: b"x" * length),
)


@bounded
@given(requests)
@example(b"[" * 4000 + b"\n")
@example(b'{"ask": "looks", "seconds": 1e999}\n')
@example(b'{"ask": "looks", "seconds": 60, "pictures": true}\n')
@example(b'{"ask": "state"}' + b" " * control.MAX_REQUEST + b"\n")
def test_a_line_on_the_control_socket(daemon, line):
    told = talk(daemon, line)
    assert told is not None
    assert told["schema"] == "edgefer.control/1"
    if told["problem"] is not None:
        is_one_line(told["problem"])
        assert "\n" not in told["problem"]
    else:
        assert json.loads(line.partition(b"\n")[0])["ask"] in ("state", "looks")
    assert talk(daemon, b'{"ask": "state"}\n')["problem"] is None


@few
@given(requests)
def test_who_hangs_up_on_the_control_socket(daemon, line):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(daemon.socket)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)
    assert talk(daemon, b'{"ask": "state"}\n')["problem"] is None


# What is shown


@bounded
@given(st.text())
@example("\x1b[2J\x9b31m\u202eevil\u2028\r\n\udc80")
def test_nothing_from_outside_moves_the_cursor_or_makes_a_line_of_its_own(value):
    record = logging.LogRecord("edgefer", logging.WARNING, "", 0, "%s: no such file", (value,), None)
    line = SafeFormatter("%(levelname)s %(message)s").format(record)
    assert line.splitlines() == [line]
    assert not set(line) & set(map(chr, [*range(32), *range(127, 160), 0x202E]))
    line.encode()


def test_a_picture_with_an_odd_name_is_analysed_and_named(edgefer, tmp_path):
    name = os.fsencode(tmp_path) + b"/\x1b[2Jred\xff\n.png"
    with open(name, "wb") as file:  # noqa: PTH123  # pathlib takes no bytes
        file.write(encoded[".png"])
    for options in ([], ["--json"]):
        done = edgefer("analyze", name, *options)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        assert "\x1b" not in done.stdout
    assert json.loads(done.stdout)["file"].endswith("/\x1b[2Jred\\udcff\n.png")
    done = edgefer("analyze", name + b"-gone.png")
    assert done.returncode == 66
    assert "\x1b" not in done.stderr
