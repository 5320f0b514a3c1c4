"""`edgefer analyze` and `edgefer enroll`, as processes, on real pictures."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "analyze.schema.json").read_text())


def picture_of(package: str, path: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the picture ships in {package}: pip install '.[demo]'")
    return Path(spec.origin).parent / path


@pytest.fixture
def grace() -> Path:
    return picture_of("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")


@pytest.fixture
def astronaut() -> Path:
    return picture_of("skimage", "data/astronaut.png")


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict]:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    return lines


def overlap(a: dict, b: tuple[float, float, float, float]) -> float:
    x, y, width, height = b
    left, top = max(a["x"], x), max(a["y"], y)
    right, bottom = min(a["x"] + a["width"], x + width), min(a["y"] + a["height"], y + height)
    shared = max(0, right - left) * max(0, bottom - top)
    return shared / (a["width"] * a["height"] + width * height - shared)


@pytest.mark.runtime
def test_a_picture_gives_one_line_with_its_face(edgefer, grace):
    done = edgefer("analyze", grace, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = lines_of(done)
    assert (line["file"], line["time_s"], line["width"], line["height"]) == (str(grace), None, 512, 600)
    (face,) = line["faces"]
    # From the cap's brim to the chin and from ear to ear, and the landmarks: read off the picture.
    assert overlap(face["bbox"], (178, 128, 178, 207)) > 0.6
    left_eye, right_eye, nose, left_mouth, right_mouth = face["landmarks"]
    truth = [(222, 190), (305, 188), (265, 238), (228, 274), (305, 271)]
    assert np.abs(np.subtract(face["landmarks"], truth)).max() < 18
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert face["identity"] == {"status": "unknown", "name": None, "similarity": None, "margin": None}
    assert abs(sum(face["emotion"]["scores"].values()) - 1) < 1e-3
    assert face["quality"]["frontal"] > 0.5


def test_a_picture_without_a_face_gives_a_line_without_faces(edgefer, tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), cv2.blur(noise, (9, 9)))
    (line,) = lines_of(edgefer("analyze", "noise.png", "--json"))
    assert line == {"file": "noise.png", "time_s": None, "width": 160, "height": 120, "faces": []}


@pytest.mark.runtime
def test_a_video_gives_a_line_a_frame_with_its_time(edgefer, grace, tmp_path):
    image = cv2.resize(cv2.imread(str(grace)), (256, 304))
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (256, 304))
    for _ in range(5):
        video.write(image)
    video.release()
    lines = lines_of(edgefer("analyze", "clip.mp4", "--json"))
    assert [line["time_s"] for line in lines] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=0.01)
    assert [len(line["faces"]) for line in lines] == [1] * 5


def test_the_table_is_for_people(edgefer, grace):
    done = edgefer("analyze", grace)
    assert "512x600, 1 face(s)" in done.stdout
    assert "unknown" in done.stdout


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_read(edgefer, grace, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(grace.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((8, 32_001), np.uint8))
    (tmp_path / "bare").mkdir()
    listed = ("missing.jpg", "broken.jpg", "empty.png", "wide.png", "bare", "a=b/missing.mp4", grace)
    done = edgefer("analyze", *listed, "--json")
    assert done.returncode == 66
    assert [line["file"] for line in lines_of(done)] == [str(grace)]
    assert "a=b/missing.mp4 isn't there" in done.stderr
    assert "bare holds no pictures" in done.stderr
    assert "missing.jpg: can't be read: No such file" in done.stderr
    assert "broken.jpg: not a picture that can be read (300 bytes)" in done.stderr
    assert "wide.png: 32001x8 pixels: a side may have 32000" in done.stderr
    assert "empty.png: not a picture that can be read (0 bytes)" in done.stderr
    assert "Traceback" not in done.stderr


def test_odd_names_and_huge_pictures_are_no_crash(edgefer, tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no picture")
    huge = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    # The width and height in the header: 70,000 x 70,000, over OpenCV's limit of 2^30 pixels.
    (tmp_path / "huge.png").write_bytes(huge[:16] + (70000).to_bytes(4, "big") * 2 + huge[24:])
    done = edgefer("analyze", *sorted(os.listdir(os.fsencode(tmp_path))), "--json")  # noqa: PTH208  # names as bytes
    assert done.returncode == 66
    assert "huge.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_stands_for_its_pictures(edgefer, grace, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("10.jpg", "2.jpg", "._2.jpg"):
        (folder / name).write_bytes(grace.read_bytes())
    lines = lines_of(edgefer("analyze", "pictures", "--json"))
    assert [line["file"] for line in lines] == ["pictures/2.jpg", "pictures/10.jpg"]


def test_stages_can_be_off(edgefer, grace):
    done = edgefer("analyze", grace, "--json", EDGEFER_IDENTITY__ENABLED="false", EDGEFER_EMOTION__ENABLED="false")
    (face,) = lines_of(done)[0]["faces"]
    assert face["identity"]["status"] == face["emotion"]["status"] == "off"
    assert face["emotion"]["scores"] is None


@pytest.mark.runtime
def test_who_is_enrolled_is_known_and_a_stranger_is_not(edgefer, grace, astronaut):
    done = edgefer("enroll", "Grace Hopper", "--images", grace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Grace Hopper: 1 face(s) enrolled" in done.stdout
    assert edgefer("people", "list").stdout.split("  ")[0] == "Grace Hopper"
    known, stranger = lines_of(edgefer("analyze", grace, astronaut, "--json"))
    assert known["faces"][0]["identity"]["name"] == "Grace Hopper"
    assert known["faces"][0]["identity"]["similarity"] > 0.95
    assert stranger["faces"][0]["identity"]["status"] == "unknown"
    assert stranger["faces"][0]["identity"]["name"] is None
    assert edgefer("people", "remove", "Grace Hopper").returncode == 0
    gone = edgefer("people", "remove", "Grace Hopper")
    assert (gone.returncode, gone.stdout) == (64, "")
    assert "nobody named 'Grace Hopper'" in gone.stderr


def test_enroll_says_what_it_refused_and_why(edgefer, grace, astronaut, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = cv2.imread(str(grace))
    cv2.imwrite(str(folder / "a-blurred.png"), cv2.GaussianBlur(image, (0, 0), 12))
    cv2.imwrite(str(folder / "b-tiny.png"), cv2.resize(image, None, fx=0.15, fy=0.15, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(folder / "c-two.png"), np.hstack([image[:512], cv2.imread(str(astronaut))]))
    cv2.imwrite(str(folder / "d-nobody.png"), np.full((200, 200, 3), 90, np.uint8))
    (folder / "e-broken.jpg").write_bytes(b"\xff\xd8 no picture")
    cv2.imwrite(str(folder / "f-good.png"), image)
    (folder / "notes.txt").write_text("not a picture")
    done = edgefer("enroll", "Grace Hopper", "--images", folder)
    told = {Path(line.split(": ")[0]).name: line.split(": ", 1)[1] for line in done.stdout.splitlines()[:-1]}
    assert list(told) == ["a-blurred.png", "b-tiny.png", "c-two.png", "d-nobody.png", "e-broken.jpg", "f-good.png"]
    assert told["f-good.png"] == "used"
    assert "blurred" in told["a-blurred.png"]
    assert "px large" in told["b-tiny.png"]
    assert "2 faces" in told["c-two.png"]
    assert "no face was found" in told["d-nobody.png"]
    assert "not a picture" in told["e-broken.jpg"]
    assert done.stdout.endswith("Grace Hopper: 1 face(s) enrolled\n")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["enroll", "Ada", "--images", "nowhere"], 66, "nowhere: can't be read: No such file or directory"),
        (["enroll", "Ada", "--images", "."], 66, "holds no pictures"),
        (["enroll", "Ada", "--images", "x" * 300], 66, "can't be read: File name too long"),
        (["enroll", "", "--images", "."], 64, "printable characters"),
        (["enroll", "Ada"], 64, "--images"),
        (["analyze", "x" * 300], 66, "File name too long"),
        (["analyze"], 64, "FILE"),
        (["analyse"], 64, "invalid choice"),
        (["people", "remove", "Nobody"], 64, "people list"),
    ],
)
def test_bad_use_is_told_in_one_sentence(edgefer, arguments, code, told):
    done = edgefer(*arguments)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_who_brings_an_iphones_pictures_or_folders_of_them_is_told_what_to_do(edgefer, tmp_path, grace):
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    for named, told in (
        ("phone/IMG_1.HEIC", "make it one of .bmp, .jfif, .jpeg"),
        ("phone", ".webp): turn the .heic in it into .jpg"),
        (".", ".webp), but folders: name these"),
    ):
        done = edgefer("enroll", "Ada", "--images", named)
        assert (done.returncode, told in done.stderr + done.stdout) == (66, True), done.stderr
    (tmp_path / "phone" / "more").mkdir()
    shutil.copy(grace, tmp_path / "phone" / "grace.jpg")
    done = edgefer("enroll", "Grace", "--images", "phone")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "phone/grace.jpg: used",
        (
            "phone/IMG_1.HEIC: refused: not a picture that can be read (312 bytes); "
            "make it one of .bmp, .jfif, .jpeg, .jpg, .png, .webp"
        ),
        "phone/more: refused: a folder within: name it as well",
        "Grace: 1 face(s) enrolled",
    ], "what is left out is told"


def test_enrolling_from_faces_of_no_use_ends_with_66(edgefer, tmp_path):
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((200, 200, 3), 90, np.uint8))
    done = edgefer("enroll", "Ada", "--images", "wall.png")
    assert done.returncode == 66
    assert "no face of Ada could be used" in done.stderr


def test_without_identity_nobody_can_be_enrolled(edgefer, grace):
    done = edgefer("enroll", "Ada", "--images", grace, EDGEFER_IDENTITY__ENABLED="false")
    assert done.returncode == 64
    assert "EDGEFER_IDENTITY__ENABLED" in done.stderr
