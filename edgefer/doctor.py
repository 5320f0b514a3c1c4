"""Does everything that edgefer needs work here? Each failure comes with its fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from edgefer import machine
from edgefer.broker import check_broker
from edgefer.cameras import EndOfStream, open_camera, parse_uri
from edgefer.errors import EdgeferError, InputError
from edgefer.gallery import open_gallery
from edgefer.service import DEFAULT_DETECTOR
from edgefer.settings import Settings
from edgefer.vision import load_vision
from edgefer.vision.model import RUNTIME, models_folder

HOT_C = 80.0
"""A Raspberry Pi slows down from here on (its firmware's soft limit)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `problem` says what is wrong and what to do, None when all is well."""

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
    uri = parse_uri(settings.camera)
    with closing(open_camera(uri, settings.frame)) as camera:
        try:
            height, width = camera.read().image.shape[:2]
        except EndOfStream as error:
            raise InputError(f"{uri.public}: there is no picture in it") from error
        return f"{uri.public}: {camera.description}; the first picture has {width}x{height} pixels"


def _broker(settings: Settings) -> str:
    if "mqtt" not in settings.sinks.split(","):
        return f"not used: EDGEFER_SINKS={settings.sinks}"
    check_broker(settings)
    return f"{settings.mqtt.host}:{settings.mqtt.actual_port} takes our messages"


def _permissions(settings: Settings) -> str:
    folder = settings.state_dir
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        raise InputError(f"{folder}: user {os.getuid()} can't write there; set EDGEFER_STATE_DIR or change its owner")
    vision = load_vision(settings, DEFAULT_DETECTOR)
    if vision.embedder is None:
        return f"{folder} can be written"
    with closing(open_gallery(settings, vision.embedder.model.card)) as gallery:
        return f"{folder} can be written; {len(gallery.people())} people are enrolled"


def _clock(_: Settings) -> str:
    return "synchronised" if machine.is_clock_synced() else "not synchronised: events carry clock_synced false"


def _temperature(_: Settings) -> str:
    degrees = machine.temperature_c()
    if degrees is None:
        return "not told by this machine"
    hint = "; that's hot: a Pi slows down, give it a heat sink or a fan" if degrees >= HOT_C else ""
    throttled = "; throttled now: look at the power supply and the cooling" if machine.is_throttled() else ""
    return f"{degrees:.0f} °C{hint}{throttled}"


_looks: dict[str, Callable[[Settings], str]] = {
    "runtime": _runtime,
    "models": _models,
    "camera": _camera,
    "broker": _broker,
    "permissions": _permissions,
    "clock": _clock,
    "temperature": _temperature,
}
