"""What it costs an embedding that the picture's edge cuts the face off, and what edgefer's bound for enrolling does.

    python tools/evaluate_cuts.py faces/

faces/ holds photos of one person each, with faces of 150 px and more, and room around. Each is cut at one side of the
face, to a share of the detector's box, and the detector looks anew. The cosine is that of the template to the whole
photo's; two people are taken for one if their faces, cut alike, are as near to each other as the card's `match`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
from command_line import Parser, count, run
from data import some_pictures_below
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.looks import MIN_INSIDE, only_good_face
from edgefer.messages import Box, Image
from edgefer.pictures import read_picture
from edgefer.vision.detector import Detector
from edgefer.vision.embedder import Embedder, Embedding
from edgefer.vision.model import Model, find_model
from edgefer.vision.quality import inside

SIDES = ("left", "right", "top", "bottom")
KEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the box's width, or height, that a cut leaves."""


def main() -> None:
    """Print a row for each side and share, of all faces that are found and of those that may be enrolled."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=count, default=120, help="photos (%(default)s)")
    arguments = parser.parse_args()
    detector = Detector(Model(find_model("far"), "detector"))
    embedder = Embedder(Model(find_model("identity-112"), "embedding"))
    match = embedder.model.card.thresholds["match"]
    found: dict[tuple[str, float], list[tuple[float, float, Embedding]]] = defaultdict(list)
    whole = []
    rng = np.random.default_rng(1)
    for path in rng.permutation(np.array(some_pictures_below(arguments.folder)))[: arguments.limit]:
        image = read_picture(path)
        try:
            face, _ = only_good_face(image, detector(image))
        except InputError:
            continue
        whole.append(embedder.template(image, face))
        for side, kept in product(SIDES, KEPT):
            picture = cut(image, face.box, side, kept)
            if faces := detector(picture):
                seen = max(faces, key=lambda one: one.box.side)
                template = embedder.template(picture, seen)
                assert seen.landmarks is not None  # our detectors give them
                left = inside(picture, seen.landmarks)
                found[side, kept].append((float(template @ whole[-1]), left, template))
    if len(whole) < 2:
        raise InputError(f"{arguments.folder}: no two pictures with one good face")
    print(f"{len(whole)} photos; as they are {taken_for_one(whole, match):.2%} of two people are taken for one")
    print(
        f"{'cut at':8} {'left':>5} {'found':>6} {'cosine':>7} {'for one':>8} {'used':>6} {'cosine':>7} {'for one':>8}"
    )
    for side, kept in product(SIDES, KEPT):
        seen_so = found[side, kept]
        used = [one for one in seen_so if one[1] >= MIN_INSIDE]
        print(f"{side:8} {kept:5.0%} {told(seen_so, match)} {told(used, match)}")


def cut(image: Image, box: Box, side: str, kept: float) -> Image:
    """The picture without what lies beyond a share of the box, seen from the other side."""
    across, down = round(box.width * kept), round(box.height * kept)
    left, top, right, bottom = (round(v) for v in (box.x, box.y, box.x + box.width, box.y + box.height))
    parts = {
        "left": image[:, max(0, right - across) :],
        "right": image[:, : left + across],
        "top": image[max(0, bottom - down) :],
        "bottom": image[: top + down],
    }
    return np.ascontiguousarray(parts[side])


def told(faces: list[tuple[float, float, Embedding]], match: float) -> str:
    """How many there are, the median of their cosines to the whole face, and how many pairs pass for one person."""
    if len(faces) < 2:
        return f"{len(faces):6} {'':7} {'':8}"
    cosine = np.median([one[0] for one in faces])
    return f"{len(faces):6} {cosine:7.2f} {taken_for_one([one[2] for one in faces], match):8.2%}"


def taken_for_one(templates: list[Embedding], match: float) -> float:
    """The share of pairs of different people's templates that are at least so near to each other."""
    vectors: NDArray[np.float32] = np.stack(templates)
    pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return float((pairs >= match).mean())


if __name__ == "__main__":
    sys.exit(run(main))
