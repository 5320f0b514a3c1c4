"""A stand-in for picamera2 0.3.38, put in its place on PYTHONPATH: what edgefer uses of it, as its source has it.

STAND_IN says how its two cameras do: `busy` (another program has them), `silent` (a cable hangs loose), `hangs`
(stopping never returns), `usb` (they are webcams), `none` (there are none).
"""

import atexit
import os
import threading
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np

ORANGE_RGB = (255, 128, 0)
"""What both cameras look at."""

in_use = set()


def is_now(state):
    return os.environ.get("STAND_IN") == state


class Picamera2:
    @staticmethod
    def global_camera_info():
        if is_now("none"):
            return []
        bus = "usb@1" if is_now("usb") else "i2c@88000"
        return [{"Model": "imx708", "Location": 2, "Rotation": 180, "Id": f"/base/{bus}/{n}", "Num": n} for n in (0, 1)]

    def __init__(self, camera_num=0, verbose_console=None, tuning=None, allocator=None):
        self.notifyme_r, self.notifyme_w = os.pipe2(os.O_NONBLOCK)
        self.notifymeread = os.fdopen(self.notifyme_r, "rb")
        self.is_open = False
        self.camera_idx = self.global_camera_info()[camera_num]["Num"]
        self.started = False
        self.camera_config = {}
        if is_now("busy") or self.camera_idx in in_use:
            cause = RuntimeError("Failed to acquire camera: Device or resource busy")
            raise RuntimeError("Camera __init__ sequence did not complete.") from cause
        in_use.add(self.camera_idx)
        self.is_open = True
        atexit.register(self.close)

    def __del__(self):
        self.close()

    @property
    def camera_properties(self):
        return {"Model": "imx708"}

    def create_video_configuration(self, main={}, controls={}):  # noqa: B006  # as the original has it
        if set(main) - {"format", "size", "stride", "preserve_ar"}:
            raise ValueError("Bad key")
        width, height = main["size"]
        return {"main": {**main, "size": (width - width % 2, height - height % 2)}, "controls": controls}

    def configure(self, camera_config=None):
        if set(camera_config["controls"]) - {"FrameRate", "FrameDurationLimits"}:
            raise RuntimeError("Control is not advertised by libcamera")
        self.camera_config = camera_config
        if is_now("usb"):
            camera_config["main"]["format"] = "MJPEG"

    def camera_configuration(self):
        return self.camera_config

    def start(self, config=None, show_preview=False):
        self.started = True

    def capture_array(self, name="main", wait=None):
        if not self.started:
            raise RuntimeError("Camera is not started")
        if is_now("silent"):
            assert wait, "this would wait for ever"
            raise FutureTimeoutError
        main = self.camera_config[name]
        # libcamera's names say the order from the highest bit down, so in memory the last letter comes first.
        colour = {"RGB888": ORANGE_RGB[::-1], "BGR888": ORANGE_RGB}[main["format"]]
        width, height = main["size"]
        return np.full((height, width, 3), colour, np.uint8)

    def close(self):
        atexit.unregister(self.close)
        if not self.is_open:
            return
        if is_now("hangs"):
            threading.Event().wait()
        in_use.remove(self.camera_idx)
        self.is_open = self.started = False
        self.notifymeread.close()
        os.close(self.notifyme_w)
