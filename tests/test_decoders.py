"""From a model's outputs to candidates: our own models, and the public families that people bring."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from edgefer.cameras import sample
from edgefer.errors import InputError, ModelError
from edgefer.messages import Box, Image
from edgefer.vision.card import ModelCard, ModelInput
from edgefer.vision.decoders import MOUTH_SHARE, decode_blazeface, decode_centre, decode_yunet, grid_cells
from edgefer.vision.detector import Detector
from edgefer.vision.model import Model, Outputs, find_model

ROOT = Path(__file__).parent.parent


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def silent(cells: int) -> list[np.ndarray]:
    """Logits, sides and landmarks of a model that sees nothing."""
    return [np.full((cells, 1), -9.0, np.float32), np.zeros((cells, 4), np.float32), np.zeros((cells, 10), np.float32)]


def test_the_cells_are_those_of_three_grids_row_by_row():
    cells = grid_cells(64, 32)
    assert cells.tolist()[:9] == [[x, 4, 8] for x in range(4, 64, 8)] + [[4, 12, 8]]
    assert cells.tolist()[32:] == [
        *([x, y, 16] for y in (8, 24) for x in (8, 24, 40, 56)),
        [16, 16, 32],
        [48, 16, 32],
    ]


def test_a_side_that_the_stride_doesnt_divide_is_covered():
    assert len(grid_cells(65, 33)) == 9 * 5 + 5 * 3 + 3 * 2


def test_one_face_is_decoded_exactly():
    cells = grid_cells(64, 32)
    logits, sides, landmarks = silent(len(cells))
    i = 32 + 4 + 2  # stride 16, second row, third column: its middle is (40, 24)
    logits[i], sides[i], landmarks[i] = logit(0.75), [0.5, 1.0, 1.5, 0.25], np.arange(10) / 4 - 1
    scores, boxes, points = decode_centre((logits, sides, landmarks), cells, 0.5)
    np.testing.assert_allclose(scores, [0.75], rtol=1e-6)
    np.testing.assert_array_equal(boxes, [[40 - 8, 24 - 16, 40 + 24, 24 + 4]])
    np.testing.assert_array_equal(points, [[[24, 28 - 16], [32, 36 - 16], [40, 44 - 16], [48, 52 - 16], [56, 60 - 16]]])


def test_the_outputs_may_come_in_any_order():
    cells = grid_cells(64, 32)
    outputs = silent(len(cells))
    outputs[0][5] = 3.0
    expected = decode_centre(tuple(outputs), cells, 0.5)
    for got, wanted in zip(decode_centre(tuple(outputs[::-1]), cells, 0.5), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_only_scores_from_the_threshold_up_are_decoded():
    cells = grid_cells(64, 32)
    outputs = silent(len(cells))
    outputs[0][:3, 0] = [logit(0.59), logit(0.61), logit(0.9)]
    scores, _, _ = decode_centre(tuple(outputs), cells, 0.6)
    np.testing.assert_allclose(scores, [0.61, 0.9], rtol=1e-5)


@pytest.mark.parametrize(("min_score", "count"), [(0.0, 42), (1.0, 0)])
def test_thresholds_at_the_ends(min_score, count):
    cells = grid_cells(64, 32)
    scores, boxes, points = decode_centre(tuple(silent(len(cells))), cells, min_score)
    assert (scores.shape, boxes.shape, points.shape) == ((count,), (count, 4), (count, 5, 2))


# BlazeFace


def test_a_blazeface_is_decoded_exactly():
    middles = grid_cells(128, 128, (8,))[:, :2]
    logits, coordinates = np.full((256, 1), -9.0, np.float32), np.zeros((256, 16), np.float32)
    logits[17] = logit(0.75)  # the second row, the second column: its middle is (12, 12)
    box, points = [4, 8, 20, 40], [-6, 0, 6, 0, 0, 10, 1, 20, -9, 4, 9, 4]
    coordinates[17] = box + points
    scores, boxes, landmarks = decode_blazeface((logits, coordinates), middles, 0.5)
    np.testing.assert_allclose(scores, [0.75], rtol=1e-6)
    np.testing.assert_array_equal(boxes, [[16 - 10, 20 - 20, 16 + 10, 20 + 20]])
    half = 6 * MOUTH_SHARE  # of a mouth below eyes 12 px apart
    wanted = [[6, 12], [18, 12], [12, 22], [13 - half, 32], [13 + half, 32]]
    np.testing.assert_allclose(landmarks, [wanted], rtol=1e-6)


def test_a_mouth_leans_as_the_eyes_do():
    coordinates = np.zeros((1, 16), np.float32)
    coordinates[0, 4:12] = [0, -5, 0, 5, 0, 0, -10, 0]  # a head that lies on its side
    _, _, landmarks = decode_blazeface((np.ones((1, 1), np.float32), coordinates), np.zeros((1, 2), np.float32), 0.5)
    np.testing.assert_allclose(landmarks[0, 3:], [[-10, -5 * MOUTH_SHARE], [-10, 5 * MOUTH_SHARE]], rtol=1e-6)


@pytest.mark.parametrize(
    ("side", "count", "last_middle"),
    [(128, 896, (120, 120)), (192, 2304, (190, 190)), (256, 896, (240, 240))],
    ids=["short range", "full range", "back camera"],
)
def test_blazeface_anchors_follow_from_the_input(side, count, last_middle):
    answers = np.zeros((count, 16), np.float32)
    logits = np.full((count, 1), -9.0, np.float32)
    logits[-1] = 3.0
    answers[-1, 2:4] = 2.0
    detector = Detector(Said((logits, answers), "blazeface", side, side))
    (face,) = detector(np.zeros((side, side, 3), np.uint8))
    assert face.box.centre == last_middle


# YuNet


def yunet_outputs(width: int, height: int) -> list[np.ndarray]:
    """What a YuNet gives that sees nothing, in the order of its ONNX file."""
    counts = [len(grid_cells(width, height, (stride,))) for stride in (8, 16, 32)]
    return [np.zeros((count, last), np.float32) for last in (1, 1, 4, 10) for count in counts]


def test_a_yunet_is_decoded_exactly():
    outputs = yunet_outputs(64, 32)
    i = 5  # stride 16, second row, second column: its corner is (16, 16)
    outputs[1][i], outputs[4][i] = 0.81, 0.64
    outputs[7][i] = [0.5, 0.25, np.log(2), np.log(0.5)]
    outputs[10][i] = np.arange(10) / 4
    scores, boxes, landmarks = decode_yunet(tuple(outputs), grid_cells(64, 32), 0.7)
    np.testing.assert_allclose(scores, [0.72], rtol=1e-6)
    np.testing.assert_allclose(boxes, [[24 - 16, 20 - 4, 24 + 16, 20 + 4]], rtol=1e-6)
    np.testing.assert_array_equal(landmarks, [[[16, 20], [24, 28], [32, 36], [40, 44], [48, 52]]])


def test_a_yunet_whose_grids_keep_their_shape_is_decoded_as_well():
    flat = yunet_outputs(64, 32)
    flat[0][9], flat[3][9] = 0.9, 0.9
    grids = [
        output.reshape(32 // stride, 64 // stride, -1) for output, stride in zip(flat, (8, 16, 32) * 4, strict=True)
    ]
    cells = grid_cells(64, 32)
    for got, wanted in zip(decode_yunet(tuple(grids), cells, 0.5), decode_yunet(tuple(flat), cells, 0.5), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_shares_beyond_one_and_logarithms_beyond_reason_do_no_harm():
    outputs = yunet_outputs(64, 32)
    outputs[0][0], outputs[3][0], outputs[6][0] = 1.2, 1.1, 1000.0
    outputs[0][1], outputs[3][1] = -0.2, 1.0
    scores, boxes, _ = decode_yunet(tuple(outputs), grid_cells(64, 32), 0.5)
    assert scores.tolist() == [1.0]
    assert np.isfinite(boxes).all()


# What holds for each


class Said:
    """What a detector needs of a model, saying what it was told to."""

    def __init__(self, outputs: Outputs, decoder: str, width: int, height: int) -> None:
        self.outputs, self.path = outputs, Path("said.tflite")
        self.output_shapes = [output.shape for output in outputs]
        self.card = ModelCard("edgefer.model/1", "said", "detector", decoder, ModelInput(width, height, "bgr", (0, 1)))

    def __call__(self, picture: Image) -> Outputs:
        return self.outputs


SHAPES = {
    "edgefer-centre": [(42, 1), (42, 4), (42, 10)],
    "blazeface": [(128, 1), (128, 16)],  # full range
    "yunet": [output.shape for output in yunet_outputs(64, 32)],
}


@st.composite
def said(draw):
    """Any outputs at all of a model with an input of 64x32, but for one to three faces that it is sure of."""
    decoder = draw(st.sampled_from(sorted(SHAPES)))
    values = st.floats(-12, 12, width=32)
    outputs = [draw(nps.arrays(np.float32, shape, elements=values)) for shape in SHAPES[decoder]]
    for row in draw(st.sets(st.integers(0, len(outputs[0]) - 1), min_size=1, max_size=3)):
        if decoder == "yunet":
            outputs[0][row], outputs[3][row] = 1.0, 1.0  # the finest grid's two shares
        else:
            outputs[0][row] = draw(st.floats(2, 12, width=32))
        if decoder == "edgefer-centre":
            outputs[1][row] = np.abs(outputs[1][row]) + 0.5  # sides that don't cross
        elif decoder == "blazeface":
            outputs[1][row, 2:4] = np.abs(outputs[1][row, 2:4]) + 8
    return decoder, outputs


@given(said=said(), width=st.integers(8, 300), height=st.integers(8, 300))
def test_whatever_a_model_says_boxes_stay_in_the_frame(said, width, height):
    decoder, outputs = said
    faces = Detector(Said(tuple(outputs), decoder, 64, 32), 0.3)(np.zeros((height, width, 3), np.uint8))
    assume(faces)
    for face in faces:
        assert 0 <= face.box.x < face.box.x + face.box.width <= width + 1e-3
        assert 0 <= face.box.y < face.box.y + face.box.height <= height + 1e-3
        assert 0.3 <= face.score + 1e-6 <= 1 + 1e-5


@given(said=said(), data=st.data())
def test_the_order_of_outputs_doesnt_matter(said, data):
    decoder, outputs = said
    shuffled = data.draw(st.permutations(outputs))
    frame = np.zeros((32, 64, 3), np.uint8)
    faces = Detector(Said(tuple(outputs), decoder, 64, 32))(frame)
    assume(faces)
    assert Detector(Said(tuple(shuffled), decoder, 64, 32))(frame) == faces


@pytest.mark.parametrize("min_score", [0.5, 0.85])
def test_a_face_is_the_mean_of_what_cells_beside_each_other_say_whatever_the_threshold(min_score):
    outputs = [np.zeros(shape, np.float32) for shape in SHAPES["edgefer-centre"]]
    outputs[0][:] = -9
    # Cells 3 and 4 of the finest grid, of 8 px; their middles are (28, 4) and (36, 4).
    outputs[0][[3, 4], 0] = logit(0.9), logit(0.6)
    outputs[1][3] = 2, 0.5, 3, 2
    outputs[1][4] = 3, 0.5, 2, 2
    outputs[2][3], outputs[2][4] = 0.5, 0.25
    (face,) = Detector(Said(tuple(outputs), "edgefer-centre", 64, 32), min_score)(np.zeros((32, 64, 3), np.uint8))
    assert face.score == pytest.approx(0.9)
    assert (face.box.x, face.box.width) == pytest.approx((12, 40)), "both say the same sides"
    x = (0.9 * (28 + 4) + 0.6 * (36 + 2)) / 1.5
    y = (0.9 * (4 + 4) + 0.6 * (4 + 2)) / 1.5
    np.testing.assert_allclose(face.landmarks, [(x, y)] * 5, rtol=1e-6)


@pytest.mark.parametrize(("decoder", "gray"), [("edgefer-centre", 114), ("blazeface", 0), ("yunet", 114)])
def test_around_a_picture_of_another_shape_is_what_the_family_was_taught(decoder, gray):
    class Looking(Said):
        def __call__(self, picture: Image) -> Outputs:
            self.picture = picture
            return self.outputs

    model = Looking(tuple(np.full(shape, -9, np.float32) for shape in SHAPES[decoder]), decoder, 64, 32)
    assert Detector(model)(np.full((32, 32, 3), 200, np.uint8)) == []
    assert np.unique(model.picture[:, :32]).tolist() == [200]
    assert np.unique(model.picture[:, 32:]).tolist() == [gray]


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("output", [1, 2], ids=["sides", "landmarks"])
def test_a_face_that_is_nowhere_takes_no_other_along(output, nonsense):
    outputs = [np.zeros(shape, np.float32) for shape in SHAPES["edgefer-centre"]]
    outputs[0][:] = -9
    outputs[0][[3, 30], 0] = 5, 7
    outputs[1][:] = 1
    outputs[output][30, 1] = nonsense
    (face,) = Detector(Said(tuple(outputs), "edgefer-centre", 64, 32))(np.zeros((32, 64, 3), np.uint8))
    assert face.box == Box(20, 0, 16, 12), "that of cell 3, whose middle is (28, 4)"


@pytest.mark.parametrize("shape", [(1, 1, 1), (45, 80, 1), (45, 80)])
def test_a_gray_picture_is_looked_at_with_or_without_an_axis_for_its_channel(shape):
    outputs = [np.zeros(shape, np.float32) for shape in SHAPES["edgefer-centre"]]
    assert Detector(Said(tuple(outputs), "edgefer-centre", 64, 32), 0.9)(np.zeros(shape, np.uint8)) == []


@given(order=st.permutations(range(42)), logits=nps.arrays(np.float32, (42, 1), elements=st.floats(-5, 5, width=32)))
def test_the_order_of_cells_doesnt_matter(order, logits):
    rng = np.random.default_rng(0)
    cells = grid_cells(64, 32)
    outputs = logits, *(rng.normal(size=(42, last)).astype(np.float32) for last in (4, 10))
    straight = decode_centre(outputs, cells, 0.5)
    mixed = decode_centre(tuple(output[order] for output in outputs), cells[order], 0.5)
    chosen = [i for i in order if logits[i, 0] >= 0]
    places = np.argsort(chosen)
    for got, wanted in zip(mixed, straight, strict=True):
        np.testing.assert_array_equal(got[places], wanted)


@pytest.mark.parametrize(
    ("decoder", "wanted"),
    [
        ("edgefer-centre", "[(3, 1), (3, 4), (3, 10)]"),
        ("blazeface", "[(n, 1), (n, 16)] with n one of 8 (short range), 4 (full range), 8 (back camera) at 8x8"),
        (
            "yunet",
            "[(1, 1), (1, 1), (1, 4), (1, 10), (1, 1), (1, 1), (1, 4), (1, 10), (1, 1), (1, 1), (1, 4), (1, 10)]",
        ),
    ],
)
def test_outputs_of_other_shapes_are_refused(decoder, wanted, tmp_path):
    path = tmp_path / "classifier.tflite"
    path.write_bytes((ROOT / "tests/data/int8.tflite").read_bytes())  # 8x8 gray in, three scores out
    card = ModelCard("edgefer.model/1", "classifier", "detector", decoder, ModelInput(8, 8, "gray", (0.0, 1.0)))
    path.with_suffix(".json").write_text(card.to_json())
    with pytest.raises(ModelError) as refused:
        Detector(Model(path, "detector"))
    assert str(refused.value) == f"{path}: decoder {decoder} needs outputs {wanted}, the model has [(3,)]"


# Beside the originals


@pytest.mark.parametrize(("name", "side"), [("short_range", 128), ("full_range_sparse", 192)])
@pytest.mark.parametrize("actor", sample.CAST, ids=lambda actor: actor.name)
def test_mediapipes_own_blazeface_finds_the_faces_of_the_sample(name, side, actor, tmp_path):
    package = importlib.util.find_spec("mediapipe")
    folder = Path(package.origin).parent / "modules/face_detection" if package and package.origin else Path("nowhere")
    if not (folder / f"face_detection_{name}.tflite").is_file():
        pytest.skip("no mediapipe with its models is installed: pip install --no-deps mediapipe==0.10.21")
    try:
        picture = cv2.imread(str(sample.picture_path(actor)))
    except InputError as missing:
        pytest.skip(str(missing))
    path = tmp_path / f"{name}.tflite"
    shutil.copy(folder / f"face_detection_{name}.tflite", path)
    card = ModelCard("edgefer.model/1", name, "detector", "blazeface", ModelInput(side, side, "rgb", (-1.0, 1.0)))
    path.with_suffix(".json").write_text(card.to_json())
    (theirs,) = Detector(Model(path, "detector"))(picture)
    ours = Detector(Model(find_model("far"), "detector"))(picture)[0]
    # Theirs are squares from the brow down, ours go up to the hairline.
    assert theirs.box.iou(ours.box) > 0.65
    assert theirs.box.iou(actor.face) > 0.7
    assert np.hypot(*np.subtract(theirs.landmarks, actor.points).T).max() < 0.12 * theirs.box.side
