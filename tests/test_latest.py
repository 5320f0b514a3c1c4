"""The newest frame: what is dropped and what never, what a lost camera does, and that stopping always works."""

import errno
import logging
import threading
import time
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefer import latest
from edgefer.cameras import EndOfStream, gstreamer, picamera2, synthetic, v4l2
from edgefer.errors import CameraError, InputError, UsageError
from edgefer.latest import Latest, upright
from edgefer.settings import FrameSettings

SMALL = FrameSettings(width=64, height=64, fps=200)
PATIENCE_S = 30.0
"""A guard against waiting for ever; nothing here takes so long."""

RED, GREEN, BLUE, WHITE = (list(colour) for colour in synthetic.CORNERS_BGR)


@pytest.fixture
def watch(closing):
    """Starts a Latest that is closed after the test."""

    def start(uri: str, settings: FrameSettings = SMALL) -> Latest:
        started = Latest(uri, settings)
        closing.callback(started.close, 0.2)
        return started

    return start


@pytest.fixture
def impatient(monkeypatch):
    """A lost camera is opened again almost at once."""
    monkeypatch.setattr(latest, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(latest, "LAST_RETRY_S", 0.08)


def next_frame(camera: Latest):
    frame = camera.next(PATIENCE_S)
    assert frame is not None
    return frame


def wait_until(happened) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline_s, "it didn't happen"
        time.sleep(0.001)


def retries(caplog) -> list[float]:
    """The waits before each new opening, without jitter."""
    return [record.args[0] for record in caplog.records if record.msg.startswith("the next try")]


def test_a_live_camera_gives_the_newest_frame_only(watch):
    camera = watch("synthetic://")
    first = next_frame(camera)
    dropped = camera.state.dropped_frames  # on a busy machine, the first is not picture 0
    wait_until(lambda: camera.state.dropped_frames >= dropped + 5)
    newer = next_frame(camera)
    assert newer.number >= first.number + 6
    assert camera.state.dropped_frames >= newer.number - first.number - 1


def test_of_a_file_no_frame_is_left_out(watch):
    camera = watch("synthetic://?frames=50")
    frames = [next_frame(camera) for _ in range(50)]
    assert [frame.number for frame in frames] == list(range(50))
    assert [frame.stream_s for frame in frames] == pytest.approx([n / 200 for n in range(50)])
    assert camera.state == latest.CameraState(None, 0, 0)


def test_the_end_of_a_file_is_told_once_its_frames_are_taken_and_ever_after(watch):
    camera = watch("synthetic://?frames=2")
    assert [next_frame(camera).number, next_frame(camera).number] == [0, 1]
    for _ in range(2):
        with pytest.raises(EndOfStream):
            camera.next(PATIENCE_S)
    assert camera.state.problem is None


def test_a_frame_carries_its_number_times_and_camera(watch):
    camera = watch("synthetic://?fps=100")
    before_s, frame, later = time.monotonic(), next_frame(camera), next_frame(camera)
    assert (frame.width, frame.height) == (64, 64)
    assert frame.camera == "synthetic://"
    assert frame.time.utcoffset() == timedelta(0)
    assert later.captured_at > frame.captured_at > before_s - PATIENCE_S
    assert later.time >= frame.time
    assert later.number > frame.number


def test_without_a_frame_in_time_there_is_none(watch):
    camera = watch("synthetic://?stall_after=0")
    assert camera.next(0.01) is None


def test_a_lost_camera_is_opened_again_and_told(watch, impatient, caplog):
    caplog.set_level(logging.INFO)
    camera = watch("synthetic://?fail_after=3")
    wait_until(lambda: camera.state.reopened >= 2)
    numbers = [next_frame(camera).number for _ in range(5)]
    assert numbers == sorted(set(numbers))  # it goes on counting where it was
    told = [record.getMessage() for record in caplog.records]
    assert "synthetic:// fails after 3 pictures, as it was asked to; trying again" in told
    assert "the camera is back" in told


def test_a_lost_camera_is_a_problem_until_it_is_back(watch, monkeypatch):
    monkeypatch.setattr(latest, "FIRST_RETRY_S", 60.0)
    camera = watch("synthetic://?fail_after=1")
    next_frame(camera)
    wait_until(lambda: camera.state.problem)
    assert "fails after 1 pictures" in camera.state.problem
    assert camera.state.reopened == 0
    assert camera.next(0.01) is None


def test_the_waits_between_openings_double_up_to_a_limit(watch, impatient, caplog):
    caplog.set_level(logging.DEBUG)
    watch("/dev/video99")
    wait_until(lambda: len(retries(caplog)) >= 6)
    assert retries(caplog)[:6] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.08, 0.08])


def test_the_waits_begin_anew_after_a_camera_that_worked_for_long(watch, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(latest, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(latest, "LAST_RETRY_S", 0.02)
    watch("synthetic://?fail_after=10")  # that is 0.05 s
    wait_until(lambda: len(retries(caplog)) >= 3)
    assert retries(caplog)[:3] == pytest.approx([0.01, 0.01, 0.01])


def test_the_same_problem_is_logged_once(watch, impatient, caplog):
    caplog.set_level(logging.DEBUG)
    watch("/dev/video99")
    wait_until(lambda: len(retries(caplog)) >= 4)
    assert [record.levelname for record in caplog.records if "there is no /dev/video99" in record.getMessage()][:3] == [
        "ERROR",
        "DEBUG",
        "DEBUG",
    ]


def test_a_machine_that_is_short_of_something_has_lost_its_camera_for_a_while(watch, impatient, monkeypatch):
    open_it, lacks = latest.open_camera, [OSError(errno.EMFILE, "Too many open files")]

    def lacking(*arguments):
        if lacks:
            raise lacks.pop()
        return open_it(*arguments)

    monkeypatch.setattr(latest, "open_camera", lacking)
    assert next_frame(watch("synthetic://")).number == 0


def test_a_camera_that_comes_later_is_found(watch, impatient, monkeypatch):
    there: list[str] = []
    monkeypatch.setattr(v4l2, "find_cameras", lambda: there)
    for module in (picamera2, gstreamer):
        monkeypatch.setattr(module, "find_cameras", list)
    camera = watch("auto")
    wait_until(lambda: camera.state.problem)
    assert "no camera was found" in camera.state.problem
    there.append("synthetic://?fps=100")
    assert next_frame(camera).camera == "synthetic://"
    assert camera.state == latest.CameraState(None, camera.state.dropped_frames, 0)


def test_a_stuck_camera_is_a_problem_and_does_not_keep_close_from_returning(monkeypatch, caplog):
    monkeypatch.setattr(latest, "LOST_AFTER_S", 0.05)
    camera = Latest("synthetic://?stall_after=2", SMALL)
    next_frame(camera)
    wait_until(lambda: camera.state.problem)
    assert "no frame" in camera.state.problem
    camera.close(0.05)
    assert "leaving it" in caplog.text


@pytest.mark.parametrize("source", ["test picture", "film"])
def test_what_is_played_at_its_pace_is_never_shown_before_its_time(watch, tmp_path, source):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), number * 8, np.uint8))
    writer.release()
    camera = watch({"test picture": "synthetic://?fps=20", "film": f"{path.as_uri()}?realtime=1"}[source])
    frames = [next_frame(camera) for _ in range(5)]
    opened_s = camera._opened_s
    assert all(frame.captured_at - opened_s >= frame.stream_s for frame in frames)


def test_a_slow_reader_of_a_file_is_no_problem_of_the_camera(watch, monkeypatch):
    monkeypatch.setattr(latest, "LOST_AFTER_S", 0.0)
    camera = watch("synthetic://?frames=3")
    next_frame(camera)
    wait_until(lambda: camera._waiting_since_s is None)  # the next but one waits for us
    assert camera.state.problem is None


def test_close_ends_a_camera_that_only_waits_for_the_next_pictures_time():
    camera = Latest("synthetic://?fps=0.001", SMALL)
    next_frame(camera)
    camera.close(PATIENCE_S)
    assert not camera._thread.is_alive()


@pytest.mark.parametrize("uri", ["synthetic://", "synthetic://?frames=50", "/dev/video99"])
def test_close_ends_the_thread_and_may_be_called_twice(uri, caplog):
    camera = Latest(uri, SMALL)
    camera.next(0.01)
    camera.close(PATIENCE_S)
    camera.close(PATIENCE_S)
    assert not camera._thread.is_alive()
    assert "leaving it" not in caplog.text


def test_what_can_never_work_is_raised(watch, tmp_path):
    for uri, error in (
        (str(tmp_path / "none.mp4"), InputError),
        ("synthetic://?nonsense=1", UsageError),
        ("nonsense://", UsageError),
    ):
        with pytest.raises(error):
            watch(uri).next(PATIENCE_S)


def test_a_defect_of_ours_is_raised_and_not_swallowed(watch, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(latest, "open_camera", broken)
    with pytest.raises(ZeroDivisionError):
        watch("synthetic://").next(PATIENCE_S)


def test_a_camera_is_closed_before_it_is_opened_again(watch, impatient, monkeypatch):
    open_now, most = [], []

    class Counting(synthetic.SyntheticCamera):
        def close(self):
            super().close()
            if self in open_now:
                open_now.remove(self)

    def counted(*_):
        opened = Counting(width=64, height=64, fps=200, fail_after=2)
        open_now.append(opened)
        most.append(len(open_now))
        return opened

    monkeypatch.setattr(latest, "open_camera", counted)
    camera = watch("synthetic://")
    wait_until(lambda: camera.state.reopened >= 2)
    assert set(most) == {1}
    camera.close(PATIENCE_S)
    assert open_now == []


def test_frames_handed_over_between_threads_are_never_lost_or_doubled(watch):
    camera = watch("synthetic://?frames=200")
    taken: list[int] = []
    lock = threading.Lock()

    def take() -> None:
        try:
            while True:
                frame = next_frame(camera)
                with lock:
                    taken.append(frame.number)
        except EndOfStream:
            pass

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(taken) == list(range(200))


def corners(image) -> list:
    return [image[y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


@pytest.mark.parametrize(
    ("rotation", "mirror", "expected"),
    [
        # Top left, top right, bottom left, bottom right.
        (0, False, [RED, GREEN, BLUE, WHITE]),
        (90, False, [BLUE, RED, WHITE, GREEN]),
        (180, False, [WHITE, BLUE, GREEN, RED]),
        (270, False, [GREEN, WHITE, RED, BLUE]),
        (0, True, [GREEN, RED, WHITE, BLUE]),
        (90, True, [RED, BLUE, GREEN, WHITE]),
        (180, True, [BLUE, WHITE, RED, GREEN]),
        (270, True, [WHITE, GREEN, BLUE, RED]),
    ],
)
def test_a_frame_is_turned_and_mirrored_as_asked(watch, rotation, mirror, expected):
    settings = FrameSettings(width=96, height=64, rotation=rotation, mirror=mirror)
    frame = next_frame(watch("synthetic://?frames=1", settings))
    assert corners(frame.image) == expected
    assert (frame.width, frame.height) == ((64, 96) if rotation in (90, 270) else (96, 64))
    assert frame.image.dtype == np.uint8


def test_an_upright_picture_is_not_copied():
    image = np.zeros((4, 6, 3), np.uint8)
    assert upright(image, FrameSettings()) is image


def test_a_lost_camera_raises_only_in_the_capture_thread(watch, impatient):
    camera = watch("synthetic://?fail_after=0")
    wait_until(lambda: camera.state.problem)
    try:
        assert camera.next(0.05) is None
    except CameraError:
        pytest.fail("a camera may come back")


def test_a_played_video_goes_through_in_order(watch, tmp_path):
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), number * 8, np.uint8))
    writer.release()
    camera = watch(path)
    frames = [next_frame(camera) for _ in range(20)]
    assert [round(frame.image.mean() / 8) for frame in frames] == list(range(20))
    assert frames[-1].stream_s == pytest.approx(1.9)
    assert frames[-1].camera.startswith("file:///")
    with pytest.raises(EndOfStream):
        camera.next(PATIENCE_S)


def test_a_webcam_is_found_again_under_another_number(watch, impatient, monkeypatch, tmp_path):
    nodes, names = tmp_path / "dev", tmp_path / "by-id"
    nodes.mkdir()
    names.mkdir()
    mine = names / "usb-mine-index0"

    def plug_in(number: int) -> None:
        (nodes / f"video{number}").touch()
        mine.symlink_to(nodes / f"video{number}")

    plug_in(0)
    monkeypatch.setattr(v4l2.lasting_name, "__defaults__", (names,))
    opened: list[str] = []

    def open_it(uri, *_):
        try:
            opened.append(str(Path(uri.location).resolve(strict=True)))
        except OSError as error:
            raise CameraError(f"{uri.location} isn't there") from error
        return synthetic.SyntheticCamera(width=64, height=64, fps=200, fail_after=3)

    monkeypatch.setattr(latest, "open_camera", open_it)
    camera = watch(f"v4l2://{nodes}/video0")
    wait_until(lambda: opened)
    mine.unlink()
    wait_until(lambda: len(opened) >= 3)  # without its name, the number is all that is known
    assert set(opened) == {f"{nodes}/video0"}
    plug_in(0)
    known = len(opened) + 2
    wait_until(lambda: len(opened) >= known)  # its name is known again
    (nodes / "video0").unlink()
    mine.unlink()
    plug_in(1)
    (nodes / "video0").touch()  # another camera took its number
    wait_until(lambda: opened[-1].endswith("video1"))
    assert next_frame(camera).camera == f"v4l2://{nodes}/video0"  # as it was named
