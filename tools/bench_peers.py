"""Compare edgefer with what people run today, on the same pictures, in one run on this machine.

    python tools/bench_peers.py --python mediapipe=VENV/bin/python --python fer=VENV/bin/python

Each runs in a process of its own, with the threads that it takes by itself. Their dependencies conflict: name the
interpreters of those that live in other environments; one that isn't installed is listed with what to install. The
pictures are 640x480, with one face, two, six small ones; or yours (--images). Prints a Markdown table of the
processor's time (all threads): the clock's says little on a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np  # nothing of edgefer here: this file also runs where only a peer is installed
from numpy.typing import NDArray

Picture = NDArray[Any]
Count = Callable[[Picture], int]
"""Takes a picture (BGR), does all that the contender does, and gives the number of faces found."""

SETTLE_S = 1.0
"""Threads that loading used go on spinning for a while, which would count as the first picture's."""
LIMIT_S = 600
"""For one contender, its start and all its pictures."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that finds faces: what it's called, its package, what it does, which of ours does the same."""

    name: str
    package: str
    does: str
    like: str
    load: Callable[[], Count]


@dataclass(frozen=True, slots=True)
class Timing:
    """One picture's: the clock's and the processor's time in milliseconds (medians), and the faces found."""

    ms: float
    cpu_ms: float
    found: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender's: process start to first result, memory when all is done, and each picture's timing."""

    start_s: float
    memory_mb: float
    timings: tuple[Timing, ...]


# The contenders: each imports its library inside, builds it as its own documentation does, and returns its call.


def edgefer(detector: str, *, identity: bool = False, emotion: bool = False) -> Count:
    """Edgefer, decided on each picture alone, with as many of its models as asked for."""
    from edgefer.settings import DetectorSettings, EmotionSettings, IdentitySettings, load_settings  # noqa: PLC0415
    from edgefer.vision import load_vision  # noqa: PLC0415

    settings = load_settings(
        detector=DetectorSettings(model=detector),
        identity=IdentitySettings(enabled=identity),
        emotion=EmotionSettings(enabled=emotion),
    )
    vision = load_vision(settings, detector)

    def count(picture: Picture) -> int:
        faces = vision.detector(picture)
        for face in faces:
            for read in (vision.embedder, vision.emotion):
                if read:
                    read(picture, face)
        return len(faces)

    return count


def mediapipe_detection(model: int) -> Count:
    """MediaPipe's short range (0) or full range (1) detector."""
    detector = mediapipe_solutions().face_detection.FaceDetection(model_selection=model, min_detection_confidence=0.5)
    return lambda picture: len(detector.process(rgb(picture)).detections or ())


def mediapipe_mesh() -> Count:
    """MediaPipe's FaceMesh on a stream: it follows the faces that it has found."""
    mesh = mediapipe_solutions().face_mesh.FaceMesh(max_num_faces=6)
    return lambda picture: len(mesh.process(rgb(picture)).multi_face_landmarks or ())


def mediapipe_solutions() -> Any:
    """The interface that most programs use; it is gone from the newest versions."""
    import mediapipe  # noqa: PLC0415

    if not hasattr(mediapipe, "solutions"):
        raise SystemExit(f"mediapipe {mediapipe.__version__} has no solutions: pip install {INSTALL['mediapipe']}")
    return mediapipe.solutions


def haar(step: float) -> Count:
    """OpenCV's cascade, with the size of the window growing by this step."""
    import cv2  # noqa: PLC0415

    if not hasattr(cv2, "CascadeClassifier"):
        raise SystemExit(f"OpenCV {cv2.__version__} has no cascades: pip install {INSTALL['opencv']}")
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
    return lambda picture: len(cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), step, 5))


def mtcnn() -> Count:
    """facenet-pytorch's MTCNN; its weights come with the package."""
    import facenet_pytorch  # noqa: PLC0415

    network = facenet_pytorch.MTCNN(keep_all=True)

    def count(picture: Picture) -> int:
        boxes, _ = network.detect(rgb(picture))
        return 0 if boxes is None else len(boxes)

    return count


def facenet() -> Count:
    """MTCNN, and an embedding of each face. Random weights: the real ones would be downloaded, and take as long."""
    import facenet_pytorch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    finder, embed = facenet_pytorch.MTCNN(keep_all=True), facenet_pytorch.InceptionResnetV1().eval()

    def count(picture: Picture) -> int:
        faces = finder(rgb(picture))
        if faces is None:
            return 0
        with torch.no_grad():
            return len(embed(faces))

    return count


def fer(*, tflite: bool) -> Count:
    """The package fer: a Haar cascade, and the emotion of each face."""
    from fer.fer import FER  # noqa: PLC0415

    detector = FER(use_tflite=tflite)
    return lambda picture: len(detector.detect_emotions(picture))


def rgb(picture: Picture) -> Picture:
    """The picture as RGB."""
    return np.ascontiguousarray(picture[..., ::-1])


FACES, IDENTITY, EMOTION, ALL = "faces", "faces, identity", "faces, emotion", "faces, identity, emotion"
OURS = (
    Contender("edgefer near", "edgefer", FACES, "", lambda: edgefer("near")),
    Contender("edgefer near, all", "edgefer", ALL, "", lambda: edgefer("near", identity=True, emotion=True)),
    Contender("edgefer far", "edgefer", FACES, "", lambda: edgefer("far")),
    Contender("edgefer far, identity", "edgefer", IDENTITY, "", lambda: edgefer("far", identity=True)),
    Contender("edgefer far, emotion", "edgefer", EMOTION, "", lambda: edgefer("far", emotion=True)),
    Contender("edgefer far, all", "edgefer", ALL, "", lambda: edgefer("far", identity=True, emotion=True)),
)
PEERS = (
    Contender("MediaPipe short range", "mediapipe", FACES, "edgefer near", lambda: mediapipe_detection(0)),
    Contender("MediaPipe full range", "mediapipe", FACES, "edgefer far", lambda: mediapipe_detection(1)),
    Contender("MediaPipe FaceMesh", "mediapipe", "faces, 468 points", "edgefer near", mediapipe_mesh),
    Contender("OpenCV Haar, step 1.1", "opencv", FACES, "edgefer far", lambda: haar(1.1)),
    Contender("OpenCV Haar, step 1.3", "opencv", FACES, "edgefer far", lambda: haar(1.3)),
    Contender("MTCNN", "facenet-pytorch", FACES, "edgefer far", mtcnn),
    Contender("MTCNN, InceptionResnetV1", "facenet-pytorch", IDENTITY, "edgefer far, identity", facenet),
    Contender("fer, TFLite", "fer", EMOTION, "edgefer far, emotion", lambda: fer(tflite=True)),
    Contender("fer, Keras", "fer", EMOTION, "edgefer far, emotion", lambda: fer(tflite=False)),
)
INSTALL = {
    "mediapipe": "mediapipe==0.10.21",
    "opencv": "'opencv-python-headless<5'",
    "facenet-pytorch": "facenet-pytorch",
    "fer": "fer",
}


def main() -> None:
    """Measure them all, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", nargs="+", type=Path, help="your pictures (those of the sample otherwise)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help=f"the interpreter of {', '.join(INSTALL)}"
    )
    parser.add_argument("--repetitions", type=int, default=60, help="times each picture is shown (%(default)s)")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in the child: a contender, the pictures
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), options.repetitions)
        return
    interpreters = dict(pair.partition("=")[::2] for pair in options.python)
    if unknown := set(interpreters) - set(INSTALL):
        parser.error(f"--python {unknown.pop()}=...: the names are {', '.join(INSTALL)}")
    pictures = given_pictures(options.images) if options.images else sample_pictures()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.npz"
        np.savez(path, *pictures.values())
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
        print(head(list(pictures)), flush=True)
        ours: dict[str, Measured] = {}
        for contender in (*OURS, *PEERS):
            python = interpreters.get(contender.package, sys.executable)
            result = run(contender, python, path, options.repetitions)
            if contender in OURS and isinstance(result, Measured):
                ours[contender.name] = result
            print(row(contender, result, ours.get(contender.like)), flush=True)


def head(names: Sequence[str]) -> str:
    """The table's head."""
    columns = ["", "does", *(f"{name}, CPU ms" for name in names), "by the clock, ms", "MB", "start, s"]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def row(contender: Contender, result: Measured | str, like: Measured | None) -> str:
    """One contender's line: each picture's time, how many times ours for the same job, and the faces found.

    The clock's time is that of the first picture.
    """
    if isinstance(result, str):
        return f"| {contender.name} | {contender.does} | {result} |"
    cells = []
    for i, timing in enumerate(result.timings):
        times = f" ({timing.cpu_ms / like.timings[i].cpu_ms:.1f}x)" if like else ""
        cells.append(f"{timing.cpu_ms:.2f}{times}, found {timing.found}")
    last = (f"{result.timings[0].ms:.2f}", f"{result.memory_mb:.0f}", f"{result.start_s:.1f}")
    return f"| {' | '.join((contender.name, contender.does, *cells, *last))} |"


def run(contender: Contender, python: str, pictures: Path, repetitions: int) -> Measured | str:
    """Measure in a process of its own; a sentence where it can't be."""
    command = [python, __file__, "--repetitions", str(repetitions), "--measure", contender.name, str(pictures)]
    errors = pictures.with_name("errors")
    start_s = time.perf_counter()
    try:
        with (
            errors.open("w") as stderr,
            subprocess.Popen(  # noqa: S603  # ourselves, under the interpreter that was named
                command, stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as child,
        ):
            limit = threading.Timer(LIMIT_S, child.kill)
            limit.start()
            # Its first line comes with its first result; libraries' own chatter goes to the other stream.
            ready = child.stdout.readline() if child.stdout else ""
            first_s = time.perf_counter() - start_s
            last, _ = child.communicate()
            limit.cancel()
    except OSError as error:
        return f"{python}: {error.strerror}"
    if child.returncode == -signal.SIGKILL:
        return f"given up after {LIMIT_S} s"
    if child.returncode or not ready:
        why = (errors.read_text().strip().splitlines() or ["it ended without a word"])[-1]
        missing = why.startswith("ModuleNotFoundError")
        return f"not installed: pip install {INSTALL.get(contender.package, 'edgefer')}" if missing else why
    told = json.loads(last)
    return Measured(first_s, told["memory_mb"], tuple(Timing(**timing) for timing in told["timings"]))


def measure(name: str, path: Path, repetitions: int) -> None:
    """In the child: load one contender, show it the pictures, print what was measured."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries print
    (contender,) = (contender for contender in (*OURS, *PEERS) if contender.name == name)
    count = contender.load()
    with np.load(path) as archive:
        pictures = [archive[key] for key in archive.files]
    count(pictures[0])
    print("ready", file=answers, flush=True)
    time.sleep(SETTLE_S)
    timings = [asdict(timed(count, picture, repetitions)) for picture in pictures]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    print(json.dumps({"memory_mb": memory_mb, "timings": timings}), file=answers, flush=True)
    # Some libraries' threads don't end by themselves.
    os._exit(0)


def timed(count: Count, picture: Picture, repetitions: int) -> Timing:
    """Medians over so many calls, after a tenth as many to warm up."""
    for _ in range(repetitions // 10 + 1):
        found = count(picture)
    times = []
    for _ in range(repetitions):
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        count(picture)
        times.append((time.perf_counter() - start_s, time.process_time() - cpu_start_s))
    ms, cpu_ms = np.median(times, 0) * 1000
    return Timing(float(ms), float(cpu_ms), found)


# The pictures.


def given_pictures(paths: Sequence[Path]) -> Mapping[str, Picture]:
    """The user's."""
    from edgefer.pictures import read_picture  # noqa: PLC0415

    return {path.name: read_picture(path) for path in paths}


def sample_pictures() -> Mapping[str, Picture]:
    """One, two and six people: moments of the sample, and its portraits as a group far away."""
    from edgefer.cameras import sample  # noqa: PLC0415

    return {"one face": sample.draw(4), "two faces": sample.draw(8), "six small": group()}


def group() -> Picture:
    """Six portraits before a wall, their faces 40 px high."""
    import cv2  # noqa: PLC0415

    from edgefer.cameras import sample  # noqa: PLC0415

    wall = sample.draw(0).copy()
    for i in range(6):
        actor = sample.CAST[i % len(sample.CAST)]
        picture = cv2.imread(str(sample.picture_path(actor)))
        assert picture is not None
        left, top, width, height = (int(v) for v in (actor.part.x, actor.part.y, actor.part.width, actor.part.height))
        scale = 40 / actor.face.height
        size = round(width * scale), round(height * scale)
        small = cv2.resize(picture[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA)
        x, y = 60 + 200 * (i % 3), 90 + 200 * (i // 3)
        wall[y : y + size[1], x : x + size[0]] = small
    return wall


if __name__ == "__main__":
    main()
