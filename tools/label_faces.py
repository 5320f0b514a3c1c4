"""Make a pack of pictures with one sure face each, for train_detector.py to learn landmarks from.

    python tools/label_faces.py pictures/ -o runs/detector/large.npz --limit 1500

Boxes and points are SCRFD-2.5g's; pictures on which YuNet disagrees are left out, and what may be another face is
marked to be ignored. The pack has the fields of det_train.npz that the trainer reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from command_line import Parser, count, pack_path, run
from data import DATA, save_pack, some_pictures_below
from detector_scenes import Floats, sizes_of
from numpy.typing import NDArray
from peers import SCRFD, YUNET, Scrfd, YuNet
from tqdm import tqdm

from edgefer.errors import InputError
from edgefer.messages import Detection, Image
from edgefer.pictures import read_picture

SIDE = 320
"""Pictures are labelled at this long side, in pixels: a face that fills a larger one is missed."""
KEPT_SIDE = 400
"""Long side of what is kept, in pixels: the largest of det_train's is about that."""
MIN_SCORE, DOUBTFUL = 0.6, 0.2
"""From the first on it is a face; from the second on it may be one, and is taught neither as a face nor as none."""
MAX_APART = 0.05
"""The most that the two may place a face's points apart, on average, in sizes of the face."""


def main() -> None:
    """Write one pack, and say how many pictures the two agreed on."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="pictures, in any depth of folders")
    parser.add_argument("-o", "--output", type=pack_path, required=True, help="the .npz to write")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--limit", type=count, help="pictures to take at random; all unless given")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    paths = some_pictures_below(arguments.folder)
    chosen = np.random.default_rng(0).permutation(len(paths))[: arguments.limit]
    scrfd = Scrfd(arguments.data / SCRFD, SIDE, DOUBTFUL)
    yunet = YuNet(arguments.data / YUNET, SIDE, MIN_SCORE)
    jpegs: list[NDArray[np.uint8]] = []
    unread = 0
    found: list[tuple[int, Detection]] = []  # the picture's number, and what is in it
    for i in tqdm(chosen, unit="picture", mininterval=10):
        image = read(paths[i])
        unread += image is None
        if image is not None and (faces := agreed(scrfd(image), yunet(image))):
            found += [(len(jpegs), face) for face in faces]
            jpegs.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].ravel().astype(np.uint8))
    of = f"of {len(chosen)} pictures" + (f" ({unread} can't be read)" if unread else "")
    if not jpegs:
        raise InputError(f"{arguments.folder}: on none {of} the two agreed on a single face")
    save_pack(
        arguments.output,
        blob=np.concatenate(jpegs),
        off=np.cumsum([0, *map(len, jpegs)]),
        img=np.array([number for number, _ in found]),
        box=np.stack([corners(face) for _, face in found]),
        kps=np.array([face.landmarks for _, face in found], np.float32),
        ignore=np.array([face.score < MIN_SCORE for _, face in found], np.uint8),
    )
    print(f"{arguments.output}: {len(jpegs)} {of}")


def read(path: Path) -> Image | None:
    """A picture (BGR) of at most KEPT_SIDE, None when it can't be read."""
    try:
        image = read_picture(path)
    except InputError:
        return None
    scale = min(1.0, KEPT_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def agreed(mine: list[Detection], theirs: list[Detection]) -> list[Detection]:
    """My detections of a picture where one of them, and one alone, is a face to both; else none."""
    faces = [face for face in mine if face.score >= MIN_SCORE]
    if len(faces) != 1 or len(theirs) != 1:
        return []
    apart = np.linalg.norm(np.array(faces[0].landmarks) - np.array(theirs[0].landmarks), axis=1).mean()
    return mine if apart <= MAX_APART * float(sizes_of(corners(faces[0])[None])[0]) else []


def corners(face: Detection) -> Floats:
    """Left, top, right, bottom."""
    box = face.box
    return np.array([box.x, box.y, box.x + box.width, box.y + box.height], np.float32)


if __name__ == "__main__":
    sys.exit(run(main))
