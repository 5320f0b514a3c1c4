"""edgefer: faces, names and emotions from a camera to MQTT, on a bare Raspberry Pi or Jetson."""

import os

__version__ = "0.1.0"

# A picture file of some kilobytes can claim any size; this many pixels are 200 MB. OpenCV reads the variable when it is
# loaded, which a module of ours may cause at any time: so it stands here.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
