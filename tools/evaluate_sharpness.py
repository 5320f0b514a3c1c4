"""What blur costs an embedding, and what edgefer's sharpness says of it: where the bound for enrolling should lie.

    python tools/evaluate_sharpness.py faces/

faces/ holds sharp photos of one person each, with faces of 150 px and more. Each is blurred, made noisy and made small;
the cosine is that of the embedding to the photo's own. The detector finds the face once, in the photo as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from command_line import Parser, count, run
from data import some_pictures_below

from edgefer.errors import InputError
from edgefer.looks import MIN_SHARPNESS
from edgefer.messages import Box, Detection, Image
from edgefer.pictures import read_picture
from edgefer.vision.detector import Detector
from edgefer.vision.embedder import Embedder
from edgefer.vision.model import Model, find_model
from edgefer.vision.quality import rate

BLURS = (0.01, 0.02, 0.03, 0.04)
"""Deviations of the Gaussian, in sides of the face."""
NOISE = 8.0
"""Deviation of a sensor's noise in the dusk, in gray levels."""
SIDES_PX = (48, 64, 96)
FAR, VERY_FAR = 0.8, 0.6
"""Cosines under which a blurred face is hardly, or not, the same person's any more."""


def main() -> None:
    """Print a row for each way to spoil a photo, and what the bound lets pass and refuses."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=count, default=100, help="photos (%(default)s)")
    arguments = parser.parse_args()
    detector = Detector(Model(find_model("far"), "detector"))
    embedder = Embedder(Model(find_model("identity-112"), "embedding"))
    rng = np.random.default_rng(1)
    measured: dict[str, list[tuple[float, float]]] = {}
    for path in rng.permutation(np.array(some_pictures_below(arguments.folder)))[: arguments.limit]:
        image = read_picture(path)
        faces = detector(image)
        if len(faces) == 1:
            own = embedder(image, faces[0])
            for name, spoilt, face in variants(image, faces[0], rng):
                cosine = float(own @ embedder(spoilt, face))
                measured.setdefault(name, []).append((cosine, rate(spoilt, face).sharpness))
    if not measured:
        raise InputError(f"{arguments.folder}: no picture with one face")
    print(f"{'':24} {'cosine':>8} {'sharpness: lowest tenth':>26} {'median':>8} {'highest tenth':>14}")
    for name, pairs in measured.items():
        cosines, sharp = np.array(pairs).T
        low, middle, high = np.percentile(sharp, (10, 50, 90))
        print(f"{name:24} {np.median(cosines):8.2f} {low:26.2f} {middle:8.2f} {high:14.2f}")
    blurred = np.array([pair for name, pairs in measured.items() if "blur" in name for pair in pairs])
    clear = np.array([pair for name, pairs in measured.items() if "blur" not in name for pair in pairs])
    print(f"{len(measured['as it is'])} photos; at a sharpness of {MIN_SHARPNESS}:")
    for limit in (FAR, VERY_FAR):
        bad = blurred[blurred[:, 0] < limit]
        print(f"  {(bad[:, 1] >= MIN_SHARPNESS).sum()} of {len(bad)} blurred with a cosine under {limit} pass")
    print(f"  {(clear[:, 1] < MIN_SHARPNESS).sum()} of {len(clear)} that aren't blurred are refused")


def variants(image: Image, face: Detection, rng: np.random.Generator) -> Iterator[tuple[str, Image, Detection]]:
    """The picture as it is and spoilt, with the face in it."""
    yield "as it is", image, face
    yield "noise", noisy(image, rng), face
    for share in BLURS:
        blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), share * face.box.side), np.uint8)
        yield f"blur of {share:.0%}", blurred, face
        yield f"blur of {share:.0%} and noise", noisy(blurred, rng), face
    for side in SIDES_PX:
        scale = side / face.box.side
        if scale < 1:
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            yield f"{side} px", np.asarray(small, np.uint8), scaled(face, scale)


def noisy(image: Image, rng: np.random.Generator) -> Image:
    """As by a sensor in the dusk."""
    return np.clip(image + rng.normal(0, NOISE, image.shape), 0, 255).astype(np.uint8)


def scaled(face: Detection, scale: float) -> Detection:
    """The face in a picture of another size."""
    assert face.landmarks is not None  # our detectors give them
    box, points = face.box, [(x * scale, y * scale) for x, y in face.landmarks]
    return Detection(
        Box(box.x * scale, box.y * scale, box.width * scale, box.height * scale),
        face.score,
        (points[0], points[1], points[2], points[3], points[4]),
    )


if __name__ == "__main__":
    sys.exit(run(main))
