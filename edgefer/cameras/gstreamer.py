"""GStreamer pipelines, for the Jetson's own cameras: `gstreamer://nvarguscamerasrc?sensor_id=0`.

The URI names a source element, with its properties as options; or it is a whole pipeline, as gst-launch-1.0 takes it,
up to the raw pictures: `gstreamer://v4l2src device=/dev/video0 ! image/jpeg,width=1280,height=720 ! jpegdec`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import cv2

from edgefer.cameras import CameraUri, Picture, Wanted
from edgefer.cameras._opencv import next_image, quiet
from edgefer.cameras.v4l2 import JETSON_SENSORS, NODES, node_names
from edgefer.errors import CameraError, UsageError

SCHEMES = WORKER_SCHEMES = ("gstreamer",)

READ_S = 5.0
"""A pipeline has so long to give the next picture."""

SINK = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
"""Hands the newest picture to OpenCV and drops those that it doesn't fetch in time."""

_ADVICE = "`gst-launch-1.0` says why, given the same pipeline with fakesink at its end"


def find_cameras(nodes: Path = NODES) -> list[str]:
    """The URIs of a Jetson's own cameras; none where OpenCV can't read them."""
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return []
    sensors = [name for name in node_names(nodes).values() if name.startswith(JETSON_SENSORS)]
    return [f"gstreamer://nvarguscamerasrc?sensor_id={number}" for number in range(len(sensors))]


def open_source(uri: CameraUri, wanted: Wanted) -> GstreamerCamera:
    """A running pipeline that has given its first picture."""
    line = pipeline(uri, wanted)
    quiet()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise CameraError(
            f"{uri.public}: the OpenCV installed here has no GStreamer. On a Jetson, use the system's own: make the "
            "virtual environment with --system-site-packages, and in it `pip uninstall opencv-python-headless` "
            "(docs/cameras.md)"
        )
    return GstreamerCamera(uri.public, line)


class GstreamerCamera:
    """Plays what comes out of a pipeline."""

    live = True

    def __init__(self, name: str, line: str) -> None:
        self._name = name
        self._capture = cv2.VideoCapture()
        # OpenCV's own limit for opening is a minute, where an element is misspelt; the worker has one too.
        self._capture.open(line, cv2.CAP_GSTREAMER, [cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(READ_S * 1000)])
        image = next_image(self._capture) if self._capture.isOpened() else None
        if image is None:
            self.close()
            raise CameraError(f"{name} gives no picture; {_ADVICE}")
        height, width = image.shape[:2]
        self.description = f"{name}: {width}x{height} at {self._capture.get(cv2.CAP_PROP_FPS):g} fps"

    def read(self) -> Picture:
        """The next picture; CameraError when the pipeline stops or gives nothing for READ_S."""
        image = next_image(self._capture)
        if image is None:
            raise CameraError(f"{self._name} has stopped giving pictures")
        return Picture(image)

    def close(self) -> None:
        """Stop the pipeline."""
        self._capture.release()


def pipeline(uri: CameraUri, wanted: Wanted) -> str:
    """The whole pipeline of a URI, down to the sink that OpenCV reads."""
    written = uri.address.partition("://")[2]
    if " " in written:
        return written if "appsink" in written else f"{written} ! {SINK}"
    for name in (uri.location, *uri.options):
        if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
            raise UsageError(
                f"{uri.public}: write gstreamer://ELEMENT?property=value, or a whole pipeline with spaces in it"
            )
    source = " ".join([uri.location, *(f"{name}={_quoted(value)}" for name, value in uri.options.items())])
    if uri.location != "nvarguscamerasrc":
        return f"{source} ! {SINK}"
    # The Jetson's camera stays in the GPU's memory until nvvidconv fetches it, and takes every size and rate.
    rate = Fraction(wanted.fps).limit_denominator(1001)
    size = f"width={wanted.width},height={wanted.height},framerate={rate.numerator}/{rate.denominator}"
    return f"{source} ! video/x-raw(memory:NVMM),format=NV12,{size} ! nvvidconv ! video/x-raw,format=BGRx ! {SINK}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
