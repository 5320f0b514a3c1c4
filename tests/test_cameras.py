"""Every source of pictures: what it gives, and what it says when it can't."""

import base64
import contextlib
import importlib.util
import inspect
import itertools
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefer.cameras import (
    EndOfStream,
    gstreamer,
    open_camera,
    parse_uri,
    picamera2,
    source_modules,
    v4l2,
    video,
)
from edgefer.errors import CameraError, InputError, UsageError
from edgefer.settings import FrameSettings

TESTS = Path(__file__).parent
WANTED = FrameSettings(width=320, height=240)
MODULES = source_modules()
SCHEMES = [scheme for module in MODULES for scheme in module.SCHEMES]


def open_here(uri: str, wanted: FrameSettings = WANTED):
    """Open a source in this process, where its limits can be changed, also one that has its own process otherwise."""
    parsed = parse_uri(uri)
    for module in MODULES:
        if parsed.scheme in getattr(module, "WORKER_SCHEMES", ()):
            return module.open_source(parsed, wanted)
    return open_camera(parsed, wanted)


def opened(uri: str, wanted: FrameSettings = WANTED) -> contextlib.closing:
    return contextlib.closing(open_here(uri, wanted))


def play(uri: str, limit: int = 1000) -> list:
    """The pictures of a source up to its end, at most `limit`."""
    pictures = []
    with opened(uri) as camera, contextlib.suppress(EndOfStream):
        while len(pictures) < limit:
            pictures.append(camera.read())
    return pictures


def levels(pictures: list) -> list[int]:
    """The number that `frame` wrote into each picture."""
    return [round(picture.image.mean() / 8) for picture in pictures]


def frame(number: int) -> np.ndarray:
    """A gray picture that holds a number, also after lossy coding."""
    return np.full((48, 64, 3), number * 8, np.uint8)


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", frame(number))[1].tobytes()


def read_on(camera, pictures: list) -> None:
    """Read for as long as the camera gives something."""
    while True:
        pictures.append(camera.read())


def fails(uri: str, error: type[Exception], *parts: str) -> str:
    """The message of the error that opening ends in; it names `parts`."""
    with pytest.raises(error) as caught:
        open_here(uri)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Twenty pictures at 10 fps."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", "mp4v", 20)


def write_video(path: Path, fourcc: str, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 10, (64, 48))
    assert writer.isOpened()
    for number in range(count):
        writer.write(frame(number))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, named so that people and machines sort them differently."""
    for number, name in enumerate(["shot2.png", "shot10.JPG", "shot11.webp"]):
        cv2.imwrite(str(tmp_path / name.lower()), frame(number))
        (tmp_path / name.lower()).rename(tmp_path / name)
    return tmp_path


# Every source


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_module_is_a_source(module):
    assert module.SCHEMES
    assert all(re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) for scheme in module.SCHEMES)
    assert list(inspect.signature(module.open_source).parameters) == ["uri", "wanted"]
    for uri in getattr(module, "find_cameras", list)():
        assert parse_uri(uri).scheme in module.SCHEMES


def test_no_scheme_has_two_modules():
    assert len(SCHEMES) == len(set(SCHEMES))


def test_every_scheme_is_documented():
    text = (TESTS.parent / "docs" / "cameras.md").read_text()
    assert [scheme for scheme in SCHEMES if f"{scheme}://" not in text] == []


def test_importing_the_sources_loads_no_hardware_library_and_changes_nothing():
    code = """
import os, cv2, sys
level = cv2.utils.logging.getLogLevel if hasattr(cv2.utils, "logging") else cv2.getLogLevel
before = level(), dict(os.environ)
from edgefer.cameras import source_modules
source_modules()
assert (level(), dict(os.environ)) == before
print(*sys.modules)
"""
    loaded = run(code).stdout.split()
    assert "edgefer.cameras.picamera2" in loaded
    assert {"picamera2", "libcamera", "gi", "matplotlib", "skimage"}.isdisjoint(loaded)


def test_a_machine_that_is_short_of_files_has_a_lost_camera_rather_than_an_unknown_scheme():
    code = """
import os, resource
from edgefer.cameras import source_module
from edgefer.errors import CameraError
newest, limits = os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)
short, enough = (newest, limits[1]), limits
os.close(newest)
for limit in short, enough, short:
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    try:
        print(source_module("synthetic").__name__)
    except CameraError as error:
        print(error)
"""
    found = "edgefer.cameras.synthetic"
    failed = "edgefer's own camera sources can't be read: Too many open files"
    assert run(code).stdout.splitlines() == [failed, found, found]


@pytest.mark.parametrize("uri", ["synthetic://?frames=2", "clip", "images"])
def test_a_closed_source_gives_no_more_pictures(uri, clip, folder):
    with opened({"clip": str(clip), "images": str(folder)}.get(uri, uri)) as camera:
        camera.read()
        camera.close()
        camera.close()
        with pytest.raises(EndOfStream):
            camera.read()


# URIs


def test_an_unknown_scheme_lists_the_known_ones():
    known = [f"{scheme}://" for scheme in SCHEMES if scheme != "faulty"]
    assert "faulty" not in fails("rtmp://host/x", UsageError, "rtmp://", *known), "that one is for tests"


@pytest.mark.parametrize(
    ("text", "scheme", "location"),
    [
        ("0", "v4l2", "/dev/video0"),
        ("12", "v4l2", "/dev/video12"),
        ("/dev/video2", "v4l2", "/dev/video2"),
        ("V4L2:///dev/v4l/by-id/usb-cam", "v4l2", "/dev/v4l/by-id/usb-cam"),
        ("picamera2://1", "picamera2", "1"),
        ("/clips/a b%20?#ä.mp4", "file", "/clips/a b%20?#ä.mp4"),
        ("file:///clips/a%20b%25%3F%23%C3%A4.mp4?loop=1", "file", "/clips/a b%?#ä.mp4"),
        ("file:///clips/take #2.mp4?loop=1", "file", "/clips/take #2.mp4"),
    ],
)
def test_short_forms_and_uris(text, scheme, location):
    uri = parse_uri(text)
    assert (uri.scheme, uri.location) == (scheme, location)


ODD_NAMES = [
    "a b.mp4",
    "100%.mp4",
    "50%25.mp4",
    "what?.mp4",
    "a#b.mp4",
    "käse ✓.mp4",
    "me@home:1.mp4",
    "x&y=z+1.mp4",
    "7",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_work_in_every_form(name, clip, tmp_path, monkeypatch):
    path = Path(shutil.copy(clip, tmp_path / name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for form in (
        str(path),
        f"./{name}",
        f"~/{name}",
        path.as_uri(),
        f"file://~/{quote(name)}",
        f"file://{quote(name)}",
    ):
        assert len(play(form)) == 20, form
    assert len(play(f"{path.as_uri()}?loop=1", limit=25)) == 25


def test_a_film_in_shared_memory_is_no_device(clip):
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=clip.suffix) as film:  # it's what is tested
        film.write(clip.read_bytes())
        film.flush()
        assert len(play(film.name)) == 20


def test_a_folder_is_its_pictures(folder):
    assert parse_uri(str(folder)).scheme == "images"


def test_a_name_that_is_not_utf8_is_an_error_and_not_a_crash(clip, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(clip, path)
    fails(str(path), InputError, "caf%E9.mp4", "rename")
    fails(f"file://{tmp_path}/caf%E9.mp4", InputError, "rename")


def test_an_unknown_user_s_home_is_just_not_there():
    fails("~nobody-of-that-name/clip.mp4", InputError, "isn't there")
    fails("images://~nobody-of-that-name", InputError)


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("rtsp://ada:pw@cam:554/live?token=1#x", "rtsp://cam:554/live"),
        ("rtsp://ada:p%40w@[fe80::1]:554/live/1", "rtsp://[fe80::1]:554/live/1"),
        ("rtsp://a@b:c@d:e@cam/live", "rtsp://cam/live"),
        ("http://cam/user=ada&password=pw&channel=1", "http://cam"),
        ("http://cam:8080?action=stream", "http://cam:8080"),
        ("rtsp://ada:p/w@cam/live", "rtsp://hidden"),
        ("file:///my%20clips/a@b:1%23.mp4?loop=1", "file:///my%20clips/a@b:1%23.mp4"),
        ("v4l2:///dev/video0", "v4l2:///dev/video0"),
        ("gstreamer://rtspsrc location=rtsp://ada:pw@cam/x ! decodebin", "gstreamer://rtspsrc"),
        ("gstreamer://nvarguscamerasrc?sensor_id=0", "gstreamer://nvarguscamerasrc"),
        ("synthetic://?fps=5", "synthetic://"),
    ],
)
def test_the_public_uri(uri, public):
    assert parse_uri(uri).public == public


awkward = st.text("@:/?#%&=![] ä\\\"'\n", max_size=8)


@given(scheme=st.sampled_from(["rtsp", "https", "rtmp"]), middle=awkward, user=awkward, encode=st.booleans())
def test_the_public_uri_never_shows_credentials_or_query(scheme, middle, user, encode):
    secret = f"S3C{middle}RET"
    name = f"S3C{user}RET"
    if encode:
        secret, name = quote(secret, safe=""), quote(name, safe="")
    for address in (
        f"{scheme}://{name}:{secret}@cam.local:554/live?token={secret}#{secret}",
        f"{scheme}://{secret}@cam.local",
        f"{scheme}://cam.local/live?{name}={secret}",
        f"{scheme}://cam.local/user={name}&password={secret}",
        f"gstreamer://rtspsrc user-id={name} user-pw={secret} location=rtsp://{name}:{secret}@cam/x",
    ):
        public = parse_uri(address).public
        assert "S3C" not in public
        assert "RET" not in public
        assert public.isascii()
        assert public.isprintable()


@pytest.mark.parametrize("text", ["ada:S3CRET@cam/live", "rtsp:ada:S3CRET@cam/live", "rtsp:/ada:S3CRET@cam"])
def test_a_forgotten_scheme_does_not_show_the_password(text):
    assert "S3CRET" not in fails(text, UsageError, "rtsp://user:password@host/path")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("synthetic://?speed=1", ["speed", "fps, frames"]),
        ("synthetic://?fps=0", ["fps=0"]),
        ("synthetic://?fps=nan", ["fps=nan"]),
        ("synthetic://?fps=fast", ["fps=fast"]),
        ("synthetic://?frames=-1", ["frames=-1"]),
        ("synthetic://?frames=1.5", ["frames=1.5"]),
        ("file:///clip.mp4?loop=yes", ["loop=yes", "0 or 1"]),
        ("file:///clip.mp4?loop", ["loop="]),
        ("file:///clip.mp4?rewind=1", ["rewind", "realtime, loop"]),
        ("images:///folder?fps=-2", ["fps=-2"]),
        ("images:///folder?realtime=1", ["realtime", "fps, loop"]),
        ("v4l2:///dev/video0?fourcc=YUYV", ["fourcc", "no options"]),
        ("picamera2://0?fps=3", ["fps", "no options"]),
        ("picamera2://front", ["picamera2://0"]),
        ("gstreamer://?pattern=ball", ["gstreamer://ELEMENT"]),
        ("gstreamer://a!b", ["gstreamer://ELEMENT"]),
        ("", ["docs/cameras.md"]),
    ],
)
def test_bad_options_are_usage_errors(uri, parts):
    fails(uri, UsageError, *parts)


# Video files


def test_a_file_gives_every_picture_with_its_time(clip):
    with opened(str(clip)) as camera:
        assert not camera.live
        assert "64x48 at 10 fps" in camera.description
    pictures = play(str(clip))
    assert levels(pictures) == list(range(20))
    assert [picture.stream_s for picture in pictures] == pytest.approx([n / 10 for n in range(20)])


def test_a_looping_file_goes_on_in_time(clip):
    pictures = play(f"{clip.as_uri()}?loop=1", limit=50)
    assert levels(pictures) == [n % 20 for n in range(50)]
    assert [picture.stream_s for picture in pictures] == pytest.approx([n / 10 for n in range(50)])


def test_a_realtime_file_is_live(clip):
    with opened(f"{clip.as_uri()}?realtime=1") as camera:
        assert camera.live
        assert [camera.read().stream_s for _ in range(20)] == pytest.approx([n / 10 for n in range(20)])


def test_a_file_without_timestamps_goes_by_its_frame_rate(tmp_path):
    (tmp_path / "clip.mjpg").write_bytes(b"".join(map(jpeg, range(20))))
    times = [picture.stream_s for picture in play(str(tmp_path / "clip.mjpg"))]
    assert times == pytest.approx([n / 25 for n in range(20)], abs=0.001)


@given(
    fps=st.floats(0.01, 1000),
    timestamps=st.lists(st.floats() | st.floats(-20, 20), max_size=40),
)
def test_the_media_clock_only_goes_forward(fps, timestamps):
    clock = video.MediaClock(fps)
    times = [clock.tick(timestamp) for timestamp in timestamps]
    assert all(map(math.isfinite, times))
    assert times[:1] in ([], [0.0])
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(0 < step <= max(video.LONGEST_STEP_S, 1 / fps) + 1e-6 for step in steps)


def test_the_media_clock_follows_timestamps_that_make_sense():
    clock = video.MediaClock(10)
    assert [clock.tick(t) for t in (5.0, 5.5, 5.6, 9.0)] == pytest.approx([0, 0.5, 0.6, 4.0])
    # Begun again, then stuck, then off by an hour: a frame's time each, and then the file's own pace again.
    assert [clock.tick(t) for t in (5.0, 5.5, 5.5, 3600.0, 3600.5)] == pytest.approx([4.1, 4.6, 4.7, 4.8, 5.3])


def test_a_file_that_ends_early_plays_to_where_it_decodes(tmp_path, caplog):
    path = write_video(tmp_path / "clip.avi", "MJPG", 20)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + (len(data) - data.index(b"movi")) // 3])
    numbers = levels(play(str(path)))
    assert 3 <= len(numbers) <= 10
    assert numbers == list(range(len(numbers)))
    assert f"{path} ends early: {len(numbers)} of about 20 pictures" in caplog.text


def test_a_whole_file_ends_without_a_warning(clip, caplog):
    play(str(clip))
    assert caplog.text == ""


def test_files_that_are_no_video(clip, tmp_path, folder):
    files = {
        "empty.mp4": b"",
        "notes.mp4": b"These are my notes.\n" * 100,
        "noise.mp4": np.random.default_rng(1).bytes(5000),
        "cut.mp4": clip.read_bytes()[:200],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    fails(str(tmp_path / "empty.mp4"), InputError, "empty.mp4 is empty")
    for name in ("notes.mp4", "noise.mp4", "cut.mp4"):
        fails(str(tmp_path / name), InputError, str(tmp_path / name), "isn't a video")
    fails(str(tmp_path / "none.mp4"), InputError, str(tmp_path / "none.mp4"), "isn't there")
    fails(str(tmp_path / ("long" * 75 + ".mp4")), InputError, "File name too long")
    fails(f"file://{folder}", InputError, f"images://{folder}")


def test_what_opencv_and_ffmpeg_say_stays_off_the_terminal(tmp_path, clip, folder):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200])
    (folder / "shot0.jpg").write_bytes(jpeg(3)[:300])
    code = (
        "import sys; from edgefer.cameras import open_camera, parse_uri; from edgefer.settings import FrameSettings\n"
        "for uri in sys.argv[1:]:\n"
        "    try: open_camera(parse_uri(uri), FrameSettings()).read(); print('played')\n"
        "    except OSError as error: print(type(error).__name__)\n"
        "import logging; logging.disable()\n"
    )
    ran = run(code, str(tmp_path / "cut.mp4"), str(folder), "/dev/null", "http://127.0.0.1:9/")
    assert ran.stdout.split() == ["InputError", "played", "CameraError", "CameraError"]
    assert [line for line in ran.stderr.splitlines() if "leaving it out" not in line] == []


# Folders of pictures


def test_a_folder_gives_its_pictures_in_the_order_that_people_count(folder):
    (folder / "notes.txt").write_text("no picture")
    (folder / "._shot2.png").write_text("macOS leaves these")
    pictures = play(f"images://{folder}?fps=2")
    assert levels(pictures) == [0, 1, 2]
    assert [picture.stream_s for picture in pictures] == [0, 0.5, 1]


def test_a_looping_folder_begins_again(folder):
    pictures = play(f"images://{folder}?loop=1", limit=7)
    assert levels(pictures) == [0, 1, 2, 0, 1, 2, 0]
    assert [picture.stream_s for picture in pictures] == list(range(7))


def test_a_broken_picture_is_left_out_and_named(folder, caplog):
    (folder / "shot1.jpg").write_bytes(b"not a picture")
    (folder / "shot3.png").write_bytes(b"")
    assert levels(play(f"images://{folder}?loop=1", limit=6)) == [0, 1, 2, 0, 1, 2]
    # Once, not in every round.
    assert [str(record.args[0]).split(": ")[0] for record in caplog.records] == [
        f"{folder}/shot1.jpg",
        f"{folder}/shot3.png",
    ]


def test_folders_without_pictures(tmp_path, clip):
    fails(f"images://{tmp_path}/none", InputError, f"{tmp_path}/none", "No such file")
    fails(f"images://{tmp_path}", InputError, str(tmp_path), ".jpg")
    fails(f"images://{clip}", InputError, "no folder")
    (tmp_path / "a.jpg").write_bytes(b"broken")
    (tmp_path / "b.png").write_bytes(b"broken too")
    fails(f"images://{tmp_path}", InputError, "none of its 2 pictures")


# The test picture


def test_the_test_picture_is_the_same_in_every_run_and_moves():
    first, second = play("synthetic://?frames=5"), play("synthetic://?frames=5")
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, second, strict=True))
    assert not np.array_equal(first[0].image, first[1].image)
    assert [picture.stream_s for picture in first] == pytest.approx([n / 30 for n in range(5)])
    assert first[0].image.shape == (240, 320, 3)
    red, green, blue, white = (first[0].image[y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)))
    assert (red, green, blue, white) == ([0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 4320), (7680, 64)])
def test_the_test_picture_in_every_size(width, height):
    with opened("synthetic://?frames=1", FrameSettings(width=width, height=height)) as camera:
        assert camera.read().image.shape == (height, width, 3)


def test_the_test_picture_fails_when_asked_to():
    with opened("synthetic://?frames=9&fail_after=2") as camera:
        camera.read()
        camera.read()
        with pytest.raises(CameraError):
            camera.read()


def test_the_test_picture_is_live_unless_it_ends():
    with opened("synthetic://?fps=1000") as camera:
        assert camera.live
        camera.read()
        camera.read()
    with opened("synthetic://?frames=1") as camera:
        assert not camera.live


# Cameras on the network


class MjpegCamera(ThreadingHTTPServer):
    """A camera that sends JPEGs over HTTP; `/stall` and `/drop` stop after some, `/private` asks for a password."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), MjpegHandler)
        self.done = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def uri(self, path: str, credentials: str = "") -> str:
        return f"http://{credentials}127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what these tests are about


class MjpegHandler(BaseHTTPRequestHandler):
    server: MjpegCamera

    def do_GET(self):
        path = self.path.strip("/").split("?")[0]
        wanted = "Basic " + base64.b64encode(b"ada:p@ss:w/rd").decode()
        if path == "private" and self.headers["Authorization"] != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        if path == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Welcome to your camera</html>")
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in itertools.count():
            if path in ("stall", "drop") and number == 10:
                break
            picture = jpeg(number % 20)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            self.wfile.write(head.encode() + picture + b"\r\n")
            if self.server.done.wait(0.01):
                return
        if path == "stall":
            self.server.done.wait()

    def log_message(self, *_):
        pass


@pytest.fixture
def mjpeg(monkeypatch):
    monkeypatch.setattr(video, "READ_S", 0.5)
    server = MjpegCamera()
    yield server
    server.done.set()
    server.shutdown()
    server.server_close()


def test_a_network_camera_is_live(mjpeg):
    with opened(mjpeg.uri("live?quality=5")) as camera:
        assert camera.live
        assert f"http://127.0.0.1:{mjpeg.server_port}/live: 64x48" in camera.description
        numbers = levels([camera.read() for _ in range(15)])
    assert numbers == [(numbers[0] + n) % 20 for n in range(15)]


def test_a_network_camera_with_a_password(mjpeg):
    with opened(mjpeg.uri("private", "ada:p%40ss%3Aw%2Frd@")) as camera:
        assert camera.read().image.shape == (48, 64, 3)
        assert "ada" not in camera.description


def test_a_network_camera_in_its_own_process_shows_no_password_to_other_users(mjpeg):
    uri = parse_uri(mjpeg.uri("private", "ada:p%40ss%3Aw%2Frd@"))
    with contextlib.closing(open_camera(uri, WANTED)) as camera:
        assert camera.read().image.shape == (48, 64, 3)
        command = Path(f"/proc/{camera._process.pid}/cmdline").read_text()
        assert "edgefer.cameras._worker" in command
        assert "ss%3A" not in command


def test_a_wrong_password_is_not_shown(mjpeg):
    message = fails(mjpeg.uri("private", "ada:S3CRET@"), CameraError, "user and the password right")
    assert "S3CRET" not in message
    assert "ada" not in message


@pytest.mark.parametrize("path", ["stall", "drop"])
def test_a_network_camera_that_stops_is_lost(mjpeg, path):
    with opened(mjpeg.uri(path)) as camera:
        pictures: list = []
        with pytest.raises(CameraError, match=f"/{path} has stopped sending"):
            read_on(camera, pictures)
    assert levels(pictures)[-1] == 9


def test_network_cameras_that_give_nothing(mjpeg):
    fails(mjpeg.uri("page"), CameraError, "/page", "something answers there")
    free = mjpeg.server_port
    mjpeg.shutdown()
    mjpeg.server_close()
    message = fails(f"http://ada:S3CRET@127.0.0.1:{free}/x", CameraError, f"nothing answers at port {free}")
    assert "S3CRET" not in message
    message = fails(f"rtsp://ada:S3CRET@127.0.0.1:{free}/x?a=b", CameraError, f"rtsp://127.0.0.1:{free}/x gives no")
    assert "S3CRET" not in message
    assert "S3CRET" not in fails("rtsp://ada:S3CRET@[::1/x", CameraError, "isn't well formed")
    assert "S3CRET" not in fails("http://ada:S3CRET@host:port/x", CameraError, "isn't well formed")
    fails("rtsp:///x", CameraError, "isn't well formed")


# Webcams


@pytest.fixture(scope="module")
def webcams(tmp_path_factory) -> dict[str, dict]:
    """What happened when up to twenty pictures of a webcam were read, for every mode of fake_v4l2.c."""
    if shutil.which("cc") is None:
        pytest.skip("the fake webcam needs a C compiler: `sudo apt-get install gcc libc6-dev`")
    folder = tmp_path_factory.mktemp("v4l2")
    driver, device, jpeg = folder / "fake_v4l2.so", folder / "video0", folder / "scene.jpg"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", driver, TESTS / "fake_v4l2.c", "-ldl"], check=True)
    scene = np.full((480, 640, 3), (0, 0, 255), np.uint8)
    scene[:, 320:] = (255, 0, 0)
    cv2.imwrite(str(jpeg), scene)
    code = """
import json, os, sys
from edgefer.cameras import parse_uri, v4l2
from edgefer.settings import FrameSettings
device, all_told = sys.argv[1], {}
def play(width):
    camera = v4l2.open_source(parse_uri("v4l2://" + device), FrameSettings(width=width, height=480, fps=30))
    told["description"], told["live"] = camera.description, camera.live
    try:
        for told["pictures"] in range(20):
            image = camera.read().image
            told["shape"], told["left"], told["right"] = image.shape, image[5, 5].tolist(), image[5, -5].tolist()
    finally:
        camera.close()
for mode in "mjpg yuyv damaged silent gone busy denied forbidden codec receiver metadata".split():
    os.environ["FAKE_V4L2_MODE"] = mode
    if not os.path.islink(device):
        os.symlink("/dev/null", device)  # a character device, as a camera is
    all_told[mode] = told = {"pictures": 0}
    try:
        play(200 if mode == "yuyv" else 640)
    except Exception as error:
        told["error"], told["message"] = type(error).__name__, str(error)
print(json.dumps(all_told))
"""
    fake = {"LD_PRELOAD": str(driver), "FAKE_V4L2": str(device), "FAKE_V4L2_JPEG": str(jpeg)}
    ran = run(code, str(device), OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT="1", **fake)
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def test_a_webcam_gives_mjpg_in_the_right_colours(webcams):
    told = webcams["mjpg"]
    assert told["live"]
    assert told["description"].endswith("video0 (Fake Cam): MJPG 640x480 at 30 fps")
    assert told["shape"] == [480, 640, 3]
    assert told["left"] == pytest.approx([0, 0, 255], abs=3)
    assert told["right"] == pytest.approx([255, 0, 0], abs=3)


def test_a_webcam_tells_what_it_really_gives(webcams):
    told = webcams["yuyv"]
    assert told["description"].endswith("YUYV 320x240 at 30 fps")
    assert told["shape"] == [240, 320, 3]


def test_a_damaged_picture_is_passed_over(webcams):
    assert webcams["damaged"]["pictures"] == 19


def test_an_unplugged_webcam_is_lost(webcams):
    told = webcams["gone"]
    assert told["error"] == "CameraError"
    assert "video0 was unplugged" in told["message"]
    assert 0 < told["pictures"] < 10


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("silent", "opens but gives no picture"),
        ("busy", "another program uses"),
        ("denied", "usermod -aG video"),
        ("forbidden", "DeviceAllow="),
        ("codec", "(bcm2835-codec-decode) gives no pictures"),
        ("metadata", "(Fake Cam) gives no pictures"),
        ("receiver", "picamera2://0"),
    ],
)
def test_a_webcam_that_cannot_be_used_says_why(webcams, mode, part):
    told = webcams[mode]
    assert told["error"] == ("CameraBusyError" if mode == "busy" else "CameraError")
    assert part in told["message"]
    assert "video0" in told["message"]


def test_what_is_no_webcam_at_all(clip, tmp_path):
    fails("/dev/video99", CameraError, "there is no /dev/video99")
    fails("99", CameraError, "there is no /dev/video99")
    fails("v4l2:///dev/null", CameraError, "/dev/null isn't a camera")
    fails(f"v4l2://{clip}", CameraError, f"{clip} isn't a camera", "file://")
    fails(f"v4l2://{tmp_path}", CameraError, "isn't a camera")
    fails(f"v4l2://{clip}/x", CameraError, "there is no")


def plug_in(nodes: Path, devices: Path, name: str, card: str, index: int = 0) -> None:
    (nodes / name).mkdir(parents=True)
    (nodes / name / "name").write_text(f"{card}\n")
    (nodes / name / "index").write_text(f"{index}\n")
    devices.mkdir(exist_ok=True)
    (devices / name).touch()


def test_only_cameras_are_found(tmp_path):
    nodes, devices = tmp_path / "nodes", tmp_path / "dev"
    assert v4l2.find_cameras(nodes, devices) == []
    plug_in(nodes, devices, "video12", "HD Pro Webcam C920")
    plug_in(nodes, devices, "video13", "HD Pro Webcam C920", index=1)
    plug_in(nodes, devices, "video2", "Integrated Camera: Integrated C")
    others = [
        "bcm2835-codec-decode",
        "bcm2835-isp-capture0",
        "unicam-image",
        "rp1-cfe-csi2_ch0",
        "pispbe-input",
        "rpivid",
    ]
    for number, card in enumerate(others, 20):
        plug_in(nodes, devices, f"video{number}", card)
    plug_in(nodes, devices, "v4l-subdev0", "imx708")
    plug_in(nodes, devices, "video4", "A camera that isn't passed into this container")
    (devices / "video4").unlink()
    assert v4l2.find_cameras(nodes, devices) == [f"v4l2://{devices}/video2", f"v4l2://{devices}/video12"]


def test_a_webcam_that_is_unplugged_while_its_name_is_looked_up_has_none_or_its_own(tmp_path):
    node, names = tmp_path / "video0", tmp_path / "by-id"
    node.touch()
    names.mkdir()
    mine = names / "usb-mine-index0"
    (names / "usb-another-index0").symlink_to(tmp_path / "gone")
    tried = threading.Event()

    def plug_in_and_out() -> None:
        while not tried.is_set():
            mine.symlink_to(node)
            mine.unlink()

    hand = threading.Thread(target=plug_in_and_out)
    hand.start()
    try:
        found = {v4l2.lasting_name(parse_uri(f"v4l2://{node}"), names) for _ in range(2000)}
    finally:
        tried.set()
        hand.join()
    assert found <= {None, mine}
    mine.symlink_to(node)
    assert v4l2.lasting_name(parse_uri(f"v4l2://{node}"), names) == mine


def test_auto_takes_the_first_camera_and_says_so_where_there_is_none(monkeypatch):
    for module in (v4l2, picamera2, gstreamer):
        monkeypatch.setattr(module, "find_cameras", list)
    with pytest.raises(CameraError, match="no camera was found"):
        parse_uri("auto")
    monkeypatch.setattr(v4l2, "find_cameras", lambda: ["v4l2:///dev/video2", "v4l2:///dev/video4"])
    assert parse_uri("auto").public == "v4l2:///dev/video2"
    monkeypatch.setattr(picamera2, "find_cameras", lambda: ["picamera2://0"])
    assert parse_uri("auto").public == "picamera2://0"


# The Pi's own cameras


def pi(code: str, *arguments: str, state: str = "") -> subprocess.CompletedProcess:
    """Run code with the stand-in for picamera2, whose cameras are in some state."""
    head = """
import os, sys
from pathlib import Path
from edgefer.cameras import parse_uri, picamera2
from edgefer.errors import CameraError
from edgefer.settings import FrameSettings
WANTED = FrameSettings(width=641, height=480, fps=15)
def opened(number=0):
    return picamera2.open_source(parse_uri(f"picamera2://{number}"), WANTED)
def told(state, number=0):
    os.environ["STAND_IN"] = state
    try:
        return opened(number).description
    except CameraError as error:
        return str(error)
"""
    return run(head + code, *arguments, PYTHONPATH=str(TESTS / "stand_in"), STAND_IN=state)


def test_pi_cameras():
    code = """
for state, number in ("none", 0), ("", 2), ("busy", 0), ("usb", 0), ("silent", 0):
    print(told(state, number))
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    told("busy")
print(len(os.listdir("/proc/self/fd")) - before)
os.environ["STAND_IN"] = ""
camera = opened(0)  # none of the others kept it
print(camera.description)
print(*camera.read().image[0, 0], camera.live)
camera.close()
"""
    ran = pi(code)
    none, missing, busy, usb, silent, leaked, description, picture = ran.stdout.splitlines()
    assert "there is no Pi camera 0, 0 found" in none
    assert "there is no Pi camera 2, 2 found" in missing
    assert "Device or resource busy" in busy
    assert "another program" in busy
    assert "v4l2:///dev/video0" in usb
    assert "ribbon cable" in silent
    assert leaked == "0"
    assert description == "Pi camera 0 (imx708): RGB888 640x480 at up to 15 fps"
    assert picture == "0 128 255 True"  # BGR, of an orange scene
    assert ran.stderr == ""


def test_a_pi_camera_that_never_stops_does_not_keep_the_process():
    code = """
from edgefer.latest import Latest
latest = Latest("picamera2://0", WANTED)
print(latest.next(30).camera)
latest.close(30)
"""
    ran = pi(code, state="hangs")
    assert ran.stdout.splitlines() == ["picamera2://0"]
    assert ran.stderr == ""


def test_pi_cameras_are_found_where_the_kernel_has_found_a_sensor(tmp_path):
    webcam, sensor, devices = tmp_path / "webcam", tmp_path / "sensor", tmp_path / "dev"
    plug_in(webcam, devices, "video0", "HD Pro Webcam C920")
    plug_in(sensor, devices, "video0", "HD Pro Webcam C920")
    plug_in(sensor, devices, "video1", "rp1-cfe-csi2_ch0")
    code = """
webcam, sensor = map(Path, sys.argv[1:])
print(picamera2.find_cameras(webcam), "picamera2" in sys.modules)
for state in "", "usb", "none":
    os.environ["STAND_IN"] = state
    print(*picamera2.find_cameras(sensor))
"""
    only_webcam, two, usb, none = pi(code, str(webcam), str(sensor)).stdout.splitlines()
    assert only_webcam == "[] False"  # picamera2 isn't even loaded
    assert two == "picamera2://0 picamera2://1"
    assert usb == ""
    assert none == ""


@pytest.mark.skipif(importlib.util.find_spec("picamera2") is not None, reason="picamera2 is installed here")
def test_a_missing_picamera2_says_how_to_get_it(tmp_path):
    fails("picamera2://0", CameraError, "apt install python3-picamera2", "--system-site-packages")
    plug_in(tmp_path / "nodes", tmp_path / "dev", "video0", "unicam-image")
    assert picamera2.find_cameras(tmp_path / "nodes") == []


# GStreamer


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        (
            "gstreamer://nvarguscamerasrc?sensor_id=1",
            (
                'nvarguscamerasrc sensor_id="1" ! video/x-raw(memory:NVMM),format=NV12,width=320,height=240,'
                f"framerate=30/1 ! nvvidconv ! video/x-raw,format=BGRx ! {gstreamer.SINK}"
            ),
        ),
        ("gstreamer://libcamerasrc", f"libcamerasrc ! {gstreamer.SINK}"),
        (
            "gstreamer://v4l2src?device=/dev/video0&extra-controls=c,%22quoted%22",
            rf'v4l2src device="/dev/video0" extra-controls="c,\"quoted\"" ! {gstreamer.SINK}',
        ),
        (
            "gstreamer://v4l2src device=/dev/video0 ! image/jpeg,width=1280 ! jpegdec",
            f"v4l2src device=/dev/video0 ! image/jpeg,width=1280 ! jpegdec ! {gstreamer.SINK}",
        ),
        (
            "gstreamer://rtspsrc location=rtsp://cam/x?a=1#2 ! decodebin ! videoconvert ! appsink",
            "rtspsrc location=rtsp://cam/x?a=1#2 ! decodebin ! videoconvert ! appsink",
        ),
    ],
)
def test_the_pipeline_of_a_uri(uri, line):
    assert gstreamer.pipeline(parse_uri(uri), WANTED) == line


def test_a_frame_rate_that_is_no_whole_number():
    wanted = FrameSettings(fps=30000 / 1001)
    assert "framerate=30000/1001 " in gstreamer.pipeline(parse_uri("gstreamer://nvarguscamerasrc"), wanted)


has_gstreamer = cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER)


def test_a_jetsons_cameras_are_found_where_opencv_can_read_them(tmp_path, monkeypatch):
    nodes, devices = tmp_path / "nodes", tmp_path / "dev"
    for number, name in enumerate(["vi-output, imx219 9-0010", "HD Pro Webcam C920", "vi-output, imx219 10-0010"]):
        plug_in(nodes, devices, f"video{number}", name)
    assert v4l2.find_cameras(nodes, devices) == [f"v4l2://{devices}/video1"]
    for has, found in (True, ["0", "1"]), (False, []):
        monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _, has=has: has)
        assert gstreamer.find_cameras(nodes) == [f"gstreamer://nvarguscamerasrc?sensor_id={n}" for n in found]


@pytest.mark.skipif(has_gstreamer, reason="this OpenCV has GStreamer")
def test_an_opencv_without_gstreamer_says_so():
    fails("gstreamer://videotestsrc", CameraError, "no GStreamer", "--system-site-packages")


@pytest.mark.skipif(not has_gstreamer, reason="this OpenCV has no GStreamer")
def test_a_pipeline_plays_and_ends():
    with opened(
        "gstreamer://videotestsrc num-buffers=20 is-live=true pattern=red ! video/x-raw,width=64,height=48"
    ) as camera:
        assert camera.live
        assert camera.read().image[0, 0].tolist() == [0, 0, 255]
        with pytest.raises(CameraError, match="has stopped"):
            read_on(camera, [])


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python code in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_logs_name_no_password(mjpeg, caplog):
    caplog.set_level(logging.DEBUG)
    with opened(mjpeg.uri("private", "ada:p%40ss%3Aw%2Frd@")) as camera:
        camera.read()
    assert "ss%3A" not in caplog.text
    assert "ada" not in caplog.text
