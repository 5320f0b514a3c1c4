"""What each stage costs on this machine: `edgefer bench`.

The stages are the daemon's own, put together as the daemon does it; only the camera and the broker are missing.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar, cast
from urllib.parse import quote

import cv2
import numpy as np
from pydantic import PlainSerializer, TypeAdapter

from edgefer import __version__, emotions, identify, machine
from edgefer.cameras import sample
from edgefer.emotions import EmotionWatcher
from edgefer.errors import InputError
from edgefer.files import isolated_python
from edgefer.gallery import Gallery
from edgefer.identify import Identifier, identity_rule
from edgefer.messages import Frame, Image
from edgefer.payload import to_json
from edgefer.pictures import read_picture
from edgefer.pipeline import Pipeline
from edgefer.report import Origin, Reporter
from edgefer.service import DEFAULT_DETECTOR
from edgefer.settings import Settings
from edgefer.tracker import Tracker
from edgefer.vision import Vision, load_vision
from edgefer.vision.model import RUNTIME, Model
from edgefer.vision.quality import QualityRater

log = logging.getLogger(__name__)

REPETITIONS = 300
"""Frames that are measured: ten seconds of a camera's, so that the daemon's schedule shows."""
WARM_UP = 30
"""Frames before, until memory is at hand, the face is confirmed and its first eager readings are over."""
STARTS = 3
START_LIMIT_S = 60.0
SAMPLE_S = 4.0
"""When one person, and nobody else, stands still in the sample."""

Milliseconds = Annotated[float, PlainSerializer(lambda value: round(value, 3))]
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 3))]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs: the clock's time (median, and 95 in 100 stay under), and the processor's (median)."""

    name: str
    calls: int
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    cpu_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class FrameCost:
    """What a whole frame costs; `cpu_ms` is the mean, as frames differ on the daemon's schedule.

    `not_invoke` is the share of the processor's time that isn't spent inside the networks, 0..1.
    """

    frames_per_s: Rounded
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    cpu_ms: Milliseconds
    not_invoke: Rounded


@dataclass(frozen=True, slots=True)
class Start:
    """Medians over some starts, in seconds: importing, loading the models, process start to first event.

    `first_event_s` is None where the daemon didn't come so far.
    """

    import_s: Rounded
    models_s: Rounded
    first_event_s: Rounded | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured, on what, and how often."""

    edgefer: str
    runtime: str
    python: str
    processor: str
    cores: int
    threads: int
    temperature_c: float | None
    throttled: bool | None
    picture: str
    width: int
    height: int
    faces: int
    repetitions: int
    stages: tuple[Cost, ...]
    """Each stage, in order, where every model reads every frame and every frame makes an event."""
    models: tuple[Cost, ...]
    """Each model's invoke alone, inside the stages above."""
    every_frame: FrameCost
    on_schedule: FrameCost
    memory_mb: Rounded
    start: Start | None


def bench_command(settings: Settings, image: Path | None, *, as_json: bool) -> int:
    """Measure, and print it for people or as one JSON object."""
    report = bench(settings, image)
    sys.stdout.write(to_json_line(report) if as_json else table(report))
    return 0


def bench(
    settings: Settings,
    image: Path | None = None,
    *,
    repetitions: int = REPETITIONS,
    starts: int = STARTS,
) -> BenchReport:
    """Measure the stages on a picture with a face (the sample's when None), as the settings say.

    `starts` is how often the daemon is started; 0 leaves that out. InputError where there is no picture, or no face in
    it; ModelError as the daemon's.
    """
    picture = _picture(image)
    with ExitStack() as parts:
        vision = load_vision(settings, DEFAULT_DETECTOR)
        meter = Meter()
        networks = _watched(vision, meter)
        faces = len(vision.detector(picture))
        if not faces:
            raise InputError(
                f"{image or 'sample://'}: no face is found; name a picture with one: edgefer bench PICTURE"
            )
        gallery = _gallery(vision, picture, parts)
        frames = _Frames(picture, settings.frame.fps)
        every_frame = _run(
            _pipeline(vision, gallery, settings, meter, always=True), frames, meter, repetitions, networks
        )
        stages = meter.costs(["detect", "track", "rate", "identify", "emotion", "report", "json"])
        models = meter.costs(networks)
        on_schedule = _run(
            _pipeline(vision, gallery, settings, meter, always=False), frames, meter, repetitions, networks
        )
        memory_mb = machine.memory_mb()
    return BenchReport(
        edgefer=__version__,
        runtime=RUNTIME,
        python=platform.python_version(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=settings.threads,
        temperature_c=machine.temperature_c(),
        throttled=machine.is_throttled(),
        # JSON can't hold a name that isn't UTF-8.
        picture="sample://" if image is None else str(image).encode(errors="backslashreplace").decode(),
        width=picture.shape[1],
        height=picture.shape[0],
        faces=faces,
        repetitions=repetitions,
        stages=stages,
        models=models,
        every_frame=every_frame,
        on_schedule=on_schedule,
        memory_mb=memory_mb,
        start=_start(settings, picture, starts) if starts else None,
    )


def to_json_line(report: BenchReport) -> str:
    """The report as JSON, on one line."""
    return TypeAdapter(BenchReport).dump_json(report).decode() + "\n"


def table(report: BenchReport) -> str:
    """The report for people."""
    heat = "" if report.temperature_c is None else f", {report.temperature_c:.0f} °C"
    throttled = ", THROTTLED (too hot, or a weak power supply)" if report.throttled else ""
    lines = [
        f"edgefer {report.edgefer}, {report.runtime}, Python {report.python}",
        f"{report.processor}, {report.cores} core(s), {report.threads} thread(s) a model{heat}{throttled}",
        f"{report.picture}: {report.width}x{report.height}, {report.faces} face(s); {report.repetitions} frames",
        "",
        f"{'every model reads every frame':<34} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8}",
        *(_row(f"  {cost.name}", cost) for cost in report.stages),
        _row("  a whole frame", report.every_frame),
        "of which invoke alone",
        *(_row(f"  {cost.name}", cost) for cost in report.models),
        "",
        _summary("every frame read", report.every_frame),
        _summary("on the daemon's schedule", report.on_schedule),
        f"resident memory: {report.memory_mb:.0f} MB",
    ]
    if start := report.start:
        first = "not measured" if start.first_event_s is None else f"{start.first_event_s:.2f} s"
        parts = f"importing {start.import_s:.2f} s, loading the models {start.models_s:.2f} s"
        lines += [f"start to first event: {first} ({parts})"]
    return "\n".join(lines) + "\n"


def _row(name: str, cost: Cost | FrameCost) -> str:
    return f"{name:<34} {cost.p50_ms:8.2f} {cost.p95_ms:8.2f} {cost.cpu_ms:8.2f}"


def _summary(name: str, cost: FrameCost) -> str:
    return (
        f"{name}: {cost.frames_per_s:.0f} frames/s, {cost.cpu_ms:.2f} ms CPU a frame, "
        f"{cost.not_invoke:.0%} of it outside the networks"
    )


# Measuring.


class Meter:
    """Notes the clock's and the processor's time of each call, in milliseconds, by the name of what was called."""

    def __init__(self) -> None:
        self._calls: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(self, name: str, call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The same call, noted."""

        def noted(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            # The processor's time is read inside: the call to read it costs more than the clock's.
            start_s = time.perf_counter()
            cpu_start_s = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                cpu_ms = (time.process_time() - cpu_start_s) * 1000
                self._calls[name].append(((time.perf_counter() - start_s) * 1000, cpu_ms))

        return noted

    def clear(self) -> None:
        """Forget what was noted."""
        self._calls.clear()

    def costs(self, names: Sequence[str]) -> tuple[Cost, ...]:
        """What calls of these names cost; a name that wasn't called is left out."""
        return tuple(self._cost(name) for name in names if self._calls[name])

    def _cost(self, name: str) -> Cost:
        wall_ms, cpu_ms = zip(*self._calls[name], strict=True)
        p50, p95 = np.percentile(wall_ms, (50, 95))
        return Cost(name, len(cpu_ms), float(p50), float(p95), statistics.median(cpu_ms))

    def wall_ms(self, name: str) -> list[float]:
        """The clock's time of each call."""
        return [wall for wall, _ in self._calls[name]]

    def cpu_ms(self, *names: str) -> float:
        """The processor's time of all calls together."""
        return sum(cpu for name in names for _, cpu in self._calls[name])


class _Frames:
    """One picture as a camera's frames: numbered, and each in its time of the stream."""

    def __init__(self, image: Image, fps: float) -> None:
        self._image = image
        self._fps = fps
        self._number = 0

    def next(self) -> Frame:
        """The next frame, captured now."""
        number = self._number
        self._number += 1
        now = datetime.now(timezone.utc)
        return Frame(self._image, number, time.monotonic(), now, number / self._fps, "sample://")


def _watched(vision: Vision, meter: Meter) -> list[str]:
    """Put a stopwatch around the networks; their names, in the order in which they run."""
    models: list[Model] = [vision.detector.model]
    models += [part.model for part in (vision.embedder, vision.emotion) if part]
    names = [f"{model.card.name} {model.card.version}".strip() for model in models]
    for name, model in zip(names, models, strict=True):
        model.invoke = meter.timed(name, model.invoke)
    return names


def _gallery(vision: Vision, picture: Image, parts: ExitStack) -> Gallery | None:
    """A gallery that knows the faces of the picture: with an empty one, nobody is embedded."""
    if vision.embedder is None:
        return None
    folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="edgefer-bench-")))
    gallery = parts.enter_context(closing(Gallery(folder, "bench", create=True)))
    for i, face in enumerate(vision.detector(picture)):
        gallery.enroll(f"Face {i + 1}", vision.embedder.template(picture, face), 1.0)
    return gallery


def _pipeline(vision: Vision, gallery: Gallery | None, settings: Settings, meter: Meter, *, always: bool) -> Pipeline:
    """The daemon's pipeline with a stopwatch around each stage; `always` reads and tells every face in every frame."""
    origin = Origin(settings.device, "bench")
    identifier = watcher = None
    if vision.embedder and gallery:
        rule = identity_rule(settings, vision.embedder.model.card, tracked=True)
        every_s = 0.0 if always else identify.EVERY_S
        identifier = meter.timed("identify", Identifier(vision.embedder, gallery, rule, every_s))
    if reader := vision.emotion:
        every_s = 0.0 if always else emotions.EVERY_S
        watcher = meter.timed("emotion", EmotionWatcher(reader, reader.labels, reader.min_confidence, every_s))
    reporter = Reporter(origin, 0.0 if always else settings.events.interval_s, machine.is_clock_synced)
    return Pipeline(
        detect=meter.timed("detect", vision.detector),
        # A frame only calls these two; whatever else they can do is of no use here.
        track=cast("Tracker", meter.timed("track", Tracker(origin.boot_id))),
        rate=meter.timed("rate", QualityRater()),
        identify=identifier,
        read_emotions=watcher,
        report=cast("Reporter", meter.timed("report", reporter)),
    )


def _run(pipeline: Pipeline, frames: _Frames, meter: Meter, repetitions: int, networks: Sequence[str]) -> FrameCost:
    """Warm up, then take so many frames through the pipeline, as far as the JSON that a sink sends."""
    write = meter.timed("json", to_json)

    def take(frame: Frame) -> None:
        for message in pipeline(frame):
            write(message)

    timed = meter.timed("frame", take)
    for _ in range(WARM_UP):
        timed(frames.next())
    meter.clear()
    for _ in range(repetitions):
        timed(frames.next())
    wall_ms, cpu_ms = meter.wall_ms("frame"), meter.cpu_ms("frame")
    return FrameCost(
        frames_per_s=1000 * repetitions / sum(wall_ms),
        p50_ms=float(np.percentile(wall_ms, 50)),
        p95_ms=float(np.percentile(wall_ms, 95)),
        cpu_ms=cpu_ms / repetitions,
        not_invoke=1 - meter.cpu_ms(*networks) / cpu_ms,
    )


# Starting.

_LOAD = """
import time
start = time.perf_counter()
from edgefer import service, settings, vision
imported = time.perf_counter()
vision.load_vision(settings.load_settings(), service.DEFAULT_DETECTOR)
print(imported - start, time.perf_counter() - imported)
"""


def _start(settings: Settings, picture: Image, starts: int) -> Start:
    """Start the daemon on the picture, in processes of their own, several times."""
    loads = [_load() for _ in range(starts)]
    firsts = [_first_event_s(settings, picture) for _ in range(starts)]
    came = [first for first in firsts if first is not None]
    return Start(
        import_s=statistics.median(imported for imported, _ in loads),
        models_s=statistics.median(loaded for _, loaded in loads),
        first_event_s=statistics.median(came) if came else None,
    )


def _load() -> tuple[float, float]:
    """Seconds to import the daemon, and to load its models."""
    done = subprocess.run(  # noqa: S603  # here and below: our own command, no shell
        isolated_python(_LOAD), capture_output=True, text=True, timeout=START_LIMIT_S, check=True
    )
    imported_s, loaded_s = (float(word) for word in done.stdout.split())
    return imported_s, loaded_s


def _first_event_s(settings: Settings, picture: Image) -> float | None:
    """Seconds from the start of `edgefer run` to its first face event on standard output."""
    with tempfile.TemporaryDirectory(prefix="edgefer-bench-") as temporary:
        pictures = Path(temporary) / "pictures"
        pictures.mkdir()
        cv2.imwrite(str(pictures / "face.bmp"), picture)
        environment = os.environ | {
            "EDGEFER_CAMERA": f"images://{quote(str(pictures))}?fps={settings.frame.fps}&loop=1",
            "EDGEFER_SINKS": "stdout",
            "EDGEFER_STATE_DIR": temporary,
            # The picture is upright already.
            "EDGEFER_FRAME__ROTATION": "0",
            "EDGEFER_FRAME__MIRROR": "false",
        }
        errors = Path(temporary) / "errors"
        command = isolated_python("import sys; from edgefer.__main__ import main; sys.exit(main(['run']))")
        start_s = time.perf_counter()
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(  # noqa: S603
                command, stdout=subprocess.PIPE, stderr=stderr, env=environment
            ) as daemon,
        ):
            limit = threading.Timer(START_LIMIT_S, daemon.kill)
            limit.start()
            try:
                assert daemon.stdout is not None
                for line in daemon.stdout:
                    if b'"edgefer.face/1"' in line:
                        return time.perf_counter() - start_s
            finally:
                limit.cancel()
                daemon.kill()
        log.warning("the daemon told of no face: %s", (errors.read_text().splitlines() or ["no reason given"])[-1])
        return None


# What it is measured on.


def _picture(path: Path | None) -> Image:
    if path is not None:
        return read_picture(path)
    try:
        return sample.draw(SAMPLE_S)
    except InputError as error:
        raise InputError(f"{error}; or name a picture with a face: edgefer bench PICTURE") from error


def _processor() -> str:
    """What the processor, or the board that it sits on, calls itself."""
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text().strip("\0\n ")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
