"""The daemon: builds the parts from the settings, starts, watches and stops them."""

from __future__ import annotations

import logging
import math
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from edgefer import __version__, machine
from edgefer.cameras import EndOfStream
from edgefer.control import Control
from edgefer.emotions import EmotionWatcher
from edgefer.gallery import model_id, open_gallery
from edgefer.health import HealthMonitor, Stopwatch, Totals
from edgefer.heat import Thermostat
from edgefer.identify import Identifier, identity_rule
from edgefer.latest import CameraState, Latest
from edgefer.messages import Frame, Message
from edgefer.pipeline import Pipeline
from edgefer.report import Origin, Reporter
from edgefer.settings import Settings
from edgefer.sinks import Sink, SinkState, open_sinks
from edgefer.systemd import ServiceManager
from edgefer.tracker import Tracker
from edgefer.vision import Vision, load_vision
from edgefer.vision.model import RUNTIME
from edgefer.vision.quality import QualityRater

log = logging.getLogger(__name__)

DEFAULT_DETECTOR = "near"
"""The faces of people at a door or before a screen, in a third of the time of `far`."""
TICK_S = 0.2
"""How long the loop waits for a frame before it looks whether to stop, or whether health is due."""
LOOK_EVERY_S = 2.0
"""How often the loop looks at the machine: heat, memory, disk, clock."""
CLOSE_SINKS_S, CLOSE_CAMERA_S = 0.5, 0.3
"""How long what waits may take to go out at stop, and then the camera to close (a Pi's takes 0.2 to 0.4 s)."""


@dataclass(slots=True)
class Stop:
    """Who asked the daemon to end, if anybody has.

    No threading.Event: its lock isn't for a signal's handler, which may have interrupted whoever holds it.
    """

    asked_by: str | None = None


def run(settings: Settings, stop: Stop, root: Path = machine.ROOT) -> Totals:
    """Run until a stop is asked for or a file has ended; the camera and the broker may come and go meanwhile.

    `root` is where the machine's own files are, /proc and /sys.
    """
    with ExitStack() as parts:
        origin = Origin(settings.device, uuid.uuid4().hex)
        stopwatch = Stopwatch()
        vision = load_vision(settings, DEFAULT_DETECTOR)
        reporter = Reporter(origin, settings.events.interval_s, machine.is_clock_synced)

        def forget(names: frozenset[str]) -> None:
            reporter.forget(names)
            for sink in sinks:
                sink.forget(names)

        identifier = _identifier(settings, vision, stopwatch, forget, parts)
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
        manager = parts.enter_context(closing(ServiceManager()))
        read_machine = partial(machine.read_state, settings.state_dir, root)
        first = health.due(camera.state, [sink.state for sink in sinks], read_machine())
        publish(sinks, None, [reporter.presence(datetime.now(timezone.utc)), *([first] if first else [])])
        try:
            watch(camera, pipeline, identifier, health, sinks, manager, read_machine, stop)
        finally:
            manager.stopping()
            camera.stop()  # while what waits goes out
            publish(sinks, None, pipeline.end())
            if identifier is not None:
                identifier.refresh(math.inf)  # nobody who was just removed goes to the store
        return health.totals()


def _identifier(
    settings: Settings, vision: Vision, stopwatch: Stopwatch, forget: Callable[[frozenset[str]], None], parts: ExitStack
) -> Identifier | None:
    if vision.embedder is None:
        return None
    card = vision.embedder.model.card
    gallery = parts.enter_context(closing(open_gallery(settings, card, outlast=True)))
    embed, rule = stopwatch.timed("embed", vision.embedder), identity_rule(settings, card, tracked=True)
    identifier = Identifier(embed, gallery, rule, forget=forget)
    return parts.enter_context(closing(identifier))


def _control(settings: Settings, vision: Vision) -> Control:
    model = model_id(vision.embedder.model.card) if vision.embedder else None
    return Control(settings.state_dir, model, vision.embedder and vision.embedder.template)


def _emotion_watcher(vision: Vision, stopwatch: Stopwatch) -> EmotionWatcher | None:
    reader = vision.emotion
    return EmotionWatcher(stopwatch.timed("emotion", reader), reader.labels, reader.min_confidence) if reader else None


def watch(
    camera: Latest,
    pipeline: Pipeline,
    identifier: Identifier | None,
    health: HealthMonitor,
    sinks: Sequence[Sink],
    manager: ServiceManager,
    read_machine: Callable[[], machine.MachineState],
    stop: Stop,
) -> None:
    """Take frame after frame through the pipeline to the sinks, and tell how it goes."""
    ready = False
    thermostat = Thermostat()
    machine_state, looked_s = read_machine(), time.monotonic()
    while stop.asked_by is None:
        if time.monotonic() - looked_s > LOOK_EVERY_S:
            machine_state, looked_s = read_machine(), time.monotonic()
        thermostat.note(machine_state)
        time.sleep(thermostat.pause_s())
        try:
            frame = camera.next(TICK_S)
        except EndOfStream:
            log.info("the file is played to its end")
            return
        if frame is None and identifier is not None:
            identifier.refresh(time.monotonic())  # somebody may be removed while there is no camera
        if frame is not None:
            publish(sinks, frame, pipeline(frame))
            health.frame_done(frame)
        elif camera.state.is_blind:  # nobody is known to be in view of such a camera
            if pipeline.report.count:
                publish(sinks, None, pipeline.end())
            else:
                pipeline.track.reset()  # nor is whoever was about to be
        state, sink_states = camera.state, [sink.state for sink in sinks]
        told = health.due(state, sink_states, machine_state, slowed_by=thermostat.cause)
        if told:
            publish(sinks, None, [told])
        # A camera that isn't there is no reason for systemd to wait, nor to start us again.
        ready = ready or frame is not None or state.is_blind
        manager.tell(health.summary(pipeline.report.count), ready=ready, hung=hung_stages(state, sink_states))
    log.info("%s: stopping", stop.asked_by)


def hung_stages(camera: CameraState, sinks: Sequence[SinkState]) -> list[str]:
    """The stages in threads of their own that neither go on nor recover. Inference is the loop's own."""
    return ["camera"] * (not camera.alive) + [part for sink in sinks for part in sink.hung]


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
def stopped_by_signals() -> Iterator[Stop]:
    """A stop that SIGTERM and SIGINT ask for; a second signal ends the process at once."""
    stop = Stop()

    def ask(number: int, _: object) -> None:
        stop.asked_by = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    former = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
