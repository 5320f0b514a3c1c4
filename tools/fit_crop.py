"""Find the crop around a detector's box that frames camera faces as FER2013 frames its own; write it into the card.

    python tools/fit_crop.py models/emotion-48.json --detector far

The crop brings the landmarks of faces in photos (det_val), taken around the boxes that this detector draws, to where
FER2013 has them. The landmarks come from others: the photos' labels, and YuNet on FER2013. Boxes can't be compared
directly: FER2013's images are nothing but a face, and a detector draws its box otherwise where there is no head.
YuNet's boxes say a scale of 0.91 to 1.00, by what is put around the image, and half of them are more than 8 % off that;
an early `far` said 1.07, from the 18 % that it found. Landmarks hardly move: eyes to mouth 0.37 to 0.39 of the frame,
whatever is around it. OpenCV's Haar boxes on photos have that very framing.

Before it is written, PublicTest is set in larger pictures, detected and cropped as the daemon does, and read beside the
images as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
from command_line import Parser, card_path, count, run
from data import DATA
from detector_scenes import open_photos
from emotion_faces import TRAIN, VALIDATION, at_size, find_faces, with_labels_of
from model_file import write_card
from numpy.typing import NDArray
from peers import YUNET, YuNet

from edgefer.errors import InputError
from edgefer.messages import Box, Detection, Image
from edgefer.vision.card import Crop, read_card
from edgefer.vision.detector import Detector
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import Model, find_model
from edgefer.vision.preprocess import crop_face, to_colour

Points = NDArray[np.float64]
"""N x 5 x 2: eyes, nose, corners of the mouth, as shares of a square's side from its middle."""

MIN_FACE_PX = 36
"""Smaller faces in photos have landmarks too coarse to measure by."""
MIN_IOU = 0.4
"""A detection that shares less with a face is of something else."""
SIZES = (72, 108, 144)
"""Sides of FER2013's image in a larger picture, in px, in turn: a face before a camera, near and less near."""
WIDTH, HEIGHT = 320, 240
MOVED, SIZE_OFF = 0.05, 0.1
"""How far a crop may be off, as shares of its side, without much harm."""


def main() -> None:
    """Fit, tell, measure on PublicTest; then write."""
    parser = Parser(__doc__)
    parser.add_argument("card", type=card_path, help="the emotion model's card, its .tflite, or its name")
    parser.add_argument("--detector", default="far", help="a detector's name or .tflite (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is, and measure with its own crop")
    parser.add_argument("--images", type=count, default=1200, help="images of FER2013 to measure on (%(default)s)")
    arguments = parser.parse_args()
    reader = EmotionReader(Model(arguments.card.with_suffix(".tflite"), "emotion"))
    if (crop := reader.model.card.crop) and crop.source == "points" and not arguments.dry_run:
        raise InputError(
            f"{arguments.card}: its crop is from points, the landmarks, and not from the box: nothing to fit"
        )
    detector = Detector(Model(find_model(arguments.detector), "detector"))
    faces = find_faces(arguments.data)
    yunet = YuNet(arguments.data / YUNET, WIDTH, 0.5)
    # Labels that FER2013 lacks are told before anything is measured.
    public, labels = with_labels_of(faces, faces.rows(VALIDATION)[: arguments.images], reader.labels)
    framed = faces.images[faces.rows(TRAIN)[: arguments.images]]
    crop = fit(
        typical(points_in_boxes(detector, arguments.data), "faces in photos, in the detector's box"),
        typical(points_in_frames(framed, yunet), "FER2013's frame"),
    )
    print(f"crop: {crop}")
    if not arguments.dry_run:
        reader.model.card = dataclasses.replace(reader.model.card, crop=crop)
    compare(detector, reader, faces.images[public], labels)
    if not arguments.dry_run:
        write_card(arguments.card, dataclasses.replace(read_card(arguments.card), crop=crop))


def fit(in_box: Points, in_frame: Points) -> Crop:
    """The crop that brings five points as they lie in the box closest to where they lie in the frame, least squares."""
    box_middle, frame_middle = in_box.mean(0), in_frame.mean(0)
    offsets = in_box - box_middle
    enlarged = float((offsets * (in_frame - frame_middle)).sum() / (offsets**2).sum())
    right, down = (round(float(value), 3) for value in box_middle * enlarged - frame_middle)
    return Crop("box", round(1 / enlarged, 3), (right, down))


def typical(points: Points, name: str) -> Points:
    """The median of the frontal faces, 5 x 2; a turned head's points say little about its frame."""
    if not len(points):
        raise InputError(f"{name}: none was found; is it the right detector, and the right data?")
    between = points[:, 1, 0] - points[:, 0, 0]
    nose = points[:, 2, 0] - points[:, :2, 0].mean(1)
    frontal = points[(between > 0.2) & (np.abs(nose) < 0.15 * between)]
    if not len(frontal):
        raise InputError(
            f"{name}: of {len(points)} none is seen from the front; is it the right detector (--detector)?"
        )
    middle: Points = np.median(frontal, 0)
    apart, height = middle[1, 0] - middle[0, 0], middle[3:, 1].mean() - middle[:2, 1].mean()
    low, high = np.percentile(frontal[:, 3:, 1].mean(1) - frontal[:, :2, 1].mean(1), (25, 75))
    print(f"{name}: {len(frontal)} frontal of {len(points)}; in the median eye to eye {apart:.3f} of the side,")
    print(f"  eyes to mouth {height:.3f} (the middle half {low:.3f} to {high:.3f})")
    return middle


def points_in_boxes(detector: Detector, data: Path) -> Points:
    """The labelled landmarks of det_val's larger faces, within the boxes that the detector finds for them."""
    pack = open_photos(data / "det_val.npz")
    boxes = pack.fields["box"]
    usable = (pack.fields["ignore"] == 0) & (boxes[:, 3] - boxes[:, 1] >= MIN_FACE_PX)
    points = []
    for number in np.unique(pack.fields["img"][usable]):
        faces = detector(pack.picture(int(number)))
        for row in np.flatnonzero(usable & (pack.fields["img"] == number)):
            left, top, right, bottom = (float(value) for value in boxes[row])
            if face := best(faces, Box(left, top, right - left, bottom - top)):
                side = max(face.box.width, face.box.height)
                points.append((pack.fields["kps"][row] - face.box.centre) / side)
    return np.array(points, np.float64)


def points_in_frames(images: Image, yunet: YuNet) -> Points:
    """The landmarks that YuNet finds in FER2013's images, within the image."""
    points = []
    for number, image in enumerate(images):
        scene, frame = place(image, SIZES[number % len(SIZES)])
        if face := best(yunet(scene), frame):
            points.append((np.array(face.landmarks) - frame.centre) / frame.width)
    return np.array(points, np.float64)


def compare(detector: Detector, reader: EmotionReader, images: Image, labels: NDArray[np.intp]) -> None:
    """Print the accuracy on the images as they are, resized and back, by detector and crop, and with the crop off."""
    card = reader.model.card
    assert card.crop is not None  # read_card saw to it
    right, down = card.crop.shift
    badly = [
        dataclasses.replace(card.crop, scale=card.crop.scale * scale, shift=(right + x, down + y))
        for scale, x, y in itertools.product((1 - SIZE_OFF, 1 + SIZE_OFF), (-MOVED, MOVED), (-MOVED, MOVED))
    ]
    plain, resized, through, off = [], [], [], []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        scene, frame = place(image, SIZES[number % len(SIZES)])
        if face := best(detector(scene), frame):
            left, top, side = int(frame.x), int(frame.y), int(frame.width)
            back = at_size(scene[top : top + side, left : left + side], card.input.width, card.input.height)
            plain.append(reader.read(at_size(image, card.input.width, card.input.height)).argmax() == label)
            resized.append(reader.read(back).argmax() == label)
            through.append(reader(scene, face).argmax() == label)
            crop = crop_face(scene, face, badly[number % len(badly)], card.input.width, card.input.height)
            off.append(reader.read(crop).argmax() == label)
    if not plain:
        raise InputError(f"{detector.model.path}: it finds none of {len(images)} faces of PublicTest to measure on")
    print(f"PublicTest: detected {len(plain) / len(images):.1%}; accuracy of these, as they are {np.mean(plain):.4f}")
    print(f"  and brought to another size and back {np.mean(resized):.4f}")
    print(f"  and through the detector and the crop {np.mean(through):.4f}")
    print(f"  and with the crop moved by {MOVED:.0%} both ways, and {SIZE_OFF:.0%} off in size, {np.mean(off):.4f}")


def place(image: Image, side: int) -> tuple[Image, Box]:
    """A picture (BGR) with the image (BGR or gray) brought to a side in its middle, and where it stands there.

    The image's edge goes on outwards, ever more blurred: a hard border is a frame that draws the detector's box to
    itself, and a mirrored one shows a second face.
    """
    tile = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    left, top = (WIDTH - side) // 2, (HEIGHT - side) // 2
    scene = cv2.copyMakeBorder(tile, top, HEIGHT - side - top, left, WIDTH - side - left, cv2.BORDER_REPLICATE)
    scene = cv2.GaussianBlur(scene, (0, 0), side / 8)
    scene[top : top + side, left : left + side] = tile
    return to_colour(np.asarray(scene, np.uint8), "bgr"), Box(left, top, side, side)


def best(faces: list[Detection], of: Box) -> Detection | None:
    """The likeliest detection of the face in a box."""
    return next((face for face in faces if face.box.iou(of) >= MIN_IOU), None)


if __name__ == "__main__":
    sys.exit(run(main))
