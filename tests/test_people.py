"""`edgefer enroll` and `edgefer people`: what they do, what they say, and what they refuse."""

import json
import math
import os
import pty
import shutil
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from itertools import chain, combinations, permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from brokers import free_port, wait_until
from examples import face_event
from paho.mqtt import publish
from test_models import place

from edgefer import service
from edgefer.__main__ import main
from edgefer.cameras import sample
from edgefer.enroll import enroll
from edgefer.errors import InputError
from edgefer.gallery import Gallery, Newcomer, Template, model_id, open_gallery
from edgefer.looks import Look, only_good_face
from edgefer.messages import Box, Detection
from edgefer.outbox import Outbox
from edgefer.settings import load_settings
from edgefer.store import Store
from edgefer.vision.card import Crop
from edgefer.vision.embedder import units
from edgefer.vision.model import find_card
from edgefer.vision.quality import rate

try:
    GRACE = sample.picture_path(sample.GRACE)
    no_pictures = ""
except InputError as missing:
    no_pictures = str(missing)
needs_pictures = pytest.mark.skipif(bool(no_pictures), reason=no_pictures)
MODEL = model_id(find_card("identity-112"))


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A state folder of the test's own, and no broker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("EDGEFER_SINKS", "stdout")
    return tmp_path / "state"


@pytest.fixture
def edgefer(capsys):
    """Runs a command in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def gallery(**options) -> closing:
    return closing(open_gallery(load_settings(), find_card("identity-112"), create=True, **options))


def faces(count: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 128)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(faces: np.ndarray, person: np.ndarray, folder: Path) -> float:
    """How near one of these faces comes to somebody who is enrolled by others, as a gallery says."""
    with closing(Gallery(folder, "another", create=True)) as alone:
        alone.add("Somebody", [Template(face, 1.0) for face in person])
        found = max(alone.match(face).similarity for face in faces)
        alone.remove("Somebody")
    return found


def enrolled() -> dict[str, int]:
    with gallery() as opened:
        return {person.name: person.templates for person in opened.people()}


def noisy(image: np.ndarray) -> np.ndarray:
    """As by a sensor in the dusk."""
    noise = np.random.default_rng(1).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def portrait(actor: sample.Actor) -> np.ndarray:
    """The part of a picture that the sample shows: one person."""
    part: Box = actor.part
    left, top = int(part.x), int(part.y)
    return cv2.imread(str(sample.picture_path(actor)))[top : top + int(part.height), left : left + int(part.width)]


def test_a_tilted_head_is_refused():
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    points = ((80, 80), (120, 80), (100, 100), (85, 120), (115, 120))
    face = Detection(Box(50, 50, 100, 100), 0.6, points)
    assert only_good_face(image, [face])[0] is face
    leaning = replace(face, landmarks=((80, 70), (120, 90), *points[2:]))
    with pytest.raises(InputError, match=r"tilted \(by 27 degrees"):
        only_good_face(image, [leaning])


def test_a_profile_is_refused():
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    eyes, mouth = ((80, 80), (120, 80)), ((85, 120), (115, 120))
    for nose, refused in ((105, False), (82, True), (118, True)):
        face = Detection(Box(50, 50, 100, 100), 0.6, (*eyes, (nose, 100), *mouth))
        with pytest.raises(InputError, match="the face is turned away") if refused else nullcontext():
            only_good_face(image, [face])


def test_a_face_that_the_edge_cuts_off_is_refused():
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    face = Detection(Box(50, 50, 100, 100), 0.6, ((80, 80), (120, 80), (100, 100), (85, 120), (115, 120)))
    assert only_good_face(image, [face])[0] is face
    for rows, columns in ((slice(70, 200), ...), (slice(115), ...), (..., slice(95, 200)), (..., slice(105))):
        cut = image[rows] if columns is ... else image[:, columns]
        down, right = (0 if of is ... else of.start or 0 for of in (rows, columns))
        seen = replace(face, landmarks=tuple((x - right, y - down) for x, y in face.landmarks))
        with pytest.raises(InputError, match="the picture's edge cuts the face off"):
            only_good_face(cut, [seen])
        assert rate(cut, seen).frontal < rate(image, face).frontal
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    assert rate(gray, face).sharpness == pytest.approx(rate(image, face).sharpness, abs=0.01), "an infrared camera's"


@needs_pictures
class TestEnroll:
    def test_no_picture_is_kept_unless_asked_for(self, edgefer, state):
        assert edgefer("enroll", "Grace", "--images", GRACE)[0] == 0
        with gallery() as opened:
            assert [template.picture for template in opened.templates("Grace")] == [None]
        assert [path.name for path in state.iterdir()] == ["gallery.sqlite3"]
        again = edgefer("enroll", "Grace", "--images", GRACE, "--keep-images")[1].splitlines()[-1]
        assert again == "Grace: 0 face(s) enrolled, 1 there already"
        with gallery() as opened:
            assert [template.picture is not None for template in opened.templates("Grace")] == [True]

    def test_kept_pictures_teach_a_later_model(self, edgefer, state):
        assert edgefer("enroll", "Grace", "--images", GRACE, "--keep-images")[0] == 0
        with gallery() as opened:
            (template,) = opened.templates("Grace")
        with closing(Gallery(state, "an older model", create=True)) as older:
            older.add("Ada", [Template(faces(1)[0], 1.0)])
            older.add("Eve", [Template(faces(1)[0], 1.0, picture=template.picture)])
            older.add("Ida", [Template(faces(1)[0], 1.0, picture=b"damaged")])
        assert edgefer("people", "list")[1].splitlines()[1].split("  ")[-1] == "1 face(s) of another model"
        code, told, _ = edgefer("people", "relearn")
        damaged = "Ida: refused: the kept picture can't be read any more: enrol another"
        assert (code, told.splitlines()) == (0, ["Eve: learned anew", damaged])
        with gallery() as opened:
            (anew,) = opened.templates("Eve")
            assert anew.picture == template.picture
            assert float(anew.embedding @ template.embedding) > 0.8
            left = {person.name: person.other_models for person in opened.people()}
            assert left == {"Ada": 1, "Eve": 0, "Grace": 0, "Ida": 1}

    def test_a_picture_of_somebody_else_is_noticed(self, edgefer, tmp_path):
        for number, light in enumerate((0.9, 1.0, 1.1)):
            cv2.imwrite(str(tmp_path / f"{number}.jpg"), cv2.convertScaleAbs(cv2.imread(str(GRACE)), alpha=light))
        assert edgefer("enroll", "Grace", "--images", tmp_path)[2] == ""
        cv2.imwrite(str(other := tmp_path / "other.png"), portrait(sample.COLLINS))
        code, _, told = edgefer("enroll", "Grace", "--images", other)
        assert (code, told.split(": not like")[0]) == (0, f"edgefer: {other}")

    def test_several_pictures_of_somebody_else_are_noticed_all(self):
        axes = np.eye(128, dtype=np.float32)
        ada, eve = ([units(axes[who] + 0.4 * axes[n]) for n in (10, 11, 12, 13)] for who in (0, 1))

        def told(faces: list[np.ndarray]) -> list[str]:
            looks = [Look(str(n), template=Template(face, 1.0)) for n, face in enumerate(faces)]
            return enroll(load_settings(), "Ada", looks).unlike

        assert told(ada[:2]) == []
        assert told(ada[2:]) == []
        assert told(eve) == ["0", "1", "2", "3"], "though each is like the mean of all by now"

    def test_the_same_person_under_two_names_is_noticed(self, edgefer):
        assert edgefer("enroll", "Grace", "--images", GRACE)[2] == ""
        code, told, warned = edgefer("enroll", "Admiral", "--images", GRACE)
        assert (code, told.splitlines()[-1]) == (0, "Admiral: 1 face(s) enrolled")
        assert "Admiral looks like Grace" in warned
        assert "similarity 1.00" in warned
        assert "people merge" in warned

    def test_whom_the_means_alone_show_to_be_alike_is_noticed(self):
        """Each face is 0.5 like the newcomer's, what the three share 0.71 (less 0.05, a tenth of their variance)."""
        axes = np.eye(128, dtype=np.float32)
        each = [Look(str(n), template=Template(0.5 * axes[0] + 0.75**0.5 * axes[n], 1.0)) for n in (1, 2, 3)]
        assert enroll(load_settings(), "Ada", each).alike is None
        alike = enroll(load_settings(), "Countess", [Look("4", template=Template(axes[0], 1.0))]).alike
        assert alike is not None
        assert (alike.name, alike.similarity) == ("Ada", pytest.approx(0.5**0.5 - 0.05, abs=1e-4))
        with gallery() as opened:
            opened.remove("Ada")
        alike = enroll(load_settings(), "Ada", each).alike
        assert alike is not None, "the other way round too"
        assert alike.name == "Countess"

    def test_who_is_ignored_is_never_named(self, edgefer):
        assert "never to be reported by name" in edgefer("enroll", "poster", "--ignore", "--images", GRACE)[1]
        warned = edgefer("enroll", "Grace", "--images", GRACE)[2]
        assert "one of the two is ignored" in warned
        assert "merge" not in warned
        assert edgefer("people", "remove", "Grace")[0] == 0
        line = json.loads(edgefer("analyze", GRACE, "--json")[1])
        identity = line["faces"][0]["identity"]
        assert (identity["status"], identity["name"]) == ("unknown", None)
        assert identity["similarity"] > 0.95
        assert "ignored" in edgefer("people", "list")[1]
        code, told, errors = edgefer("enroll", "poster", "--images", GRACE)
        assert (code, told, "poster is ignored" in errors) == (64, "", True), "nobody was looked at"

    def test_why_nothing_could_be_used_is_summed_up(self, edgefer, tmp_path):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name in "abc":
            cv2.imwrite(str(folder / f"{name}.png"), np.full((200, 200, 3), 90, np.uint8))
        whole = cv2.imread(str(GRACE))
        cv2.imwrite(str(folder / "tiny.png"), cv2.resize(whole, None, fx=0.15, fy=0.15, interpolation=cv2.INTER_AREA))
        (folder / "torn.jpg").write_bytes(GRACE.read_bytes()[:300])
        os.mkfifo(tmp_path / "pipe.jpg")
        code, told, errors = edgefer("enroll", "Grace", "--images", folder, tmp_path / "pipe.jpg")
        assert (code, told.count("refused")) == (66, 6)
        assert "pipe.jpg: refused: can't be read: it is no regular file" in told
        assert "3x no face was found" in errors
        assert "px large" in errors
        assert "not a picture" in errors
        assert enrolled() == {}

    @pytest.mark.parametrize(
        ("spoiled", "why"),
        [
            (lambda image: cv2.GaussianBlur(image, (0, 0), 7), "blurred (sharpness 0."),
            (lambda image: noisy(cv2.GaussianBlur(image, (0, 0), 7)), "blurred (sharpness 0."),
        ],
    )
    def test_what_would_look_like_anybody_is_refused(self, edgefer, spoiled, why):
        cv2.imwrite("spoiled.png", spoiled(cv2.imread(str(GRACE))))
        code, told, _ = edgefer("enroll", "Grace", "--images", "spoiled.png")
        assert (code, f"refused: the face is {why}" in told) == (66, True), told

    def test_noise_is_no_reason_to_refuse(self, edgefer):
        cv2.imwrite("noisy.png", noisy(cv2.imread(str(GRACE))))
        assert edgefer("enroll", "Grace", "--images", "noisy.png")[0] == 0

    @pytest.mark.parametrize(
        "name", ["O'Hara; DROP TABLE person", "../../etc", "Ælfgifu 李 🙂", "a" * 64, "-- --", "%s{0}"]
    )
    def test_odd_names_are_names(self, edgefer, name):
        assert edgefer("enroll", f"--images={GRACE}", "--", name)[0] == 0
        assert enrolled() == {name: 1}
        assert edgefer("people", "remove", "--", name)[0] == 0
        assert enrolled() == {}

    @pytest.mark.parametrize("name", ["x" * 300, "line\nbreak", "\udcff", " "])
    def test_what_is_no_name_is_refused_before_anything_is_looked_at(self, edgefer, name, state):
        code, _, errors = edgefer("enroll", name, "--images", "nowhere")
        assert (code, "printable characters" in errors) == (64, True)
        assert not state.exists()

    def test_a_damaged_gallery_is_kept_aside(self, edgefer, state):
        state.mkdir()
        (state / "gallery.sqlite3").write_bytes(b"damaged" * 100)
        assert edgefer("people", "list")[0] == 66
        cv2.imwrite("nobody.png", np.full((200, 200, 3), 90, np.uint8))
        assert edgefer("enroll", "Grace", "--images", "nobody.png")[0] == 66
        assert [path.name for path in state.iterdir()] == ["gallery.sqlite3"], "there was nothing to write"
        assert edgefer("enroll", "Grace", "--images", GRACE)[0] == 0
        (aside,) = state.glob("gallery.damaged-*")
        assert aside.read_bytes() == b"damaged" * 100
        assert enrolled() == {"Grace": 1}
        code, told, errors = edgefer("people", "remove", "Grace")
        assert (code, told) == (66, "Grace: 1 face(s) removed\n")
        assert f"{aside}: a damaged gallery that was kept aside may hold Grace's faces" in errors
        aside.unlink()
        assert edgefer("people", "remove", "Grace")[0] == 64

    def test_a_terminal_shows_how_far_it_is(self, edgefer, monkeypatch, tmp_path):
        terminal, other_end = pty.openpty()
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for name in "ab":
            shutil.copy(GRACE, pictures / f"{name}.jpg")
        with os.fdopen(other_end, "w") as stream:
            monkeypatch.setattr("sys.stderr", stream)
            assert main(["enroll", "Grace", "--images", str(pictures)]) == 0
            shown = ""
            while not shown.endswith("2/2\r\x1b[2K\r"):  # the line is cleared in the end
                shown += os.read(terminal, 10_000).decode()
        os.close(terminal)
        assert f"[{'#' * 15}{' ' * 15}] 1/2\r\x1b[2K\r[{'#' * 30}] 2/2\r" in shown

    def test_the_camera_is_opened_where_no_daemon_runs(self, edgefer, monkeypatch):
        monkeypatch.setenv("EDGEFER_CAMERA", "sample://?realtime=0")
        code, told, _ = edgefer("enroll", "Grace", "--camera", "--seconds", "5")
        assert code == 0
        assert "refused: no face was found" in told, "she comes after a second"
        assert 3 <= enrolled()["Grace"] <= 10

    def test_a_camera_that_is_not_there_is_told(self, edgefer, monkeypatch):
        monkeypatch.setenv("EDGEFER_CAMERA", "/dev/video97")
        monkeypatch.setattr("edgefer.enroll.FRAME_S", 0.5)
        code, _, errors = edgefer("enroll", "Grace", "--camera")
        assert (code, "/dev/video97" in errors) == (74, True)


def stored_events(state: Path) -> bytes:
    """The bytes of the files in which events wait, while the daemon makes and removes some."""
    held = b""
    for path in state.glob("outbox.sqlite3*"):
        with suppress(FileNotFoundError):
            held += path.read_bytes()
    return held


@needs_pictures
def test_a_daemon_that_stops_at_once_keeps_nothing_of_who_was_removed(edgefer, state, monkeypatch):
    monkeypatch.setattr("edgefer.identify.REFRESH_S", 1e6)
    assert edgefer("enroll", "Grace", "--images", GRACE)[0] == 0
    for name, value in {"SINKS": "mqtt", "MQTT__PORT": str(free_port()), "CAMERA": "sample://?loop=1"}.items():
        monkeypatch.setenv(f"EDGEFER_{name}", value)
    monkeypatch.setenv("EDGEFER_EVENTS__INTERVAL_S", "0.1")
    stop = service.Stop()
    daemon = threading.Thread(target=service.run, args=(load_settings(), stop))
    daemon.start()

    def waits() -> bool:
        return b'"Grace"' in stored_events(state)

    try:
        wait_until(waits, "events that name her")
        with gallery() as opened:
            opened.remove("Grace")
    finally:
        stop.asked_by = "the test"
        daemon.join(30)
    assert not daemon.is_alive()
    assert not waits()


def test_what_waits_of_who_is_removed_goes_though_the_gallery_is_damaged(edgefer, state):
    outbox = Outbox(60, store=Store(state))
    outbox.put(face_event(1), time.monotonic())
    outbox.close()
    assert b'"Ada"' in stored_events(state)
    (state / "gallery.sqlite3").write_bytes(b"damaged" * 100)
    code, told, errors = edgefer("people", "remove", "Ada")
    assert (code, told) == (66, "Ada: 0 face(s) and 1 waiting event(s) removed\n")
    assert "gallery.sqlite3: the file is damaged" in errors
    assert b'"Ada"' not in stored_events(state)


@needs_pictures
def test_who_is_removed_while_the_camera_is_silent_leaves_without_a_name(edgefer, state, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("edgefer.latest.LOST_AFTER_S", 5.0)  # the gallery is read again before
    monkeypatch.setattr("edgefer.cameras._worker.SILENT_S", 5.0)
    assert edgefer("enroll", "Grace", "--images", GRACE)[0] == 0
    camera = tmp_path / "fault"
    for name, value in {
        "SINKS": "mqtt",
        "MQTT__PORT": str(free_port()),
        "CAMERA": f"faulty://{camera}?show=sample",
    }.items():
        monkeypatch.setenv(f"EDGEFER_{name}", value)
    stop = service.Stop()
    daemon = threading.Thread(target=service.run, args=(load_settings(), stop))
    daemon.start()

    try:
        wait_until(lambda: b'"Grace"' in stored_events(state), "events that name her")
        camera.write_text("hang")
        with gallery() as opened:
            opened.remove("Grace")
        wait_until(lambda: "; 0 in view" in caplog.text, "everybody to have left")
    finally:
        stop.asked_by = "the test"
        daemon.join(30)
    assert caplog.text.index("somebody who was forgotten") < caplog.text.index("; 0 in view")
    assert b'"event":"left"' in stored_events(state)
    assert b'"Grace"' not in stored_events(state)


class TestPeople:
    @pytest.fixture(autouse=True)
    def _known(self):
        ada, grace = faces(3, 1), faces(2, 2)
        ada = ada[0] + 0.3 * ada
        with gallery() as opened:
            opened.add("Ada", [Template(f / np.linalg.norm(f), 0.7, "2026-11-20T10:00:00+00:00") for f in ada])
            opened.add("Grace", [Template(f, 0.123456789) for f in grace])
            opened.add("poster", [Template(faces(1, 3)[0], 1.0)], ignored=True)

    def test_list_for_scripts(self, edgefer):
        listed = json.loads(edgefer("people", "list", "--json")[1])
        assert [(p["name"], p["templates"], p["ignored"]) for p in listed] == [
            ("Ada", 3, False),
            ("Grace", 2, False),
            ("poster", 1, True),
        ]

    def test_rename_merge_remove(self, edgefer):
        assert edgefer("people", "rename", " Ada", "Countess ")[:2] == (0, "Ada is Countess now\n")
        assert edgefer("people", "merge", "Countess", "Grace")[:2] == (0, "Countess is Grace now\n")
        assert enrolled() == {"Grace": 5, "poster": 1}
        assert edgefer("people", "remove", "Grace")[:2] == (0, "Grace: 5 face(s) removed\n")
        assert "nothing of them is left here" in edgefer("people", "remove", "Grace")[2]
        code, _, errors = edgefer("people", "merge", "Grace", "poster")
        assert (code, "nobody named 'Grace'" in errors) == (64, True)

    def test_events_that_wait_with_a_former_name_are_told(self, edgefer, state):
        assert edgefer("people", "rename", "Ada", "Countess")[2] == ""
        with closing(Store(state)) as store:
            store.write([(b"{}", time.monotonic())], [])
            told = edgefer("people", "rename", "Countess", "Lady Ada")[2]
        assert told.endswith("may still name Countess: `edgefer people remove Countess` drops them\n")

    def test_an_export_tells_what_it_leaves_out(self, edgefer, state, tmp_path):
        assert edgefer("people", "export", tmp_path / "people.json")[2] == ""
        with closing(Gallery(state, "another model")) as other:
            other.add("Ada", [Template(face, 1.0, picture=b"kept") for face in faces(2)])
        told = edgefer("people", "export", tmp_path / "people.json")[2]
        assert told.splitlines()[-2:] == [
            "edgefer: left out: 2 face(s) of another model than the one in use",
            "edgefer: left out: 2 picture(s) that were kept",
        ]

    def test_export_and_import_round_trip_to_the_last_bit(self, edgefer, tmp_path, monkeypatch):
        assert edgefer("people", "export", "people.json")[0] == 0
        assert stat.S_IMODE((tmp_path / "people.json").stat().st_mode) == 0o600
        with gallery() as opened:
            before = {person: opened.templates(person.name) for person in opened.people()}
        monkeypatch.setenv("EDGEFER_STATE_DIR", str(tmp_path / "elsewhere"))
        assert edgefer("people", "import", "people.json")[1].splitlines()[0] == "Ada: 3 face(s) added"
        with gallery() as opened:
            after = {person: opened.templates(person.name) for person in opened.people()}
        assert list(after) == list(before)
        for one, other in zip(chain(*before.values()), chain(*after.values()), strict=True):
            assert one.embedding.tobytes() == other.embedding.tobytes()
            assert (one.quality, one.enrolled) == (other.quality, other.enrolled)
        assert edgefer("people", "export")[1] == (tmp_path / "people.json").read_text()
        assert edgefer("people", "import", "people.json")[1].splitlines()[0] == "Ada: 0 face(s) added"

    def test_the_common_json_is_read_and_made_unit_vectors(self, edgefer, tmp_path):
        long = (7 * faces(3, 8)).tolist()
        (tmp_path / "others.json").write_text(json.dumps({"Eve": long[0], "Bob": long[1:]}), encoding="utf-8-sig")
        assert edgefer("people", "import", "others.json", "--model-id", "identity-112")[0] == 0
        with gallery() as opened:
            assert len(opened.templates("Bob")) == 2
            match = opened.match(faces(3, 8)[0])
            assert (match.name, match.similarity) == ("Eve", pytest.approx(1, abs=1e-6))

    def test_a_models_name_alone_is_taken_with_a_warning(self, edgefer, tmp_path, caplog):
        (tmp_path / "others.json").write_text(json.dumps({"Eve": [1] * 128}))
        assert edgefer("people", "import", "others.json", "--model-id", MODEL)[0] == 0
        assert not caplog.messages
        assert edgefer("people", "import", "others.json", "--model-id", "identity-112")[0] == 0
        assert caplog.messages == [
            f"taken for embeddings by {MODEL}: what another version of it made can't be compared"
        ]

    def test_an_export_that_fails_leaves_the_former_one(self, edgefer, tmp_path):
        assert edgefer("people", "export", "people.json")[0] == 0
        before = (tmp_path / "people.json").read_bytes()
        with gallery() as opened:
            opened.add("Eve", [Template(face, 1.0) for face in faces(60, 3)])
        command = f"ulimit -f 64; {sys.executable} -m edgefer people export people.json"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, "people.json: can't be written: File too large" in done.stderr) == (66, True)
        assert (tmp_path / "people.json").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir() if "people" in path.name] == ["people.json"]

    @pytest.mark.parametrize(
        ("text", "code", "told"),
        [
            ("{", 66, "not JSON"),
            ("[1, 2]", 66, "not people"),
            ('{"Eve": [1, 2, 3]}', 66, "Eve: an embedding of 3 values; the model in use gives 128"),
            (json.dumps({"Eve": [0.0] * 128}), 66, "zero"),
            (json.dumps({"Eve": [float("nan")] * 128}), 66, "finite"),
            (json.dumps({"Eve": [10**400] * 128}), 66, "finite"),
            (json.dumps({"Eve": ["1"] * 128}), 66, "list of numbers"),
            (json.dumps({"Eve": [[1] * 128, [1] * 127]}), 66, "127 values"),
            ('{"Eve": []}', 66, "Eve: a list of numbers"),
            (json.dumps({"x" * 300: [1] * 128}), 66, "bad.json: a name has 1 to 64 printable characters, not 300"),
            ('{"schema": "edgefer.people/9", "people": {}}', 66, "newer edgefer"),
            (
                '{"schema": "edgefer.people/1", "model": "facenet 123", "people": {}}',
                66,
                "made by the model facenet 123",
            ),
            ('{"schema": "edgefer.people/1", "people": []}', 66, "without its people"),
            (json.dumps({"Eve": [1] * 128, "poster": [1] * 128}), 64, "poster is ignored"),
            ('{"Eve": [1], "Eve ": [1]}', 66, "bad.json: 'Eve' stands there twice"),
            ('{"Eve": {"templates": []}}', 66, "Eve: no templates"),
            ('{"Eve": [[]]}', 66, "Eve: an embedding of 0 values"),
            ("[" * 100_000, 66, "not JSON: maximum recursion"),
            (
                json.dumps({"Eve": {"templates": [{"embedding": [1] * 128, "quality": float("nan"), "enrolled": ""}]}}),
                66,
                "Eve: a template has embedding, quality (0 to 1)",
            ),
            (
                json.dumps({"Eve": {"templates": [{"embedding": [1] * 128, "quality": 1, "enrolled": "\ud800"}]}}),
                66,
                "enrolled (when: 2026-11-20T14:30:12+00:00)",
            ),
            ("{}", 66, "bad.json: there is nobody in it"),
            (
                json.dumps({"Eve": {"templates": [{"embedding": [1] * 128}], "ignored": "yes"}}),
                66,
                "Eve: ignored is true or false, not 'yes'",
            ),
        ],
    )
    def test_what_cant_be_imported_is_told_and_nothing_of_it_kept(self, edgefer, tmp_path, text, code, told):
        (tmp_path / "bad.json").write_text(text)
        named = [] if '"model"' in text else ["--model-id", MODEL]
        result, _, errors = edgefer("people", "import", "bad.json", *named)
        assert (result, told in errors) == (code, True), errors
        assert enrolled() == {"Ada": 3, "Grace": 2, "poster": 1}

    def test_import_asks_which_model_it_was(self, edgefer, tmp_path):
        (tmp_path / "others.json").write_text(json.dumps({"Eve": [1] * 128}))
        code, _, errors = edgefer("people", "import", "others.json")
        assert (code, f"--model-id '{MODEL}'" in errors) == (64, True)
        code, _, errors = edgefer("people", "import", "others.json", "--model-id", "facenet")
        assert (code, "EDGEFER_IDENTITY__MODEL" in errors) == (66, True)
        export = {"schema": "edgefer.people/1", "model": "identity-112 0123456789ab", "people": {"Eve": [1] * 128}}
        (tmp_path / "older.json").write_text(json.dumps(export))
        code, _, errors = edgefer("people", "import", "older.json", "--model-id", "identity-112")
        assert (code, "made by the model identity-112 0123456789ab" in errors) == (66, True), (
            "what it says itself holds"
        )
        assert edgefer("people", "import", "missing.json")[0] == 66
        os.mkfifo(tmp_path / "pipe.json")
        code, _, errors = edgefer("people", "import", "pipe.json")
        assert (code, "pipe.json: can't be read: it is no regular file" in errors) == (66, True)

    def test_embeddings_of_ones_own_model_are_taken_with_that_model(self, edgefer, tmp_path, monkeypatch):
        (tmp_path / "own").mkdir()
        path = place(tmp_path / "own", "float32", task="embedding", decoder="unit-vector",
                     crop=Crop("points"), labels=())  # fmt: skip
        monkeypatch.setenv("EDGEFER_IDENTITY__MODEL", str(path))
        (tmp_path / "own.json").write_text(json.dumps({"Eve": [3.0, 0.0, 4.0], "Ada": [[0, 1, 0], [0, 0, 1]]}))
        code, told, _ = edgefer("people", "import", "own.json", "--model-id", "tiny")
        assert (code, told) == (0, "Eve: 1 face(s) added\nAda: 2 face(s) added\n")
        listed = {person["name"]: person for person in json.loads(edgefer("people", "list", "--json")[1])}
        assert (listed["Ada"]["templates"], listed["Ada"]["other_models"]) == (2, 3)
        assert (listed["Grace"]["templates"], listed["Grace"]["other_models"]) == (0, 2)
        code, _, errors = edgefer("people", "import", "own.json", "--model-id", "identity-112")
        assert (code, "made by the model identity-112" in errors) == (66, True)

    def test_check_says_what_separates_them(self, edgefer, tmp_path):
        with gallery() as opened:
            opened.note_strangers([0.1, 0.25])
            groups = opened.embeddings()
        found = json.loads(edgefer("people", "check", "--json")[1])
        cosines = {
            (one, other): max(nearest(*pair, tmp_path) for pair in permutations([groups[one], groups[other]]))
            for one, other in combinations(sorted(groups), 2)
        }
        closest = max(cosines, key=cosines.get)
        assert (found["people"], found["faces"], found["strangers"]) == (3, 6, 2)
        assert (found["closest"]["first"], found["closest"]["second"]) == closest
        assert found["closest"]["similarity"] == pytest.approx(cosines[closest], abs=1e-6)
        # Grace's two faces have nothing in common.
        assert found["widest"]["name"] == "Grace"
        assert found["widest"]["similarity"] == pytest.approx(float(groups["Grace"][0] @ groups["Grace"][1]), abs=1e-6)
        assert found["nearest_stranger"] == pytest.approx(0.26)
        assert found["separating"] is None
        assert "no threshold separates them" in edgefer("people", "check")[1]
        assert edgefer("people", "remove", "Grace")[0] == 0
        # Ada's faces are alike, the nearest anybody comes is the poster, and strangers may have been near to Grace.
        found = json.loads(edgefer("people", "check", "--json")[1])
        assert found["nearest_stranger"] is None
        between = (cosines["Ada", "poster"] + found["widest"]["similarity"]) / 2
        assert found["separating"] == pytest.approx(between, abs=1e-6)
        assert found["widest"]["name"] == "Ada"
        ada = groups["Ada"]
        alone = min(nearest(ada[[n]], np.delete(ada, n, 0), tmp_path) for n in range(3))
        assert found["widest"]["similarity"] == pytest.approx(alone, abs=1e-6)

    def test_check_never_tells_to_let_strangers_pass(self, edgefer, monkeypatch):
        """Two who have little in common are told apart by far less than keeps strangers out."""
        assert edgefer("people", "remove", "Grace")[0] == 0
        found = json.loads(edgefer("people", "check", "--json")[1])
        between, others = found["separating"], found["closest"]["similarity"]
        widest = found["widest"]["similarity"]
        assert others < between < widest

        def advice(threshold: float) -> str:
            monkeypatch.setenv("EDGEFER_IDENTITY__THRESHOLD", str(threshold))
            return edgefer("people", "check")[1].splitlines()[-1]

        assert advice(between - 0.01) == f"the threshold in use separates them; halfway lies {between:.3f}"
        assert advice(between + 0.01).endswith(f"halfway lies {between:.3f}, too low to keep strangers out")
        assert advice(others - 0.01) == f"EDGEFER_IDENTITY__THRESHOLD={between:.3f} separates them"
        told = advice(widest + 0.01)
        assert "EDGEFER_IDENTITY__THRESHOLD" not in told
        assert "pictures of Ada, and leave the threshold as it is" in told

    def test_a_stranger_over_the_threshold_is_no_matter_of_merging(self, edgefer, monkeypatch):
        """A stranger is known to a hundredth: whoever was counted as one stayed under the threshold in use."""
        with gallery() as opened:
            opened.note_strangers([0.563])

        def told(threshold: float) -> str:
            monkeypatch.setenv("EDGEFER_IDENTITY__THRESHOLD", str(threshold))
            return edgefer("people", "check")[1]

        assert "over the threshold" not in told(0.565)
        assert "nearest stranger        0.565 or less, of 1 seen" in told(0.565)
        assert "a stranger came over the threshold in use: set a higher" in told(0.55)
        assert "merge" not in told(0.55).split("no threshold")[0]

    def test_a_name_that_nobody_has_changes_nothing(self, edgefer):
        with gallery() as opened:
            opened.note_strangers([0.31, 0.42])
        assert edgefer("people", "remove", "Typo")[0] == 64
        assert json.loads(edgefer("people", "check", "--json")[1])["strangers"] == 2
        assert edgefer("people", "remove", "Ada")[0] == 0
        assert json.loads(edgefer("people", "check", "--json")[1])["strangers"] == 0

    def test_nothing_is_said_to_be_removed_from_a_file_that_cant_be_read(self, edgefer, state):
        (state / "gallery.sqlite3").write_bytes(b"damaged" * 1000)
        code, told, errors = edgefer("people", "remove", "Ada")
        assert (code, told) == (66, "")
        assert "the file is damaged" in errors

    def test_a_terminal_without_a_names_letters_shows_the_others(self):
        with gallery() as opened:
            opened.rename("Ada", "Žofie")
        command = [sys.executable, "-m", "edgefer", "people", "list"]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "\\u017dofie" in listed

    def test_check_of_nobody(self, edgefer, tmp_path, monkeypatch):
        monkeypatch.setenv("EDGEFER_STATE_DIR", str(tmp_path / "empty"))
        code, told, _ = edgefer("people", "check")
        assert (code, "no threshold to tell (nobody else)" in told) == (0, True)
        assert "one face each" not in told

    def test_many_people_are_compared_block_by_block(self):
        from edgefer.separation import separation

        vectors = faces(700, 11)
        people = {f"Person {n:03}": vectors[n * 2 : n * 2 + 2] for n in range(350)}
        with gallery() as opened:
            for name in enrolled():
                opened.remove(name)
            opened.add_people([Newcomer(name, [Template(f, 1.0) for f in two]) for name, two in people.items()])
            found = separation(opened, 0.5)
        cosines = vectors @ vectors.T
        apart = np.arange(700) // 2
        means = vectors.reshape(350, 2, 128).mean(1)
        costs = 0.1 * (1 - np.square(means).sum(1)) + 0.033 * math.log(350 / 50)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        cosines = np.maximum(cosines, (vectors @ means.T).repeat(2, axis=1)) - costs.repeat(2)
        strangers = np.where(apart[:, None] == apart, -1, cosines)
        one, other = sorted(apart[list(divmod(int(strangers.argmax()), 700))])
        assert (found.closest.first, found.closest.second) == (f"Person {one:03}", f"Person {other:03}")
        assert found.closest.similarity == pytest.approx(strangers.max(), abs=1e-5)
        assert found.widest.similarity == pytest.approx(
            min(a @ b for a, b in people.values()) - 0.033 * math.log(7), abs=1e-5
        )

    def test_remove_clears_the_name_that_a_broker_retains(self, edgefer, mosquitto, subscribe, monkeypatch):
        for variable, value in mosquitto.variables.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setenv("EDGEFER_SINKS", "mqtt")
        monkeypatch.setenv("EDGEFER_DEVICE", "hall-pi")
        broker = {"hostname": "localhost", "port": mosquitto.port, "qos": 1}
        publish.single("edgefer/hall-pi/presence", '{"count": 1, "known": ["Ada"]}', retain=True, **broker)
        code, told, errors = edgefer("people", "remove", "Ada")
        assert (code, told, errors) == (0, "Ada: 3 face(s) removed\n", "")
        late = subscribe(mosquitto)
        publish.single("edgefer/now", "after all that is retained", **broker)
        wait_until(lambda: late.payloads("/now"), "a message")
        assert [message.topic for message in late.messages] == ["edgefer/now"]

    def test_who_was_removed_while_the_broker_was_away_leaves_it_later(
        self, edgefer, mosquitto, subscribe, monkeypatch
    ):
        monkeypatch.setenv("EDGEFER_SINKS", "mqtt")
        monkeypatch.setenv("EDGEFER_DEVICE", "hall-pi")
        monkeypatch.setenv("EDGEFER_MQTT__PORT", "1")
        assert edgefer("people", "remove", "Ada")[0] == 0
        for variable, value in mosquitto.variables.items():
            monkeypatch.setenv(variable, value)
        broker = {"hostname": "localhost", "port": mosquitto.port, "qos": 1}
        publish.single("edgefer/hall-pi/presence", '{"count": 1, "known": ["Ada"]}', retain=True, **broker)
        watcher = subscribe(mosquitto)
        assert edgefer("people", "remove", "Adam")[0] == 64
        assert edgefer("people", "remove", "Ada")[:2] == (0, "Ada: the presence that the broker retained is cleared\n")
        watcher.wait_for(lambda messages: [m.payload for m in messages if not m.retained] == [""])
        assert edgefer("people", "remove", "Ada")[0] == 64

    def test_what_can_be_forgotten_is_though_the_waiting_events_cant_be_read(
        self, edgefer, state, mosquitto, subscribe, monkeypatch
    ):
        monkeypatch.setenv("EDGEFER_SINKS", "mqtt")
        monkeypatch.setenv("EDGEFER_DEVICE", "hall-pi")
        for variable, value in mosquitto.variables.items():
            monkeypatch.setenv(variable, value)
        publish.single("edgefer/hall-pi/presence", "{}", retain=True, hostname="localhost", port=mosquitto.port, qos=1)
        watcher = subscribe(mosquitto)
        (state / "outbox.sqlite3").write_bytes(b"no database at all" * 1000)
        code, told, errors = edgefer("people", "remove", "Ada")
        assert (code, told) == (66, "Ada: 3 face(s) removed\n")
        assert "outbox.sqlite3 can't be read" in errors
        assert enrolled() == {"Grace": 2, "poster": 1}
        watcher.wait_for(lambda messages: [m.payload for m in messages if not m.retained] == [""])

    def test_a_broker_that_is_away_is_told(self, edgefer, monkeypatch):
        monkeypatch.setenv("EDGEFER_SINKS", "mqtt")
        monkeypatch.setenv("EDGEFER_MQTT__PORT", "1")
        code, told, errors = edgefer("people", "remove", "Ada")
        assert (code, told) == (0, "Ada: 3 face(s) removed\n")
        assert "presence with Ada in it, clear it there" in errors
