"""Our detectors beside YuNet and SCRFD on the same pictures, as a table for docs/models.md.

    python tools/compare_detectors.py far near

The odd images of faceboxes_dev, which nothing of ours trains on. AP50 and recall are of faces by size, in pixels of the
picture (its long side has 400 at most); the recall is at the score that makes up one face in ten images; the points'
error is that of det_val's faces of at least 32 px, of all that are found and of those found with a usual score. Each
picture goes to all in turn, on one thread; letterbox, network, decoding at a usual threshold and suppression are timed,
and told as a ratio to the first card's median.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from command_line import Parser, card_path, run
from data import DATA
from detector_scenes import Scene
from evaluate_detector import (
    FEW_FALSE,
    LOWEST_SCORE,
    SIZES,
    at_least,
    average_precision,
    faces_placed,
    held_out_people,
    landmark_error,
    recall,
    score_at,
    validation_photos,
)
from peers import PARAMETERS, Detect, peers

from edgefer.vision.detector import Detector
from edgefer.vision.model import Model

SIDES = (640, 416, 320, 256)
"""Long sides that the peers are given."""
SMALLEST = (16, 32)
"""Pixels: `far` and `near` are for faces from here up."""
TIMED_PICTURES = 100
USUAL_SCORE = 0.5
"""Of a detection that somebody acts on: what lies below costs time that nobody spends."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One detector of the table: its input in pixels, how many numbers it learned, and itself at two thresholds."""

    name: str
    takes: str
    parameters: int
    thorough: Detect
    usual: Detect


def main() -> None:
    """Print the table."""
    parser = Parser(__doc__)
    parser.add_argument(
        "cards", type=card_path, nargs="+", metavar="CARD", help="a detector's card, its .tflite, or its name"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    arguments = parser.parse_args()
    others = []
    for side in SIDES:
        thorough, usual = (peers(arguments.data, side, score) for score in (LOWEST_SCORE, USUAL_SCORE))
        others += [Contender(name, f"{side}", PARAMETERS[name], thorough[name], usual[name]) for name in thorough]
    contenders = [*map(ours, arguments.cards), *others]
    print(table(contenders, held_out_people(arguments.data), validation_photos(arguments.data)))


def ours(card: Path) -> Contender:
    """The detector of a card."""
    model = Model(card.with_suffix(".tflite"), "detector")
    takes = f"{model.card.input.width}x{model.card.input.height}"
    thorough, usual = Detector(model, LOWEST_SCORE), Detector(model, USUAL_SCORE)
    return Contender(f"`{model.card.name}`", takes, parameters(model.path), thorough, usual)


def table(contenders: Sequence[Contender], scenes: list[Scene], photos: list[Scene]) -> str:
    """How well and how fast each finds the scenes' faces, and places the photos': Markdown, a row a contender."""
    cv2.setNumThreads(1)
    found = [[contender.thorough(scene.image) for scene in scenes] for contender in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for scene in scenes[:TIMED_PICTURES]:
        for each_s, contender in zip(seconds, contenders, strict=True):
            start = time.perf_counter()
            contender.usual(scene.image)
            each_s.append(time.perf_counter() - start)
    columns = [
        "",
        "input",
        "parameters",
        "time",
        *(f"AP50 >= {px} px" for px in SMALLEST),
        *(f"{figure} {name}" for figure in ("AP50", "recall") for name in SIZES),
        "points",
        f"points, score >= {USUAL_SCORE}",
    ]
    rows = [columns, ["---"] * len(columns)]
    first_s = np.median(seconds[0])
    for contender, faces, each_s in zip(contenders, found, seconds, strict=True):
        few_false = score_at(faces, scenes, FEW_FALSE)
        figures = [average_precision(faces, scenes, px) for px in SMALLEST]
        figures += [average_precision(faces, scenes, *ends) for ends in SIZES.values()]
        figures += [recall(faces, scenes, low, few_false, high) for low, high in SIZES.values()]
        size, ratio = f"{contender.parameters / 1e3:.0f} k", f"{np.median(each_s) / first_s:.2f}"
        on_photos = [contender.thorough(photo.image) for photo in photos]
        placed = [faces_placed(some, photos, 32) for some in (on_photos, at_least(on_photos, USUAL_SCORE))]
        told = [f"{figure:.3f}" for figure in figures]
        told += [f"{landmark_error(faces):.1%}" if faces else "" for faces in placed]
        rows.append([contender.name, contender.takes, size, ratio, *told])
    said = f"{len(scenes)} pictures; a time of 1 was {first_s * 1e3:.1f} ms"
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + f"\n\n{said}"


def parameters(path: Path) -> int:
    """How many weights and biases a .tflite holds, batch normalisation folded in."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    count = 0
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        buffer, scaled = model.buffers[tensor.buffer], tensor.quantization and tensor.quantization.scale is not None
        # Shapes and axes are constants too, of int32 like an int8 model's biases, but nothing scales them. Larger
        # constants lie behind the table of buffers, at an offset.
        if (buffer.data is not None or buffer.offset) and (scaled or tensor.type != schema.TensorType.INT32):
            count += int(np.prod(tensor.shape))
    return count


if __name__ == "__main__":
    sys.exit(run(main))
