"""What goes into packs of faces to train on: who is in a picture by two detectors, and how faces are aligned."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefer.errors import InputError
from edgefer.messages import Box, Detection
from edgefer.vision.preprocess import TEMPLATE

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


def seen(score: float, moved: float = 0.0) -> Detection:
    """A face of 100 px, its points moved to the right."""
    left_eye, right_eye, nose, left_mouth, right_mouth = [(float(x) + moved, float(y)) for x, y in TEMPLATE]
    return Detection(Box(10, 10, 100, 100), score, (left_eye, right_eye, nose, left_mouth, right_mouth))


def test_one_face_to_both_is_one_and_what_is_doubtful_stays_with_it(tool):
    agreed = tool("label_faces").agreed
    sure, doubtful = seen(0.9), seen(0.3)
    assert agreed([sure, doubtful], [seen(0.8, moved=4)]) == [sure, doubtful]
    assert agreed([sure], [seen(0.8, moved=6)]) == [], "its points are 6 % apart"
    assert agreed([sure, seen(0.7)], [sure]) == [], "two by one"
    assert agreed([sure], [sure, sure]) == [], "two by the other"
    assert agreed([doubtful], [sure]) == []
    assert agreed([sure], []) == []


def test_a_face_that_is_cut_close_has_no_black_around_it(tool):
    """Beyond the picture the colour of its edge goes on; what lies within is where the template has it."""
    aligned = tool("align_faces").aligned
    picture = np.full((90, 90, 3), (40, 90, 160), np.uint8)
    points = TEMPLATE - TEMPLATE.mean(0) + (45, 45)
    for x, y in points:
        cv2.circle(picture, (round(x), round(y)), 3, (255, 255, 255), -1)
    face = aligned(picture, [(float(x), float(y)) for x, y in points])
    assert face.shape == (112, 112, 3)
    for corner in (face[0, 0], face[0, -1], face[-1, 0], face[-1, -1]):
        assert corner.tolist() == [40, 90, 160]
    white = (face > 200).all(-1)
    for x, y in TEMPLATE:
        assert white[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].all()
    assert white.sum() < 5 * 45


def test_one_folder_is_not_several_people(tool, tmp_path, monkeypatch):
    (tmp_path / "ann").mkdir()
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(tmp_path / "ann" / name), np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(sys, "argv", ["align_faces.py", str(tmp_path), "--people", "-o", str(tmp_path / "people.npz")])
    with pytest.raises(InputError, match=r"--people: all pictures lie in .*ann; a folder for each"):
        tool("align_faces").main()


def test_a_picture_without_a_byte_is_told(tool):
    pack = tool("data").Pack("faces.npz", {"blob": np.empty(0, np.uint8), "off": np.array([0, 0])})
    with pytest.raises(InputError, match=r"faces\.npz: picture 0 doesn't decode"):
        pack.picture(0)
