"""The cameras on a Raspberry Pi's ribbon cables, through picamera2: `picamera2://0`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from edgefer.cameras import CameraUri, Picture, Wanted
from edgefer.cameras.v4l2 import NODES, PI_RECEIVERS, node_names
from edgefer.errors import CameraBusyError, CameraError, UsageError

SCHEMES = WORKER_SCHEMES = ("picamera2",)

READ_S = 5.0
"""A camera that gives nothing for so long is lost."""


def find_cameras(nodes: Path = NODES) -> list[str]:
    """The URIs of the cameras on ribbon cables; none where picamera2 isn't installed."""
    # Loading picamera2 takes 11 MB and starts libcamera: not where the kernel found no sensor, and so made no node.
    if not any(name.startswith(PI_RECEIVERS) for name in node_names(nodes).values()):
        return []
    if importlib.util.find_spec("picamera2") is None:
        return []
    try:
        found = _load().global_camera_info()
    except CameraError:
        return []
    # It lists USB webcams too: those are v4l2's.
    return [f"picamera2://{index}" for index, camera in enumerate(found) if "/usb" not in camera["Id"]]


def open_source(uri: CameraUri, wanted: Wanted) -> PiCamera:
    """An open camera that has given its first picture; CameraError says what is missing."""
    uri.check_options()
    if not (uri.location.isascii() and uri.location.isdecimal()):
        raise UsageError(f"{uri.public}: a Pi camera is named by its number, as in picamera2://0")
    return PiCamera(_load(), int(uri.location), wanted)


class PiCamera:
    """A camera on a ribbon cable."""

    live = True

    def __init__(self, library: Any, index: int, wanted: Wanted) -> None:
        self._name = f"Pi camera {index}"
        self._camera = _acquire(library, index)
        try:
            stream = self._start(wanted)
            height, width = self.read().image.shape[:2]
        except BaseException:
            self.close()
            raise
        model = self._camera.camera_properties.get("Model", "unknown sensor")
        self.description = f"{self._name} ({model}): {stream['format']} {width}x{height} at up to {wanted.fps:g} fps"

    def read(self) -> Picture:
        """The next picture; CameraError when the camera gives nothing for READ_S."""
        try:
            return Picture(self._camera.capture_array("main", wait=READ_S))
        except FutureTimeoutError:
            raise CameraError(
                f"{self._name} gives no pictures: is its ribbon cable seated at both ends, the right way round?"
            ) from None
        except RuntimeError as error:
            raise CameraError(f"{self._name} gives no pictures: {error}") from error

    def close(self) -> None:
        """Stop the camera and give it back."""
        self._camera.close()

    def _start(self, wanted: Wanted) -> dict[str, Any]:
        # libcamera names a format by its bits from the highest down, as DRM does: "RGB888" lies in memory as blue,
        # green, red, which is OpenCV's order.
        main = {"format": "RGB888", "size": (wanted.width, wanted.height)}
        try:
            self._camera.configure(
                self._camera.create_video_configuration(main=main, controls={"FrameRate": wanted.fps})
            )
            stream: dict[str, Any] = self._camera.camera_configuration()["main"]
            if stream["format"] != "RGB888":
                raise CameraError(f"{self._name} gives {stream['format']}; a USB camera is named v4l2:///dev/video0")
            self._camera.start()
        except RuntimeError as error:
            raise CameraError(f"{self._name} can't be started at {main['size']}: {error}") from error
        return stream


def _load() -> Any:
    # libcamera tells its whole start on standard error; a person who sets this variable wants that.
    os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:ERROR")
    try:
        return importlib.import_module("picamera2").Picamera2
    except (ImportError, ValueError) as error:  # ValueError: a part was built for another numpy
        raise CameraError(
            f"picamera2 can't be loaded ({error}): `sudo apt install python3-picamera2`, and make the virtual "
            "environment with --system-site-packages (docs/cameras.md)"
        ) from error


def _acquire(library: Any, index: int) -> Any:
    count = len(library.global_camera_info())
    if index >= count:
        raise CameraError(
            f"there is no Pi camera {index}, {count} found: does `rpicam-hello --list-cameras` show it? If not, switch "
            "the Pi off and seat its ribbon cable at both ends"
        )
    camera = library.__new__(library)
    try:
        camera.__init__(index)
    except RuntimeError as error:
        # It leaves a pipe open; with a try every ten seconds, nothing else could be opened after some hours.
        camera.notifymeread.close()
        os.close(camera.notifyme_w)
        raise CameraBusyError(
            f"Pi camera {index} can't be opened ({error.__cause__ or error}): does another program use it "
            "(rpicam-hello, motion)? If not, restart edgefer or the Pi"
        ) from error
    return camera
