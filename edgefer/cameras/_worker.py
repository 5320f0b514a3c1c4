"""A camera in a process of its own: a driver can block for ever or crash, and a process can be killed.

The worker hands its pictures over in shared memory, in slots that it fills in turn, and says in a message which one is
the newest. It imports OpenCV and the one source, no settings and no models, and ends when nobody reads its messages.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import logging
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from edgefer import errors
from edgefer.cameras import Camera, CameraUri, EndOfStream, Picture, Wanted
from edgefer.errors import CameraError, EdgeferError
from edgefer.files import isolated_python

if TYPE_CHECKING:
    from edgefer.messages import Image

log = logging.getLogger(__name__)

OPEN_S = 16.0
"""A camera that isn't open after so long hangs: the sources' own limits are up to 15 s."""
SILENT_S = 2.5
"""One that gives nothing for so long is lost; a frame a second and slower has three frames' time."""
STOP_S, KILL_S = 0.3, 1.0
"""The worker has so long to give the camera back, then it is killed; a killed one is gone at once, as a rule."""
SLOTS = 3
"""One is read, one is the newest, one is written."""

_FRAME = struct.Struct("<Qd")  # number, when it was captured (the monotonic clock, which all processes share)
_MESSAGE_BYTES = 65536
_TICK_S = 0.1
"""How often a wait for a silent camera looks whether to stop."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WorkerCamera:
    """A live camera whose driver runs in a process of its own; no call takes longer than the limits above.

    When `stop` is set, opening and reading end with EndOfStream.
    """

    live = True

    def __init__(self, module: str, uri: CameraUri, wanted: Wanted, stop: threading.Event | None = None) -> None:
        self._name = uri.public
        self._stop = stop or threading.Event()
        self._silent_s = max(SILENT_S, 3 / wanted.fps)
        self._channel, self._memory, self._process = _start(self._name)
        self._poll = select.poll()
        self._poll.register(self._channel, select.POLLIN)
        self._newest: tuple[int, float] | None = None
        try:
            size = {"width": wanted.width, "height": wanted.height, "fps": wanted.fps}
            # Not on the command line, which everybody may read: the address can hold a password.
            order = json.dumps({"module": module, "uri": asdict(uri), "wanted": size}).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: told when we listen
                self._channel.send(order)
            opened = json.loads(self._receive(OPEN_S, f"{self._name} doesn't open in {OPEN_S:g} s"))
            self.description: str = opened["description"]
            memory = mmap.mmap(self._memory, 0)
            self._slots = np.frombuffer(memory, opened["type"]).reshape(SLOTS, *opened["shape"])
        except BaseException:
            self.close()
            raise

    def read(self) -> Picture:
        """The newest picture; CameraError when the camera is lost or gives nothing for too long."""
        if self._newest is None:
            self._note(self._receive(self._silent_s, f"{self._name} gives no more pictures"))
        while True:
            self._drain()
            number, captured_at = cast("tuple[int, float]", self._newest)
            image: Image = self._slots[number % SLOTS].copy()
            self._newest = None
            self._drain()
            newer = cast("tuple[int, float] | None", self._newest)
            # The slot is written again only after all others were told of.
            if newer is None or newer[0] < number + SLOTS - 1:
                return Picture(image, captured_at=captured_at)

    def close(self) -> None:
        """End the worker, by force if need be."""
        if self._channel.fileno() < 0:
            return
        self._channel.close()
        os.close(self._memory)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
            return
        self._process.kill()
        try:
            self._process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            log.warning(
                "%s: the system can't end its driver (process %d); unplug the camera, or restart the machine",
                self._name,
                self._process.pid,
            )

    def _drain(self) -> None:
        while self._poll.poll(0):
            self._note(self._told())

    def _note(self, message: bytes) -> None:
        number, captured_at = _FRAME.unpack(message)
        self._newest = int(number), float(captured_at)

    def _receive(self, timeout_s: float, what_is_wrong: str) -> bytes:
        deadline_s = time.monotonic() + timeout_s
        while not self._stop.is_set():
            left_s = deadline_s - time.monotonic()
            if self._poll.poll(1000 * max(0.0, min(left_s, _TICK_S))):
                return self._told()
            if left_s <= 0:
                raise CameraError(f"{what_is_wrong}; is it plugged in, and switched on?")
        raise EndOfStream(f"{self._name} was closed")

    def _told(self) -> bytes:
        message = b""
        with contextlib.suppress(ConnectionResetError):
            message = self._channel.recv(_MESSAGE_BYTES)
        if not message:
            raise CameraError(f"{self._name}: its driver {self._end()}; opening it anew")
        if message.startswith(b'{"error"'):
            told = json.loads(message)
            raise getattr(errors, told["error"])(told["message"])
        return message

    def _end(self) -> str:
        try:
            code = self._process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            return "hangs"
        return (
            f"crashed ({signal.Signals(-code).name})" if code < 0 else f"failed (exit code {code}; the log says more)"
        )


def _start(name: str) -> tuple[socket.socket, int, subprocess.Popen[bytes]]:
    """Our end of the channel, the file of the shared memory, and the worker."""
    with contextlib.ExitStack() as unwanted:
        try:
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            unwanted.enter_context(channel)
            with theirs:
                memory = os.memfd_create("edgefer-pictures")
                unwanted.callback(os.close, memory)
                process = _spawn(theirs.fileno(), memory)
        except OSError as error:  # short of memory, processes or files, which passes
            raise CameraError(f"{name}: its driver can't be started: {error.strerror}") from error
        unwanted.pop_all()
        return channel, memory, process


def _spawn(channel: int, memory: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own module, and three numbers
        isolated_python(f"from {__name__} import main; main()", str(channel), str(memory), str(os.getpid())),
        pass_fds=(channel, memory),
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a driver prints is no event
    )


@dataclass(frozen=True, slots=True)
class _Size:
    """What is asked of a camera."""

    width: int
    height: int
    fps: float


def main() -> NoReturn:
    """Work until nobody wants pictures any more."""
    _work()
    # Without Python's own end, which takes its time, and picamera2's, which can take for ever.
    os._exit(0)


def _work() -> None:
    """The worker: opens the camera that the first message names, and gives pictures until nobody wants them."""
    channel_number, memory, parent = map(int, sys.argv[1:])
    # systemd and a terminal signal every process of the service: it is the daemon that ends us, in its own time.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before that
    channel = socket.socket(fileno=channel_number)
    order = json.loads(channel.recv(_MESSAGE_BYTES))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), _told_of_errors(channel):
        source: Any = importlib.import_module(order["module"])
        camera = source.open_source(CameraUri(**order["uri"]), _Size(**order["wanted"]))
        # Told before the camera is closed: that can take for ever.
        with contextlib.closing(camera), _told_of_errors(channel):
            _give(camera, channel, memory)


@contextlib.contextmanager
def _told_of_errors(channel: socket.socket) -> Any:
    try:
        yield
    except EndOfStream as end:
        channel.send(json.dumps({"error": "CameraError", "message": str(end)}).encode())
    except EdgeferError as error:
        channel.send(json.dumps({"error": type(error).__name__, "message": str(error)}).encode())


def _give(camera: Camera, channel: socket.socket, memory: int) -> None:
    image, captured_at = camera.read().image, time.monotonic()
    os.ftruncate(memory, SLOTS * image.nbytes)
    slots = np.frombuffer(mmap.mmap(memory, 0), image.dtype).reshape(SLOTS, *image.shape)
    opened = {"description": camera.description, "shape": image.shape, "type": image.dtype.str}
    channel.send(json.dumps(opened).encode())
    for number in itertools.count():
        if image.shape != slots[0].shape:
            raise CameraError("the size of the camera's picture changed")
        slots[number % SLOTS] = image
        while not _sent(channel, _FRAME.pack(number, captured_at)):
            # The daemon is paused: this picture makes room for the next.
            slots[number % SLOTS] = camera.read().image
            captured_at = time.monotonic()
        image, captured_at = camera.read().image, time.monotonic()


def _sent(channel: socket.socket, message: bytes) -> bool:
    try:
        channel.send(message, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True
