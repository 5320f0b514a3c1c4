"""A camera in a process of its own that freezes, hangs, crashes or vanishes, seen through the daemon's own parts."""

import gc
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from brokers import wait_until

from edgefer import latest, sight
from edgefer.cameras import EndOfStream, _worker, open_camera, parse_uri
from edgefer.errors import CameraError, UsageError
from edgefer.latest import Latest
from edgefer.settings import FrameSettings

WANTED = FrameSettings(width=96, height=64, fps=50)


@pytest.fixture
def fault(tmp_path):
    """Tells the faulty camera what to do."""
    control = tmp_path / "fault"

    def tell(word: str) -> None:
        whole = tmp_path / "fault.new"
        whole.write_text(word)
        whole.rename(control)

    tell("ok")
    tell.uri = f"faulty://{control}"
    return tell


@pytest.fixture
def camera(fault, closing, monkeypatch):
    monkeypatch.setattr(latest, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(_worker, "SILENT_S", 1.0)
    monkeypatch.setattr(sight, "NOTICE_S", 1.0)
    camera = Latest(fault.uri, WANTED)
    closing.callback(camera.close, 5)
    assert camera.next(30) is not None
    return camera


def opened(uri: str, stop: threading.Event | None = None):
    return open_camera(parse_uri(uri), WANTED, stop)


def workers() -> list[int]:
    """The processes that we started and that are still there."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(number) for path in children for number in path.read_text().split()]


def is_well(camera: Latest) -> bool:
    return camera.next(0.05) is not None and camera.state.problem is None


def test_a_machine_that_is_short_of_files_is_a_lost_camera_and_leaks_none(fault):
    uri, limits = parse_uri(fault.uri), resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = Path("/proc/self/fd")
    gc.collect()  # what earlier tests left open would be closed meanwhile, and be enough for a driver
    with Path(os.devnull).open() as newest:
        before = len(list(ours.iterdir()))
        for spare in range(6):  # each of them fails at another step
            resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno() + spare, limits[1]))
            try:
                with pytest.raises(CameraError, match="its driver can't be started: Too many open files"):
                    _worker.WorkerCamera("edgefer.cameras.faulty", uri, WANTED)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(list(ours.iterdir())) == before


def test_a_worker_that_ends_before_it_is_spoken_to_is_a_lost_camera(fault, monkeypatch):
    spawn = _worker._spawn

    def killed(*files: int):
        process = spawn(*files)
        process.kill()  # as the system does where memory is short
        process.wait()
        return process

    monkeypatch.setattr(_worker, "_spawn", killed)
    with pytest.raises(CameraError, match=r"its driver crashed \(SIGKILL\)"):
        opened(fault.uri)


def test_a_worker_runs_no_code_of_the_current_folder(fault, tmp_path, monkeypatch):
    (tmp_path / "ctypes.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    opened(fault.uri).close()
    assert not Path("ran").exists()


def test_pictures_come_whole_in_order_and_with_the_time_of_their_capture(fault):
    camera = opened(fault.uri)
    try:
        assert "faulty camera, 96x64 at 50 fps" in camera.description
        before_s = time.monotonic()
        pictures = [camera.read() for _ in range(30)]
        assert all(one.captured_at < other.captured_at for one, other in itertools.pairwise(pictures))
        assert before_s - 1 < pictures[0].captured_at < pictures[-1].captured_at < time.monotonic()
        assert all(picture.image[0, 0].tolist() == [0, 0, 255] for picture in pictures)
        assert len({picture.image.tobytes() for picture in pictures}) == 30
    finally:
        camera.close()


def test_whoever_reads_late_gets_the_newest_picture(fault):
    camera = opened(fault.uri)
    try:
        first = camera.read()
        time.sleep(1)
        assert camera.read().captured_at > first.captured_at + 0.5
    finally:
        camera.close()


@pytest.mark.parametrize("word", ["hang", "vanish", "crash"])
def test_a_camera_that_is_lost_is_told_and_comes_back(camera, fault, word):
    fault(word)
    wait_until(lambda: camera.state.problem, "the loss to be told")
    state = camera.state
    assert (state.code, state.is_blind, state.alive) == ("lost", True, True)
    message = {"hang": "gives no more pictures", "vanish": "was unplugged", "crash": "crashed (SIGABRT)"}[word]
    wait_until(lambda: message in (camera.state.problem or ""), "the reason")
    fault("ok")
    wait_until(lambda: is_well(camera), "the camera to come back", 60)
    assert camera.state.reopened == 1
    assert len(workers()) == 1


def test_a_frozen_camera_shows_nothing_old_and_comes_back(camera, fault):
    fault("freeze")
    wait_until(lambda: camera.state.code == "frozen", "the freeze to be told")
    assert camera.state.is_blind
    camera.next(0)  # what was on its way
    fault("ok")
    wait_until(lambda: is_well(camera), "the camera to come back", 60)
    assert camera.state.reopened == 1


def test_a_dark_camera_is_told_and_not_reopened(camera, fault):
    fault("dark")
    wait_until(lambda: camera.state.problem, "the dark to be told")
    assert (camera.state.code, camera.state.is_blind) == ("dark", False)
    assert camera.next(30) is not None
    fault("ok")
    wait_until(lambda: is_well(camera), "the light to come back")
    assert camera.state.reopened == 0


def test_a_slow_camera_is_told(camera, fault):
    fault("slow")
    wait_until(lambda: camera.state.problem, "the slowness to be told")
    assert (camera.state.code, camera.state.is_blind) == ("slow", False)


def test_a_camera_that_hangs_as_it_is_opened_can_be_stopped(fault):
    fault("hang")
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(EndOfStream):
        opened(fault.uri, stop)
    assert workers() == []


def test_stopping_works_while_a_camera_is_being_opened(fault, caplog):
    fault("hang")
    camera = Latest(fault.uri, WANTED)
    wait_until(workers, "the worker to start")
    camera.close(30)
    assert not camera._thread.is_alive()
    assert workers() == []
    assert caplog.text == ""


def test_a_camera_that_never_opens_is_given_up_and_its_worker_with_it(fault, monkeypatch):
    monkeypatch.setattr(_worker, "OPEN_S", 0.5)
    fault("hang")
    with pytest.raises(CameraError, match=r"doesn't open in 0\.5 s"):
        opened(fault.uri)
    assert workers() == []


def test_errors_come_through_as_they_are(fault):
    fault("vanish")
    with pytest.raises(CameraError, match="was unplugged, as it was asked to be"):
        opened(fault.uri)
    with pytest.raises(UsageError, match="unknown option speed"):
        opened(f"{fault.uri}?speed=1")
    assert workers() == []


def test_a_worker_that_is_paused_is_ended_like_one_that_hangs(camera):
    (worker,) = workers()
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: camera.state.problem, "the loss to be told")
    wait_until(lambda: is_well(camera), "the camera to come back", 60)
    assert worker not in workers()


def test_the_worker_ignores_the_signals_of_a_terminal_and_of_systemd(camera):
    (worker,) = workers()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    newer = [camera.next(30) for _ in range(5)]
    assert all(frame is not None for frame in newer)
    assert workers() == [worker]


def test_the_worker_dies_with_the_daemon_even_when_its_driver_hangs(fault):
    code = """
import sys
from edgefer.cameras import open_camera, parse_uri
from edgefer.settings import FrameSettings
camera = open_camera(parse_uri(sys.argv[1]), FrameSettings())
camera.read()
print(camera._process.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, fault.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        worker = int(daemon.stdout.readline())
        fault("hang")
        time.sleep(0.2)  # until it hangs
        daemon.kill()
    wait_until(lambda: not Path(f"/proc/{worker}/cmdline").exists() or is_over(worker), "the worker to die")


def is_over(process: int) -> bool:
    """Whether only its exit code is left, which nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_the_worker_imports_little(fault):
    camera = opened(fault.uri)
    try:
        maps = Path(f"/proc/{camera._process.pid}/maps").read_text()
        assert "cv2" in maps
        assert "pydantic" not in maps
        assert "litert" not in maps
    finally:
        camera.close()


def test_a_picture_is_never_torn(fault, monkeypatch):
    # Larger pictures than the worker can write in a moment, read as they come.
    camera = open_camera(parse_uri(fault.uri), FrameSettings(width=1920, height=1080, fps=200))
    try:
        for _ in range(40):
            image = camera.read().image
            assert np.array_equal(image[0, 0], [0, 0, 255])
            assert np.array_equal(image[-1, -1], [255, 255, 255])
    finally:
        camera.close()
