"""Does everything that edgefer needs work here? Each failure comes with its fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from edgefer import machine
from edgefer.broker import check_broker
from edgefer.cameras import EndOfStream, open_camera, parse_uri, uri_is_a_setting
from edgefer.control import is_daemon_there
from edgefer.errors import CameraBusyError, EdgeferError, InputError
from edgefer.gallery import open_gallery
from edgefer.gallery_file import UnreadableGalleryError, misowned
from edgefer.health import machine_problems
from edgefer.messages import ProblemCode
from edgefer.problems import HOT_C, kind
from edgefer.service import DEFAULT_DETECTOR
from edgefer.settings import Settings
from edgefer.sight import is_dark
from edgefer.store import Store
from edgefer.vision import load_vision
from edgefer.vision.model import RUNTIME, find_card, models_folder


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `problem` says what is wrong and what to do, None when all is well.

    With an `exit_code` of 0, edgefer runs in spite of it.
    """

    name: str
    found: str
    problem: str | None = None
    exit_code: int = 0


def examine(settings: Settings, *, offline: bool = False) -> Iterator[Check]:
    """Look at everything, one after the other; `offline` leaves out what isn't of this installation: camera, broker."""
    for name, look in _looks.items():
        if offline and look in (_camera, _broker):
            continue
        try:
            yield Check(name, look(settings))
        except EdgeferError as error:
            yield Check(name, "", str(error), error.exit_code)


def _runtime(_: Settings) -> str:
    if not RUNTIME:
        raise InputError("no TFLite runtime: pip install ai-edge-litert (or tflite-runtime with numpy<2)")
    return RUNTIME


def _models(settings: Settings) -> str:
    names = load_vision(settings, DEFAULT_DETECTOR).names
    return f"{names}; shipped weights are for non-commercial research ({models_folder() / 'LICENSE'})"


def _camera(settings: Settings) -> str:
    try:
        with uri_is_a_setting():
            uri = parse_uri(settings.camera)
            opened = open_camera(uri, settings.frame)
    except CameraBusyError as error:
        if not is_daemon_there(settings.state_dir):
            raise
        raise _RemarkError(
            f"the daemon runs, and holds the camera most likely: its health, or `systemctl status edgefer`, tells how "
            f"that does. To look at it from here, stop the daemon first ({error})"
        ) from error
    with closing(opened) as camera:
        try:
            image = camera.read().image
        except EndOfStream as error:
            raise InputError(f"{uri.public}: there is no picture in it") from error
        if is_dark(image):
            raise _RemarkError(f"{uri.public}: the picture is black. {kind('camera', 'dark').fix}")
        height, width = image.shape[:2]
        return f"{uri.public}: {camera.description}; the first picture has {width}x{height} pixels"


def _broker(settings: Settings) -> str:
    if "mqtt" not in settings.sinks.split(","):
        return f"not used: EDGEFER_SINKS={settings.sinks}"
    check_broker(settings)
    return f"{settings.mqtt.host}:{settings.mqtt.actual_port} lets us in"


def _permissions(settings: Settings) -> str:
    folder = settings.state_dir
    existing = next(parent for parent in (folder, *folder.parents) if os.access(parent, os.F_OK))
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        raise InputError(f"{folder}: user {os.getuid()} can't write there; set EDGEFER_STATE_DIR or change its owner")
    return f"{folder} can be written"


def _people(settings: Settings) -> str:
    if not settings.identity.enabled:
        return "not used"
    try:
        with closing(open_gallery(settings, find_card(settings.identity.model))) as gallery:
            count = len(gallery.people())
            if wrong := misowned(gallery.path):  # root sees no difference
                raise _RemarkError(f"{gallery.path}: {wrong}")
    except UnreadableGalleryError as error:  # the daemon outlasts it, and knows nobody meanwhile
        raise _RemarkError(str(error)) from error
    return f"{count} {'is' if count == 1 else 'are'} enrolled"


def _store(settings: Settings) -> str:
    if "mqtt" not in settings.sinks.split(",") or not settings.events.store:
        return "not used"
    store = Store(settings.state_dir)
    if store.exists and not os.access(store.path, os.R_OK | os.W_OK):
        raise _RemarkError(f"{store.path}: user {os.getuid()} can't use it, so events wait in memory; change its owner")
    try:
        aside = store.set_aside
    except PermissionError as error:
        raise _RemarkError(f"{settings.state_dir}: user {os.getuid()} may not look into it") from error
    if aside:
        raise _RemarkError(
            f"{aside[0]}: it couldn't be used, and the events in it aren't sent; delete it, or report it"
        )
    return "events of an earlier start, or of one that runs, wait" if store.exists else "nothing waits"


def _clock(settings: Settings) -> str:
    _remark(settings, "clock")
    return "set by a time server"


def _temperature(settings: Settings) -> str:
    _remark(settings, "hot", "throttled")
    return _told(machine.temperature_c(), "°C")


def _memory(settings: Settings) -> str:
    _remark(settings, "memory")
    return _told(machine.free_memory_mb(), "MB left")


def _disk(settings: Settings) -> str:
    _remark(settings, "disk")
    return _told(machine.free_disk_mb(settings.state_dir), "MB left")


def _told(value: float | None, unit: str) -> str:
    return "not told by this machine" if value is None else f"{value:.0f} {unit}"


def _remark(settings: Settings, *codes: ProblemCode) -> None:
    """Tell of a problem of the machine that has one of these codes."""
    state = machine.read_state(settings.state_dir)
    is_hot = state.temperature_c is not None and state.temperature_c >= HOT_C
    for _, code, message in machine_problems(state, "throttled" if state.throttled else "hot" if is_hot else None):
        if code in codes:
            raise _RemarkError(message)


class _RemarkError(EdgeferError):
    """Something to know, in spite of which edgefer runs."""

    exit_code = 0


_looks: dict[str, Callable[[Settings], str]] = {
    "runtime": _runtime,
    "models": _models,
    "camera": _camera,
    "broker": _broker,
    "permissions": _permissions,
    "people": _people,
    "store": _store,
    "clock": _clock,
    "temperature": _temperature,
    "memory": _memory,
    "disk": _disk,
}
