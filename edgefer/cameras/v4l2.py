"""USB webcams, and whatever else has a /dev/videoN, through OpenCV: `v4l2:///dev/video0`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from dataclasses import replace
from glob import iglob
from pathlib import Path

import cv2

from edgefer.cameras import CameraUri, Picture, Wanted
from edgefer.cameras._opencv import next_image, quiet
from edgefer.errors import CameraBusyError, CameraError

SCHEMES = WORKER_SCHEMES = ("v4l2",)

NODES = Path("/sys/class/video4linux")
"""Where the kernel lists its video devices."""
LASTING_NAMES = Path("/dev/v4l/by-id")
"""Where udev links each USB camera by its maker, model and serial number."""
PI_RECEIVERS = ("unicam", "rp1-cfe")
"""How the Pi's camera ports are named there: they give a sensor's raw data, which picamera2 makes pictures of."""
JETSON_SENSORS = ("vi-output",)
"""The Jetson's likewise; gstreamer://nvarguscamerasrc makes pictures of them."""
OTHER_NODES = ("bcm2835-codec", "bcm2835-isp", "pispbe", "rpivid", "rpi-hevc")
"""The Pi's codecs and image processors: no cameras, though some can be captured from."""
SELECT_S = 5
"""A camera that gives nothing for so long is lost; OpenCV's own limit is 10 s."""
BUFFERS = 2
"""One that the driver fills while the other is decoded. More would only hold old pictures; with a single one, a USB
camera gives every second picture."""

# From linux/videodev2.h.
_CAPABILITY = struct.Struct("16s32s32sIII12x")  # driver, card, bus, version, of the hardware, of this node
_REQUEST_BUFFERS = struct.Struct("III8x")  # count, type, memory
_QUERYCAP = 0x80685600
_REQBUFS = 0xC0145608
_CAPTURE, _CAPTURE_PLANES, _MEMORY_TO_MEMORY, _DEVICE_CAPS = 0x1, 0x1000, 0xC000, 0x80000000
_TYPE, _TYPE_PLANES, _MMAP = 1, 9, 1


def find_cameras(nodes: Path = NODES, devices: Path = Path("/dev")) -> list[str]:
    """The URIs of the cameras that are there, in the order of their numbers."""
    return [
        f"v4l2://{devices / device}"
        for device, name in node_names(nodes).items()
        if _line(nodes / device / "index") == "0"  # a camera's further nodes hold its metadata
        and not name.startswith((*PI_RECEIVERS, *JETSON_SENSORS, *OTHER_NODES))
        and (devices / device).exists()
    ]


def node_names(nodes: Path = NODES) -> dict[str, str]:
    """What the kernel calls its video devices: {"video0": "HD Pro Webcam C920", ...}, in the order of their numbers."""
    devices = [device for device in iglob("video*", root_dir=nodes) if re.fullmatch(r"video[0-9]+", device)]  # noqa: PTH207  # pathlib's fails where a folder goes meanwhile
    devices.sort(key=lambda device: int(device.removeprefix("video")))
    return {device: _line(nodes / device / "name") for device in devices}


def lasting_name(uri: CameraUri, names: Path = LASTING_NAMES) -> Path | None:
    """The name that a USB camera keeps when it comes back as another /dev/videoN; None where it has none."""
    if uri.scheme != "v4l2":
        return None
    node = Path(uri.location)
    with contextlib.suppress(OSError):  # where a camera is being unplugged, links go while they are read
        return next((link for link in sorted(names.iterdir()) if link.exists() and link.samefile(node)), None)
    return None


def found_again(uri: CameraUri, name: Path | None) -> CameraUri:
    """The camera of that lasting name, while it is plugged in; else the one that the URI names."""
    if uri.scheme != "v4l2" or name is None or not name.exists():
        return uri
    return replace(uri, location=str(name))


def check(uri: CameraUri) -> None:
    """CameraError where there is no such device."""
    uri.check_options()
    path = Path(uri.location)
    try:
        path.stat()
    except OSError as error:
        raise _not_open(path, error) from error


def open_source(uri: CameraUri, wanted: Wanted) -> V4l2Camera:
    """An open camera that has given its first picture; CameraError says which of the many things is wrong."""
    check(uri)
    quiet()
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(SELECT_S))  # read at the first camera
    path = Path(uri.location)
    return V4l2Camera(path, check_device(path), wanted)


class V4l2Camera:
    """A camera behind a device file."""

    live = True

    def __init__(self, path: Path, card: str, wanted: Wanted) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
        # MJPG first: uncompressed, USB 2 carries 640x480 at 30 fps, and hardly more. Each line starts the device anew
        # with the values so far, and one that it can't do leaves the nearest.
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.height)
        self._capture.set(cv2.CAP_PROP_FPS, wanted.fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, BUFFERS)
        image = next_image(self._capture) if self._capture.isOpened() else None
        if image is None:
            self.close()
            raise CameraError(
                f"{path} ({card}) opens but gives no picture: plug it in again, into a port of the machine itself "
                "rather than a hub, and try a smaller EDGEFER_FRAME__WIDTH and __HEIGHT"
            )
        height, width = image.shape[:2]
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.description = f"{path} ({card}): {code} {width}x{height} at {fps:g} fps"

    def read(self) -> Picture:
        """The next picture; CameraError when the camera is unplugged or gives nothing for SELECT_S."""
        image = next_image(self._capture)
        # Some drivers go on giving the last picture after the camera was unplugged.
        if not self._path.exists():
            raise CameraError(f"{self._path} was unplugged")
        if image is None:
            raise CameraError(f"{self._path} gives no more pictures: is its cable in order?")
        return Picture(image)

    def close(self) -> None:
        """Give the device back."""
        self._capture.release()


def check_device(path: Path) -> str:
    """The camera's name; CameraError where the path isn't a camera that can be opened now."""
    if path.is_file() or path.is_dir():
        raise CameraError(f"{path} isn't a camera; a video file is named by its path alone, or as file:///path")
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _not_open(path, error) from error
    try:
        return _check_open_device(path, device)
    finally:
        os.close(device)


def _check_open_device(path: Path, device: int) -> str:
    answer = bytearray(_CAPABILITY.size)
    try:
        fcntl.ioctl(device, _QUERYCAP, answer)
    except OSError as error:
        raise CameraError(f"{path} isn't a camera; {_what_there_is()}") from error
    driver, card, _, _, of_hardware, of_node = _CAPABILITY.unpack(answer)
    name: str = card.split(b"\0")[0].decode("utf-8", "replace")
    if driver.startswith(tuple(receiver.encode() for receiver in PI_RECEIVERS)):
        raise CameraError(f"{path} gives the Pi camera's raw data only; name that camera picamera2://0")
    can = of_node if of_hardware & _DEVICE_CAPS else of_hardware
    if not can & (_CAPTURE | _CAPTURE_PLANES) or can & _MEMORY_TO_MEMORY:
        raise CameraError(f"{path} ({name}) gives no pictures, it has another purpose; {_what_there_is()}")
    if _is_busy(device, _TYPE if can & _CAPTURE else _TYPE_PLANES):
        raise _busy(path)
    return name


def _is_busy(device: int, kind: int) -> bool:
    # Asking for no buffers changes nothing, and is refused where another program holds some.
    try:
        fcntl.ioctl(device, _REQBUFS, _REQUEST_BUFFERS.pack(0, kind, _MMAP))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _busy(path: Path) -> CameraError:
    return CameraBusyError(f"another program uses {path}: find it with `fuser -v {path}` and stop it")


def _not_open(path: Path, error: OSError) -> CameraError:
    if error.errno == errno.EBUSY:
        return _busy(path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CameraError(f"there is no {path}; {_what_there_is()}")
    if error.errno == errno.EACCES:
        return CameraError(
            f"no permission to open {path}: add the user to the group that owns it, as a rule "
            "`sudo usermod -aG video $USER`, and log in again"
        )
    if error.errno == errno.EPERM:
        return CameraError(
            f"the system forbids {path}: a container needs it passed in, a systemd unit a DeviceAllow= for it"
        )
    return CameraError(f"{path} can't be opened ({error.strerror}): plug the camera in again")


def _what_there_is() -> str:
    cameras = find_cameras()
    return f"the cameras here are {', '.join(cameras)}" if cameras else "no USB camera is plugged in"


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # unplugged while we look
        return ""
