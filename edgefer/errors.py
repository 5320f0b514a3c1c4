"""What can go wrong, and the exit code that says so (sysexits.h).

    EdgeferError                70  a defect of ours, where nothing below fits
    ├── UsageError              64  the command line makes no sense
    ├── InputError              66  a file that was named is missing or unreadable
    │   └── ModelError              ... and it is a model or its card
    ├── BrokerError             69  no MQTT broker could be reached
    ├── CameraError             74  the camera isn't there, is busy, or gave no frame
    └── SettingsError           78  EDGEFER_ variables that don't validate

A message says what failed, with which value (never a secret), and what to do about it.
"""


class EdgeferError(Exception):
    """The base of every error that edgefer raises on purpose."""

    exit_code = 70


class UsageError(EdgeferError, ValueError):
    """The command line makes no sense."""

    exit_code = 64


class InputError(EdgeferError, OSError):
    """A file or folder that was named is missing, empty or of the wrong kind."""

    exit_code = 66


class ModelError(InputError):
    """A model or its card is missing, damaged, or they don't match."""


class BrokerError(EdgeferError, ConnectionError):
    """No MQTT broker could be reached, or it refused us."""

    exit_code = 69


class CameraError(EdgeferError, OSError):
    """The camera isn't there, can't be used, or gave no frame."""

    exit_code = 74


class CameraBusyError(CameraError):
    """Another program uses the camera."""


class SettingsError(EdgeferError, ValueError):
    """One or more EDGEFER_ variables don't validate; the message lists all of them."""

    exit_code = 78
