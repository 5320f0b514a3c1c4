"""Make a pack of aligned faces from a folder of pictures, for train_embedding.py to learn from beside the shared data.

    python tools/align_faces.py pictures/ -o runs/embedding/more.npz
    python tools/align_faces.py people/ --people -o runs/embedding/people.npz

The largest face of each picture is found by YuNet (OpenCV's FaceDetectorYN) and brought to the 112x112 template.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from command_line import Parser, pack_path, run
from data import DATA, save_pack, some_pictures_below
from peers import YUNET, Detect, YuNet
from tqdm import tqdm

from edgefer.errors import InputError
from edgefer.messages import Image, Landmarks
from edgefer.pictures import read_picture
from edgefer.vision.preprocess import TEMPLATE_SIZE, align, warp

SIDE = 320
"""Pictures are scaled to this long side, in pixels: YuNet misses faces that fill a larger one."""


def main() -> None:
    """Write one pack, and say how many pictures had a face."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="pictures, in any depth of folders")
    parser.add_argument("-o", "--output", type=pack_path, required=True, help="the .npz to write")
    parser.add_argument(
        "--people", action="store_true", help="a folder's pictures are one person's, another folder's another's"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--min-score", type=float, default=0.7, help="of YuNet, 0..1 (%(default)s)")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    paths = some_pictures_below(arguments.folder)
    if arguments.people and len({path.parent for path in paths}) == 1:
        raise InputError(f"--people: all pictures lie in {paths[0].parent}; a folder for each person is wanted")
    detector = YuNet(arguments.data / YUNET, SIDE, arguments.min_score)
    jpegs, folders = [], []
    for path in tqdm(paths, unit="picture", mininterval=10):
        try:
            image = read_picture(path)
        except InputError:
            continue
        if landmarks := largest_face(detector, image):
            face = aligned(image, landmarks)
            jpegs.append(cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel())
            folders.append(str(path.parent))
    if not jpegs:
        raise InputError(f"{arguments.folder}: no face was found on any of {len(paths)} pictures")
    whose = {"ids": np.unique(folders, return_inverse=True)[1]} if arguments.people else {}
    save_pack(arguments.output, blob=np.concatenate(jpegs), off=np.cumsum([0, *map(len, jpegs)]), **whose)
    print(f"{arguments.output}: {len(jpegs)} faces of {len(paths)} pictures")


def aligned(image: Image, landmarks: Landmarks) -> Image:
    """The face at 112x112; beyond a picture that is cut close its edge goes on: a black frame would be learnt too."""
    edge = max(image.shape[:2]) // 2
    wider = np.asarray(cv2.copyMakeBorder(image, edge, edge, edge, edge, cv2.BORDER_REPLICATE), np.uint8)
    matrix = align(landmarks)
    matrix[:, 2] -= matrix[:, :2].sum(1) * edge
    return warp(wider, matrix, TEMPLATE_SIZE, TEMPLATE_SIZE)


def largest_face(detector: Detect, image: Image) -> Landmarks | None:
    """The five points of the largest face of a picture (BGR), in its pixels; None where there is none."""
    faces = detector(image)
    return max(faces, key=lambda face: face.box.side).landmarks if faces else None


if __name__ == "__main__":
    sys.exit(run(main))
