"""How many faces a detector finds, how many it makes up, and how well it places their landmarks.

    python tools/evaluate_detector.py models/far.json      # chooses the card's min_score
    python tools/evaluate.py detector models/far.json      # writes the figures into the card
    python tools/compare_detectors.py models/far.json      # beside other people's detectors

Sizes are the side of the square of a box's area, in pixels of the stored picture (its long side has 400 at most).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from command_line import Parser, card_path, run
from data import DATA
from detector_scenes import Floats, Scene, open_people, open_photos, people_scene, photo_scene, sizes_of
from evaluate_embedding import misalignment
from measured import precision_of
from model_file import write_card
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Detection, Landmarks
from edgefer.vision.card import Metric, Precision, read_card
from edgefer.vision.detector import Detector, ious
from edgefer.vision.model import Model
from edgefer.vision.preprocess import TEMPLATE_SIZE

LOWEST_SCORE = 0.05
"""Detections from here up count towards the average precision; lower ones add next to nothing to it."""
FALSE_FACES = 1 / 50
"""The most faces that may be made up, a picture without any, at the threshold that a card carries."""
SIZES = {"< 16 px": (0.0, 16.0), "16-32 px": (16.0, 32.0), "32-64 px": (32.0, 64.0), "> 64 px": (64.0, math.inf)}
"""Faces by size: at least the first, below the second."""
FEW_FALSE = 1 / 10
"""Faces made up, a picture, at which the recall by size is told."""

RECALLS = [f"recall at min_score, faces >= {px} px" for px in (16, 32)]
FACES_MADE_UP = "false faces / empty picture"
LANDMARKS_TOLD = "landmark error at min_score, >= 32 px"
"""Faces that a detector hardly sees are placed worst, and whoever finds more of them has the larger error: this one is
of those that it tells of."""
AT_MIN_SCORE = {*RECALLS, FACES_MADE_UP, LANDMARKS_TOLD}
"""The figures that hang on the card's threshold."""

Found = list[list[Detection]]
"""The detections of each picture, best first."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A face's landmarks as a detector places them and as they are, and the square root of its box's area.

    Each 5 x 2; all in pixels of the picture.
    """

    landmarks: NDArray[np.float64]
    truth: NDArray[np.float64]
    size: float


def evaluate_detector(model: Model, data: Path) -> list[Metric]:
    """The figures of a model, at its card's precision."""
    return figures(model, held_out_people(data), validation_photos(data), precision_of(model.card))


def figures(model: Model, people: list[Scene], photos: list[Scene], precision: Precision) -> list[Metric]:
    """What a card tells of a model."""
    on_people, on_photos = find(model, people), find(model, photos)
    min_score = Detector(model).min_score
    on_empty = [found for found, scene in zip(on_photos, photos, strict=True) if not len(scene.boxes)]
    few_false = score_at(on_people, people, FEW_FALSE)
    values = {
        "AP50, faces >= 16 px": average_precision(on_people, people, 16),
        "AP50, faces >= 32 px": average_precision(on_people, people, 32),
        RECALLS[0]: recall(on_people, people, 16, min_score),
        RECALLS[1]: recall(on_people, people, 32, min_score),
        **{f"AP50, faces {name}": average_precision(on_people, people, *ends) for name, ends in SIZES.items()},
        **{
            f"recall, 1 false face in 10 images, {name}": recall(on_people, people, ends[0], few_false, ends[1])
            for name, ends in SIZES.items()
        },
    }
    on_validation = {}
    if placed := faces_placed(on_photos, photos, 32):
        on_validation["landmark error, >= 32 px"] = landmark_error(placed)
        on_validation |= alignment_noise(placed)
    if told := faces_placed(at_least(on_photos, min_score), photos, 32):
        on_validation[LANDMARKS_TOLD] = landmark_error(told)
    if on_empty:
        on_validation[FACES_MADE_UP] = false_faces(on_empty, min_score)
    return [
        *(Metric("faceboxes_dev", "odd images", name, round(value, 4), precision) for name, value in values.items()),
        *(Metric("det_val", "all", name, round(value, 4), precision) for name, value in on_validation.items()),
    ]


def held_out_people(data: Path) -> list[Scene]:
    """The odd half of faceboxes_dev, which nothing trains on."""
    pack = open_people(data)
    return [people_scene(pack, i) for i in range(1, len(pack), 2)]


def validation_photos(data: Path) -> list[Scene]:
    """All of det_val."""
    pack = open_photos(data / "det_val.npz")
    return [photo_scene(pack, i) for i in range(len(pack))]


def find(model: Model, scenes: list[Scene], min_score: float = LOWEST_SCORE) -> Found:
    """What the detector finds, unless told otherwise down to scores that nobody would act on."""
    detector = Detector(model, min_score)
    return [detector(scene.image) for scene in scenes]


def average_precision(found: Found, scenes: list[Scene], smallest: float, largest: float | None = None) -> float:
    """AP at IoU 0.5 over all points of the curve, of wanted faces of at least `smallest` pixels.

    Best scores first, each detection takes the wanted face that it overlaps most. One that lies on a doubtful or
    smaller face is neither right nor wrong; every other one is wrong, whatever its size. With `largest`, faces below it
    alone are wanted, and detections between the two alone are wrong, as in COCO's areas. The curve has one point for
    each score: an int8 model gives many detections the same, and their order says nothing.
    """
    verdicts, total = _judged(found, scenes, smallest, largest)
    if not total or not verdicts:
        return 0.0
    last = np.flatnonzero(np.diff([score for score, _ in verdicts], append=-1.0))  # of each score
    right = np.cumsum([verdict for _, verdict in verdicts])[last]
    precision = right / (last + 1)
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(right / total, prepend=0.0)).sum())


def recall(found: Found, scenes: list[Scene], smallest: float, min_score: float, largest: float | None = None) -> float:
    """The share of the wanted faces of these sizes, as above, that are found with at least this score."""
    verdicts, total = _judged(found, scenes, smallest, largest)
    return sum(verdict for score, verdict in verdicts if score >= min_score) / max(total, 1)


def score_at(found: Found, scenes: list[Scene], false_faces: float) -> float:
    """The lowest score at which at most so many faces are made up, a picture; those on a face of any size are none."""
    wrong = [score for score, right in _judged(found, scenes, 0, None)[0] if not right]
    allowed = int(false_faces * len(scenes))
    return math.nextafter(wrong[allowed], math.inf) if allowed < len(wrong) else 0.0


def at_least(found: Found, min_score: float) -> Found:
    """The detections of at least this score."""
    return [[face for face in faces if face.score >= min_score] for faces in found]


def false_faces(found: Found, min_score: float) -> float:
    """Detections of at least this score, a picture; for pictures without a face."""
    return sum(face.score >= min_score for faces in found for face in faces) / len(found)


def faces_placed(found: Found, scenes: list[Scene], smallest: float) -> list[Placed]:
    """Where the landmarks of wanted faces of at least `smallest` pixels were placed, and where they are.

    Each face's are those of the best detection with an IoU of at least 0.5; faces without one, and those whose
    landmarks aren't known, are left out.
    """
    placed = []
    for faces, scene in zip(found, scenes, strict=True):
        known = scene.wanted & (sizes_of(scene.boxes) >= smallest) & np.isfinite(scene.points).all((1, 2))
        boxes, points = scene.boxes[known], scene.points[known]
        for box, truth, overlaps in zip(boxes, points, _overlaps(faces, boxes).T, strict=True):
            if len(overlaps) and overlaps.max() >= 0.5:
                landmarks = np.array(faces[int(overlaps.argmax())].landmarks)
                placed.append(Placed(landmarks, truth.astype(np.float64), float(sizes_of(box[None])[0])))
    return placed


def landmark_error(placed: list[Placed]) -> float:
    """The mean distance of all faces' five landmarks from the truth, as a share of the face's size."""
    distances = [np.linalg.norm(face.landmarks - face.truth, axis=1).mean() / face.size for face in placed]
    return float(np.mean(distances))


def alignment_noise(placed: list[Placed]) -> dict[str, float]:
    """How far off an embedding's face is aligned by the landmarks: its turn, its size, and where its middle is.

    1.48 times the median of what each is off by, which is the standard deviation of what has no outliers.
    """
    off = np.array([misalignment(_five(face.truth), _five(face.landmarks)) for face in placed])
    named = {"turn, degrees": off[:, 0], "size, share": off[:, 1] - 1, f"middle, px of {TEMPLATE_SIZE}": off[:, 2:]}
    return {f"alignment off by, {name}": float(1.48 * np.median(np.abs(each))) for name, each in named.items()}


def _five(points: NDArray[np.float64]) -> Landmarks:
    return cast("Landmarks", tuple(map(tuple, points.tolist())))


def _judged(
    found: Found, scenes: list[Scene], smallest: float, largest: float | None
) -> tuple[list[tuple[float, bool]], int]:
    """Score and rightness of every detection that counts, best first, and the number of faces to find."""
    below = math.inf if largest is None else largest
    verdicts, total = [], 0
    for faces, scene in zip(found, scenes, strict=True):
        sizes = sizes_of(scene.boxes)
        wanted = scene.wanted & (sizes >= smallest) & (sizes < below)
        total += int(wanted.sum())
        overlaps = _overlaps(faces, scene.boxes)
        free = wanted.copy()
        for face, row in zip(faces, overlaps, strict=True):
            best = int((row * free).argmax()) if len(row) else 0
            if len(row) and free[best] and row[best] >= 0.5:
                free[best] = False
                verdicts.append((face.score, True))
            elif not (row[~wanted] >= 0.5).any() and (largest is None or smallest <= face.box.side < below):
                verdicts.append((face.score, False))
    return sorted(verdicts, key=lambda verdict: -verdict[0]), total


def _overlaps(faces: list[Detection], boxes: Floats) -> Floats:
    """IoU of each detection (rows) with each box (columns: left, top, right, bottom)."""
    places = [(face.box.x, face.box.y, face.box.x + face.box.width, face.box.y + face.box.height) for face in faces]
    return ious(np.array(places, np.float32).reshape(-1, 4), boxes)


def main() -> None:
    """Show thresholds with what each costs; keep the lowest but one that makes up few enough faces in the card."""
    parser = Parser(__doc__)
    parser.add_argument("card", type=card_path, help="the model's card, its .tflite, or the name of one that ships")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    arguments = parser.parse_args()
    model = Model(arguments.card.with_suffix(".tflite"), "detector")
    people = held_out_people(arguments.data)
    empty = [scene for scene in validation_photos(arguments.data) if not len(scene.boxes)]
    if not empty:
        raise InputError(f"{arguments.data / 'det_val.npz'} holds no picture without a face to count false ones on")
    thresholds = np.arange(0.2, 0.8, 0.02).round(2).tolist()
    on_people, on_empty = find(model, people, thresholds[0]), find(model, empty, thresholds[0])
    chosen, few_enough = None, False
    print("min_score  false faces a picture  recall >= 16 px  recall >= 32 px")
    for min_score in thresholds:
        wrong = false_faces(on_empty, min_score)
        shares = [recall(on_people, people, smallest, min_score) for smallest in (16, 32)]
        print(f"{min_score:9.2f}  {wrong:21.3f}  {shares[0]:15.3f}  {shares[1]:15.3f}")
        # A step more than needed: tflite-runtime 2.14 rounds otherwise, and gives a score 0.025 higher now and then.
        if chosen is None and few_enough:
            chosen = min_score
        few_enough = wrong <= FALSE_FACES
    if chosen is None:
        raise InputError(f"no threshold up to {thresholds[-2]} makes up few enough faces; the card stays as it is")
    card = read_card(arguments.card)
    still_so = chosen == card.thresholds.get("min_score")
    metrics = tuple(metric for metric in card.metrics if still_so or metric.metric not in AT_MIN_SCORE)
    card = dataclasses.replace(card, thresholds={"min_score": chosen}, metrics=metrics)
    write_card(arguments.card, card)
    print(f"{arguments.card}: min_score {chosen}")
    if not still_so:
        print(f"its figures at the former one are gone: python tools/evaluate.py detector {arguments.card}")


if __name__ == "__main__":
    sys.exit(run(main))
