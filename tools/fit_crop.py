"""Find the crop around a detector's box that frames camera faces as FER2013 frames its own; write it into the card.

    python tools/fit_crop.py models/emotion-48.json --detector far

FER2013's images are nothing but a face. Enlarged and set in a larger picture, they meet the detector as a camera's
faces do, and the crop is what brings its box back to the image, in the median. Then PublicTest is read from such
pictures, detected and cropped as the daemon does, beside the 48x48 images themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np
from data import DATA, load_fer2013
from numpy.typing import NDArray

from edgefer.messages import Box, Detection, Image
from edgefer.vision.card import Crop, read_card
from edgefer.vision.detector import Detector
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import Model, find_model

SIZES = (72, 108, 144)
"""Sides of the image in the picture, in px, in turn: a face before a camera, near and less near."""
WIDTH, HEIGHT = 320, 240
MIN_IOU = 0.3
"""A detection that shares less with the image is of something else."""


def main() -> None:
    """Fit on training images, tell, write; then measure on PublicTest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("card", type=Path, help="the emotion model's card; the .tflite lies beside it")
    parser.add_argument("--detector", default="far", help="a detector's name or .tflite (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--images", type=int, default=1500, help="training images to fit on (%(default)s)")
    arguments = parser.parse_args()
    fer = load_fer2013(arguments.data / "fer2013")
    detector = Detector(Model(find_model(arguments.detector), "detector"))

    chosen = np.random.default_rng(0).choice(np.flatnonzero(fer.usage == 0), arguments.images, replace=False)
    crop = fit(detector, fer.images[chosen])
    print(f"crop: {crop}")
    arguments.card.write_text(dataclasses.replace(read_card(arguments.card), crop=crop).to_json())

    reader = EmotionReader(Model(arguments.card.with_suffix(".tflite"), "emotion"))
    compare(detector, reader, fer.images[fer.usage == 1], fer.labels[fer.usage == 1])


def fit(detector: Detector, images: Image) -> Crop:
    """The crop whose size and middle are right in the median."""
    relations = []
    for number, image in enumerate(images):
        scene, frame = place(image, SIZES[number % len(SIZES)])
        if face := find(detector, scene, frame):
            relations.append(relation(face.box, frame))
    print(f"detected {len(relations)} of {len(images)} ({len(relations) / len(images):.1%})")
    middle, low, high = (np.percentile(relations, part, 0) for part in (50, 25, 75))
    for i, name in enumerate(("scale", "shift right", "shift down")):
        print(f"  {name:11} median {middle[i]:6.3f}, the middle half {low[i]:6.3f} to {high[i]:6.3f}")
    scale, right, down = (round(float(value), 3) for value in middle)
    return Crop("box", scale, (right, down))


def compare(detector: Detector, reader: EmotionReader, images: Image, labels: NDArray[np.uint8]) -> None:
    """Print the accuracy on the images as they are, and as they come back through the detector and the crop."""
    plain, through = [], []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        scene, frame = place(image, SIZES[number % len(SIZES)])
        if face := find(detector, scene, frame):
            plain.append(reader.read(image).argmax() == label)
            through.append(reader(scene, face).argmax() == label)
    print(f"PublicTest: detected {len(plain) / len(images):.1%}; accuracy of these, as they are {np.mean(plain):.4f}")
    print(f"  and through the detector and the crop {np.mean(through):.4f}")


def place(image: Image, side: int) -> tuple[Image, Box]:
    """A picture (BGR) with the image enlarged in its middle, and where it stands there.

    The image's edge goes on outwards, ever more blurred: a hard border is a frame that draws the detector's box to
    itself, and a mirrored one shows a second face.
    """
    tile = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    left, top = (WIDTH - side) // 2, (HEIGHT - side) // 2
    scene = cv2.copyMakeBorder(tile, top, HEIGHT - side - top, left, WIDTH - side - left, cv2.BORDER_REPLICATE)
    scene = cv2.GaussianBlur(scene, (0, 0), side / 8)
    scene[top : top + side, left : left + side] = tile
    return np.asarray(cv2.cvtColor(scene, cv2.COLOR_GRAY2BGR), np.uint8), Box(left, top, side, side)


def find(detector: Detector, scene: Image, frame: Box) -> Detection | None:
    """The best detection of the image that stands in the frame."""
    return next((face for face in detector(scene) if face.box.iou(frame) >= MIN_IOU), None)


def relation(box: Box, frame: Box) -> tuple[float, float, float]:
    """The scale and the shifts, as a Crop has them, that make the frame out of the box."""
    (x, y), (frame_x, frame_y) = box.centre, frame.centre
    return (
        frame.width / max(box.width, box.height),
        (frame_x - x) / frame.width,
        (frame_y - y) / frame.height,
    )


if __name__ == "__main__":
    main()
