"""The daemon: builds the parts from the settings, starts, watches and stops them."""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone

from edgefer import __version__, machine
from edgefer.cameras import EndOfStream
from edgefer.control import Control
from edgefer.emotions import EmotionWatcher
from edgefer.gallery import model_id, open_gallery
from edgefer.health import HealthMonitor, Stopwatch, Totals
from edgefer.identify import Identifier, identity_rule
from edgefer.latest import Latest
from edgefer.messages import Frame, Message
from edgefer.pipeline import Pipeline
from edgefer.report import Origin, Reporter
from edgefer.settings import Settings
from edgefer.sinks import Sink, open_sinks
from edgefer.tracker import Tracker
from edgefer.vision import Vision, load_vision
from edgefer.vision.model import RUNTIME
from edgefer.vision.quality import QualityRater

log = logging.getLogger(__name__)

DEFAULT_DETECTOR = "near"
"""The faces of people at a door or before a screen, in a third of the time of `far`."""
TICK_S = 0.2
"""How long the loop waits for a frame before it looks whether to stop, or whether health is due."""
CLOSE_SINKS_S, CLOSE_CAMERA_S = 0.5, 0.3
"""How long what waits may take to go out at stop, and then the camera to close (a Pi's takes 0.2 to 0.4 s)."""


def run(settings: Settings, stop: threading.Event) -> Totals:
    """Run until `stop` is set or a file is played to its end; the camera and the broker may come and go meanwhile."""
    with ExitStack() as parts:
        origin = Origin(settings.device, uuid.uuid4().hex)
        stopwatch = Stopwatch()
        vision = load_vision(settings, DEFAULT_DETECTOR)
        reporter = Reporter(origin, settings.events.interval_s, machine.is_clock_synced)
        identifier = _identifier(settings, vision, stopwatch, parts)
        control = parts.enter_context(closing(_control(settings, vision)))
        pipeline = Pipeline(
            detect=control.watched(stopwatch.timed("detect", vision.detector)),
            track=Tracker(origin.boot_id),
            rate=QualityRater(),
            identify=identifier,
            read_emotions=_emotion_watcher(vision, stopwatch),
            report=reporter,
        )
        health = HealthMonitor(
            origin, vision.names, RUNTIME, stopwatch, lambda: identifier.problem if identifier else None
        )
        camera = Latest(settings.camera, settings.frame)
        parts.callback(camera.close, CLOSE_CAMERA_S)
        sinks = parts.enter_context(_opened(open_sinks(settings)))
        log.info("edgefer %s on %s, with %s and %s", __version__, settings.device, RUNTIME, vision.names)
        publish(sinks, None, [reporter.presence(datetime.now(timezone.utc))])
        try:
            watch(camera, pipeline, health, sinks, stop)
        finally:
            publish(sinks, None, pipeline.end())
        return health.totals()


def _identifier(settings: Settings, vision: Vision, stopwatch: Stopwatch, parts: ExitStack) -> Identifier | None:
    if vision.embedder is None:
        return None
    card = vision.embedder.model.card
    gallery = parts.enter_context(closing(open_gallery(settings, card, outlast_damage=True)))
    identifier = Identifier(stopwatch.timed("embed", vision.embedder), gallery, identity_rule(settings, card))
    return parts.enter_context(closing(identifier))


def _control(settings: Settings, vision: Vision) -> Control:
    model = model_id(vision.embedder.model.card) if vision.embedder else None
    return Control(settings.state_dir, model, vision.embedder)


def _emotion_watcher(vision: Vision, stopwatch: Stopwatch) -> EmotionWatcher | None:
    reader = vision.emotion
    return EmotionWatcher(stopwatch.timed("emotion", reader), reader.labels, reader.min_confidence) if reader else None


def watch(
    camera: Latest,
    pipeline: Pipeline,
    health: HealthMonitor,
    sinks: Sequence[Sink],
    stop: threading.Event,
) -> None:
    """Take frame after frame through the pipeline to the sinks."""
    while not stop.is_set():
        try:
            frame = camera.next(TICK_S)
        except EndOfStream:
            log.info("the file is played to its end")
            return
        if frame is not None:
            publish(sinks, frame, pipeline(frame))
            health.frame_done(frame)
        elif camera.state.problem and pipeline.report.has_faces:
            publish(sinks, None, pipeline.end())  # nobody is known to be in view of a lost camera
        told = health.due(camera.state, [sink.state for sink in sinks])
        if told:
            publish(sinks, None, [told])


def publish(sinks: Sequence[Sink], frame: Frame | None, messages: Sequence[Message]) -> None:
    """Hand messages to every sink."""
    for sink in sinks:
        sink.publish(frame, messages)


@contextmanager
def _opened(sinks: Sequence[Sink]) -> Iterator[Sequence[Sink]]:
    """The sinks, closed in the end with time to bring out what waits."""
    try:
        yield sinks
    finally:
        deadline_s = time.monotonic() + CLOSE_SINKS_S

        def close(sink: Sink) -> None:
            sink.close(max(0.0, deadline_s - time.monotonic()))

        with ExitStack() as all_of_them:  # one that fails leaves none of the others open
            for sink in sinks:
                all_of_them.callback(close, sink)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    former = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
