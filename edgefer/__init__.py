"""edgefer: faces, names and emotions from a camera to MQTT, on a bare Raspberry Pi or Jetson."""

__version__ = "0.1.0"
