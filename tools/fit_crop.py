"""Find the crop around a detector's box that frames camera faces as FER2013 frames its own; write it into the card.

    python tools/fit_crop.py models/emotion-48.json --detector far

FER2013's images are nothing but a face: enlarged and set in a larger picture, they meet the detector as a camera's faces
do, and the crop is what brings its box back to the image, in the median. Then PublicTest is read from those pictures,
detected and cropped as the daemon does, beside the 48x48 images themselves.
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
"""Sides of the face in the picture, in px, in turn."""
WIDTH, HEIGHT = 320, 240
MIN_IOU = 0.3
"""A detection that shares less with the image is of something else."""


def main() -> None:
    """Fit on training images, tell, write, measure on PublicTest."""
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
    card = dataclasses.replace(read_card(arguments.card), crop=crop)
    arguments.card.write_text(card.to_json())

    reader = EmotionReader(Model(arguments.card.with_suffix(".tflite"), "emotion"))
    compare(detector, reader, fer.images[fer.usage == 1], fer.labels[fer.usage == 1])


def fit(detector: Detector, images: Image) -> Crop:
    """The crop whose middle and size are right in the median; what it says is printed."""
    found = [relation(face, frame) for scene, frame in map(place, images, sizes(images)) if (face := detect(detector, scene, frame))]
    relations = np.array(found)
    scale, right, down = np.median(relations, 0)
    low, high = np.percentile(relations, (25, 75), 0)
    print(f"found {len(relations)} of {len(images)} ({len(relations) / len(images):.1%}); median, and the middle half:")
    for name, value, a, b in zip(("scale", "right", "down"), (scale, right, down), low, high, strict=True):
        print(f"  {name:6} {value:6.3f}   {a:6.3f} to {b:6.3f}")
    return Crop("box", round(float(scale), 3), (round(float(right), 3), round(float(down), 3)))
