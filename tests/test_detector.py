"""From a detector's tensors to faces, and how its training and its marks are made."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from edgefer.errors import InputError
from edgefer.messages import Box, Detection
from edgefer.tracker import Tracker
from edgefer.vision.card import Metric, read_card
from edgefer.vision.decoders import decode_centre, grid_cells
from edgefer.vision.detector import MAX_IOU, Detector, averaged, suppress
from edgefer.vision.model import RUNTIME, Model, find_model
from edgefer.vision.preprocess import PADDING, TEMPLATE, letterbox

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


# Suppressing


def test_of_two_boxes_of_a_face_the_better_one_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]], np.float32)
    assert suppress(np.array([0.6, 0.9, 0.7], np.float32), boxes, 0.45) == [1, 2]


def test_what_overlaps_up_to_the_limit_stays():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10]], np.float32)  # an IoU of a third
    scores = np.array([0.9, 0.8], np.float32)
    assert suppress(scores, boxes, 0.34) == [0, 1]
    assert suppress(scores, boxes, 0.32) == [0]


def test_nothing_to_suppress():
    assert suppress(np.zeros(0, np.float32), np.zeros((0, 4), np.float32), 0.45) == []


def test_a_box_whose_sides_cross_doesnt_hide_a_face():
    boxes = np.array([[10, 0, 0, 10], [0, 0, 10, 10]], np.float32)
    assert 1 in suppress(np.array([0.9, 0.8], np.float32), boxes, 0.45)


@st.composite
def candidates(draw):
    count = draw(st.integers(1, 25))
    corner = nps.arrays(np.float32, (count, 2), elements=st.integers(0, 60).map(float))
    size = nps.arrays(np.float32, (count, 2), elements=st.integers(4, 40).map(float))
    corners = draw(corner)
    # Scores that differ: which of two equal ones stays is not promised.
    scores = np.array(draw(st.permutations(range(1, count + 1))), np.float32) / (count + 1)
    return scores, np.concatenate([corners, corners + draw(size)], 1), draw(st.permutations(range(count)))


def as_box(corners: np.ndarray) -> Box:
    left, top, right, bottom = (float(v) for v in corners)
    return Box(left, top, right - left, bottom - top)


@given(candidates())
def test_the_order_of_candidates_doesnt_matter(made):
    scores, boxes, order = made
    kept = suppress(scores, boxes, MAX_IOU)
    assert [order[i] for i in suppress(scores[order], boxes[order], MAX_IOU)] == kept


@given(candidates())
def test_suppressing_keeps_the_best_and_one_box_a_face(made):
    scores, boxes, _ = made
    kept = suppress(scores, boxes, MAX_IOU)
    assert [scores[i] for i in kept] == sorted((scores[i] for i in kept), reverse=True)
    for i in range(len(scores)):
        better = [k for k in kept if scores[k] > scores[i] and as_box(boxes[k]).iou(as_box(boxes[i])) > MAX_IOU]
        assert bool(better) == (i not in kept)


# Averaging


def test_a_face_is_the_mean_of_what_cells_beside_each_other_say():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [0, 0, 10, 11], [30, 30, 40, 40]], np.float32)
    scores = np.array([0.9, 0.6, 0.9, 0.5, 0.7], np.float32)
    # The second overlaps the first by nine elevenths; the third by a third, and the fourth is less sure by far.
    values = np.array([[0.0], [5.0], [100.0], [100.0], [7.0]], np.float32)
    np.testing.assert_allclose(averaged([0, 4], scores, boxes, values), [[2.0], [7.0]], rtol=1e-6)


def test_a_box_without_an_area_is_averaged_with_nothing():
    boxes = np.array([[5, 5, 5, 5], [0, 0, 10, 10]], np.float32)
    np.testing.assert_array_equal(averaged([0, 1], np.array([0.9, 0.8], np.float32), boxes, boxes), boxes)


def test_nothing_to_average():
    nothing = np.zeros((0, 14), np.float32)
    assert averaged([], nothing[:, 0], nothing[:, :4], nothing).shape == (0, 14)


@given(candidates())
def test_the_order_of_candidates_doesnt_change_the_mean(made):
    scores, boxes, order = made
    expected = averaged(suppress(scores, boxes, MAX_IOU), scores, boxes, boxes)
    kept = suppress(scores[order], boxes[order], MAX_IOU)
    np.testing.assert_allclose(averaged(kept, scores[order], boxes[order], boxes[order]), expected, rtol=1e-5)


# Letterboxing


sides = st.integers(20, 900)


@given(
    width=sides,
    height=sides,
    to=st.sampled_from([(416, 320), (288, 224), (128, 128)]),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_point_finds_its_way_back_from_the_letterbox(width, height, to, x, y):
    picture = np.zeros((height, width, 3), np.uint8)
    # A white square at least three pixels of the result wide; its middle is found again.
    half = max(1, round(1.5 * max(width / to[0], height / to[1])))
    column, row = round(x * max(width - 2 * half, 0)) + half, round(y * max(height - 2 * half, 0)) + half
    picture[row - half : row + half, column - half : column + half] = 255
    boxed, scale = letterbox(picture, *to)
    assert boxed.shape == (to[1], to[0], 3)
    covered = round(height * scale), round(width * scale)
    assert covered[0] == to[1] or covered[1] == to[0]
    assert (boxed[covered[0] :] == PADDING).all()
    assert (boxed[:, covered[1] :] == PADDING).all()
    weights = boxed[: covered[0], : covered[1], 0].astype(float)
    rows, columns = np.mgrid[0 : covered[0], 0 : covered[1]] + 0.5
    found = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum() / scale
    np.testing.assert_allclose(found, [column, row], atol=0.75 + 0.75 / scale)


# The whole detector, with the models that ship


@pytest.fixture(scope="module", params=["far", "near"])
def model(request):
    return Model(find_model(request.param), "detector")


@given(width=st.integers(16, 500), height=st.integers(16, 500), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
@pytest.mark.runtime
def test_boxes_stay_in_the_frame(model, width, height, seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    found = Detector(model, min_score=0.001)(picture)
    assert found, "a threshold this low lets some boxes through"
    for face in found:
        assert 0 <= face.box.x < face.box.x + face.box.width <= width + 1e-3
        assert 0 <= face.box.y < face.box.y + face.box.height <= height + 1e-3
        assert 0 <= face.score <= 1
    assert [face.score for face in found] == sorted((face.score for face in found), reverse=True)


def test_the_shipped_detectors_reach_their_floors(comparing):
    from compare_detectors import parameters

    for name, ap50, least, farthest in (
        # The aim for the landmarks is 0.04. Of all faces `near` misses it (docs/models.md): this keeps what is reached.
        ("near", "AP50, faces >= 32 px", 0.9, 0.055),
        ("far", "AP50, faces >= 16 px", 0.895, 0.04),
    ):
        path = find_model(name)
        figures = {(m.metric, m.precision): m.value for m in read_card(path.with_suffix(".json")).metrics}
        assert figures[ap50, "int8"] >= max(least, figures[ap50, "float32"] - 0.01)
        assert figures["landmark error, >= 32 px", "int8"] <= farthest
        assert figures["landmark error at min_score, >= 32 px", "int8"] <= 0.04
        assert figures["false faces / empty picture", "int8"] <= 1 / 50
        assert parameters(path) < 400_000


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the research data in ../shared/data")
@pytest.mark.parametrize("name", ["near", "far"])
@pytest.mark.runtime
def test_the_shipped_detectors_reach_what_their_cards_say(tools, name):
    from detector_scenes import open_photos
    from evaluate_detector import FACES_MADE_UP, evaluate_detector

    model = Model(find_model(name), "detector")
    kept = {metric.metric: metric.value for metric in model.card.metrics if metric.precision == "int8"}
    measured = {metric.metric: metric.value for metric in evaluate_detector(model, DATA)}
    assert measured.keys() == kept.keys()
    # A recall at a score is of a face more or less, the alignment's are medians. tflite-runtime 2.14 rounds otherwise,
    # by no more than int8 may differ from float.
    within = 0.01 if RUNTIME.startswith("tflite-runtime") else 0.002
    steady = [metric for metric in measured if metric.startswith(("AP50", "landmark"))]
    assert len(steady) == 8
    for metric in steady:
        assert measured[metric] == pytest.approx(kept[metric], abs=within), metric
    photos = open_photos(DATA / "det_val.npz")
    assert len(photos) - len(np.unique(photos.fields["img"])) > 100, "without a face, to make some up on"
    assert measured[FACES_MADE_UP] <= 1 / 50


@pytest.mark.runtime
def test_a_plain_wall_holds_no_face(model):
    assert Detector(model)(np.full((480, 640, 3), 90, np.uint8)) == []


@pytest.mark.runtime
def test_small_faces_can_be_left_out(model):
    skimage = pytest.importorskip("skimage.data", reason="the sample picture is in the demo extra")
    picture = np.ascontiguousarray(skimage.astronaut()[..., ::-1])
    found = Detector(model, min_score=0.3)(picture)
    smallest = min(face.box.side for face in found)
    assert Detector(model, min_score=0.3, min_face_px=smallest - 1)(picture) == found
    kept = Detector(model, min_score=0.3, min_face_px=smallest + 1)(picture)
    assert kept == [face for face in found if face.box.side > smallest + 1]
    assert len(kept) < len(found)


@pytest.mark.runtime
def test_a_known_face_is_found_where_it_is(model):
    skimage = pytest.importorskip("skimage.data", reason="the sample picture is in the demo extra")
    face = Detector(model)(np.ascontiguousarray(skimage.astronaut()[..., ::-1]))[0]
    assert face.box.iou(Box(178, 70, 92, 107)) > 0.5  # drawn by eye: hairline to chin, cheek to cheek
    truth = [(203, 101), (247, 103), (226, 124), (206, 143), (242, 143)]
    assert np.hypot(*np.subtract(face.landmarks, truth).T).max() < 7, "drawn by eye as well"


# The marks, and what training is told; tools/ is no package


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


@pytest.fixture
def comparing(tools):
    """The tools that count a model's parameters, with LiteRT's schema; the older runtime comes without."""
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT's schema of .tflite files")


def scene(boxes, wanted=None, points=None):
    from detector_scenes import Scene

    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    wanted = np.ones(len(boxes), bool) if wanted is None else np.array(wanted, bool)
    points = np.full((len(boxes), 5, 2), np.nan, np.float32) if points is None else np.array(points, np.float32)
    return Scene(np.zeros((100, 100, 3), np.uint8), boxes, points, wanted)


def face(left, top, right, bottom, score):
    return Detection(Box(left, top, right - left, bottom - top), score, None)


def test_average_precision_by_hand(tools):
    from evaluate_detector import average_precision, false_faces, recall

    scenes = [scene([[0, 0, 20, 20], [50, 50, 70, 70]]), scene([[0, 0, 40, 40]])]
    found = [
        [face(0, 0, 20, 20, 0.9), face(80, 0, 100, 20, 0.8), face(1, 1, 20, 20, 0.7)],  # right, wrong, twice the same
        [face(0, 0, 40, 38, 0.6)],
    ]
    # Recall 1/3 at a precision of 1, then 2/3 at a half.
    assert average_precision(found, scenes, 16) == pytest.approx(1 / 3 + 1 / 3 * 1 / 2)
    assert recall(found, scenes, 16, 0.65) == pytest.approx(1 / 3)
    assert false_faces(found, 0.75) == 1.0


def test_of_equal_scores_no_order_is_better(tools):
    from evaluate_detector import average_precision

    right, wrong = [face(0, 0, 20, 20, 0.9)], [face(80, 0, 100, 20, 0.9)]
    with_a_face, without = scene([[0, 0, 20, 20]]), scene(np.empty((0, 4)))
    # Half of what has this score is right.
    assert average_precision([right, wrong], [with_a_face, without], 16) == pytest.approx(1 / 2)
    assert average_precision([wrong, right], [without, with_a_face], 16) == pytest.approx(1 / 2)


def test_doubtful_and_small_faces_are_neither_needed_nor_false(tools):
    from evaluate_detector import average_precision, recall

    scenes = [scene([[0, 0, 20, 20], [50, 50, 60, 60], [80, 80, 99, 99]], wanted=[True, True, False])]
    found = [[face(50, 50, 60, 60, 0.9), face(80, 80, 99, 99, 0.8), face(0, 0, 20, 20, 0.7)]]
    assert average_precision(found, scenes, 16) == 1.0
    assert average_precision([[]], scenes, 16) == 0.0
    assert recall(found, scenes, 16, 0.5) == 1.0


def test_figures_by_size_count_the_mistakes_of_that_size(tools):
    from evaluate_detector import average_precision, recall

    scenes = [scene([[0, 0, 20, 20], [50, 50, 90, 90]])]
    found = [[face(0, 60, 18, 78, 0.95), face(0, 0, 20, 20, 0.9), face(50, 50, 90, 90, 0.5)]]  # the first is wrong
    assert average_precision(found, scenes, 16, 32) == pytest.approx(1 / 2)
    assert average_precision(found, scenes, 32, 64) == 1.0
    assert average_precision(found, scenes, 64, np.inf) == 0.0
    assert recall(found, scenes, 16, 0.6, 32) == 1.0
    assert recall(found, scenes, 32, 0.6, 64) == 0.0


def test_the_score_at_which_few_faces_are_made_up(tools):
    from evaluate_detector import score_at

    scenes = [scene([[0, 0, 9, 9]])] * 10
    found = [[face(0, 0, 9, 9, 0.9), face(50, 50, 70, 70, score)] for score in (0.8, 0.7, 0.6)] + [[]] * 7
    assert score_at(found, scenes, 1 / 10) == pytest.approx(0.7)
    assert score_at(found, scenes, 1 / 10) > 0.7, "the second mistake is one too many"
    assert score_at(found, scenes, 3 / 10) == 0.0


def test_the_table_has_a_row_a_detector_and_a_column_a_size(comparing):
    from compare_detectors import ours, table

    near = ours(ROOT / "models/near.json")
    head, rule, *rows, _, said = table([near, near], *[[scene([[20, 20, 60, 60]])]] * 2).splitlines()
    assert [column for column in head.split(" | ") if "32-64" in column] == ["AP50 32-64 px", "recall 32-64 px"]
    assert {line.count("|") for line in (head, rule, *rows)} == {17}
    assert [row.split(" | ")[:2] for row in rows] == [["| `near`", "288x224"]] * 2
    assert said.startswith("1 pictures")


def test_the_table_tells_how_far_off_the_points_are(comparing):
    from compare_detectors import Contender, table

    points = np.array([[30, 30], [50, 30], [40, 40], [32, 50], [48, 50]], np.float32)
    sure, unsure = (
        Detection(Box(20, 20, 40, 40), score, tuple((x + off, y) for x, y in points.tolist()))
        for score, off in ((0.9, 2), (0.4, 6))
    )
    turns = iter(
        [[sure], [sure], [sure], [unsure]]
    )  # two photos, after the scene, which is shown once more to be timed
    mine = Contender("mine", "1x1", 1000, lambda _: next(turns), lambda _: [])
    photo = scene([[20, 20, 60, 60]], points=[points])
    head, _, row, *_ = table([mine], [scene([]), scene([])], [photo, photo]).splitlines()
    assert head.split(" | ")[-2:] == ["points", "points, score >= 0.5 |"]
    assert row.split(" | ")[-2:] == ["10.0%", "5.0% |"], "2 and 6 px of 40; 2 px"


def test_a_float_model_is_measured_at_the_threshold_that_was_fitted(comparing, tmp_path, monkeypatch):
    """The same model twice: what hangs on the threshold is the same, though the second's card has another."""
    import evaluate
    from command_line import run

    rng = np.random.default_rng(3)
    noise = cv2.resize(rng.integers(0, 256, (30, 40, 3), np.uint8), (400, 300), interpolation=cv2.INTER_CUBIC)
    photos = {"box": np.ones((1, 4)), "kps": np.zeros((1, 5, 2)), "img": [0], "ignore": [0]}
    write_pack(tmp_path / "faceboxes_dev.npz", {"boxes": [[10, 10, 50, 50]], "box_image": [1]}, noise)
    write_pack(tmp_path / "det_val.npz", photos, noise)
    card = read_card(ROOT / "models/near.json")
    for name, precision, min_score in (("mine", "int8", 0.001), ("float", "float32", 0.99)):
        shutil.copy(ROOT / "models/near.tflite", tmp_path / f"{name}.tflite")
        training = {**card.training, "precision": precision}
        written = dataclasses.replace(card, thresholds={"min_score": min_score}, training=training, metrics=())
        (tmp_path / f"{name}.json").write_text(written.to_json())
    cards = [str(tmp_path / f"{name}.json") for name in ("mine", "float")]
    monkeypatch.setattr(
        "sys.argv", ["evaluate.py", "detector", cards[0], "--beside", cards[1], "--data", str(tmp_path)]
    )
    assert run(evaluate.main) == 0
    kept = read_card(tmp_path / "mine.json").metrics
    made_up = {m.precision: m.value for m in kept if m.metric == "false faces / empty picture"}
    assert made_up["int8"] == made_up["float32"] > 0


def test_a_model_has_as_many_parameters_in_int8_as_in_float(comparing):
    from compare_detectors import parameters

    # A convolution of 4 x 3x3 and 4 biases, a dense layer of 36 x 3; biases of zero are left out.
    for name in ("float32", "int8", "uint8"):
        assert parameters(ROOT / f"tests/data/{name}.tflite") == 36 + 4 + 108


@pytest.mark.runtime
def test_a_card_without_a_threshold_is_measured_as_it_is_used(tools, tmp_path):
    from evaluate_detector import figures

    shutil.copy(ROOT / "models/near.tflite", tmp_path)
    card = dataclasses.replace(read_card(ROOT / "models/near.json"), thresholds={}, metrics=())
    (tmp_path / "near.json").write_text(card.to_json())
    empty = [scene([])]
    measured = figures(Model(tmp_path / "near.tflite", "detector"), empty, empty, "int8")
    assert next(m.value for m in measured if m.metric == "false faces / empty picture") == 0


def test_the_landmark_error_is_a_share_of_the_faces_size(tools):
    from evaluate_detector import faces_placed, landmark_error

    truth = [[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]]
    moved = tuple((x + 3.0, y + 4.0) for x, y in truth)
    found = [[dataclasses.replace(face(0, 0, 40, 40, 0.9), landmarks=moved)]]
    placed = faces_placed(found, [scene([[0, 0, 40, 40]], points=[truth])], 32)
    assert landmark_error(placed) == pytest.approx(5 / 40)
    unknown = scene([[0, 0, 40, 40]] * 2, points=[truth, [[np.nan] * 2] * 5])
    assert len(faces_placed(found, [unknown], 32)) == 1, "a face whose landmarks aren't known tells nothing"
    assert faces_placed(found, [unknown], 64) == [], "too small"


def test_alignment_is_off_by_what_the_landmarks_are_turned_resized_and_moved_by(tools):
    from evaluate_detector import Placed, alignment_noise

    # Already as in the template, at twice its size: a pixel there is two here.
    truth = TEMPLATE * 2
    angle = np.radians(10)
    turn = 1.1 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([112.0, 112.0])
    placed = [Placed((truth - middle) @ matrix.T + middle + 4, truth, 100) for matrix in (turn, np.eye(2), turn)]
    off = alignment_noise(placed)
    assert off["alignment off by, turn, degrees"] == pytest.approx(1.48 * 10)
    assert off["alignment off by, size, share"] == pytest.approx(1.48 * (1 - 1 / 1.1))
    # What brings landmarks that lie 4 px further to the template brings what is there 2 px of its own further back.
    back = np.abs(np.linalg.inv(turn) @ [2.0, 2.0])
    assert off["alignment off by, middle, px of 112"] == pytest.approx(1.48 * np.median([*back, *back, 2, 2]))


def test_decoding_what_training_asks_for_gives_the_faces_back(tools):
    from detector_scenes import targets

    boxes = np.array([[10, 12, 20, 22], [40, 30, 100, 95], [0, 100, 150, 256]], np.float32)
    points = np.stack([boxes[:, None, :2] + (boxes[:, None, 2:] - boxes[:, None, :2]) * t for t in (0.3, 0.5)], 1)
    points = np.repeat(points[:, :1, 0], 5, 1) + np.arange(5)[None, :, None]
    cells = grid_cells(256, 256)
    asked = targets(scene(boxes, points=points), cells)
    outputs = (np.where(asked[:, :1] > 0, 5, -9).astype(np.float32), asked[:, 1:5], asked[:, 5:15])
    scores, decoded, landmarks = decode_centre(outputs, cells, 0.5)
    kept = suppress(scores, decoded, MAX_IOU)
    assert len(kept) == 3
    for i in kept:
        nearest = np.abs(boxes - decoded[i]).sum(1).argmin()
        np.testing.assert_allclose(decoded[i], boxes[nearest], atol=1e-3)
        np.testing.assert_allclose(landmarks[i], points[nearest], atol=1e-3)


def test_a_doubtful_face_is_asked_for_and_held_against_nobody(tools):
    from detector_scenes import targets

    cells = grid_cells(64, 64)
    asked = targets(scene([[20, 20, 44, 44]], wanted=[False]), cells)
    inside = (np.abs(cells[:, :2] - 32) < 12).all(1)
    assert (asked[inside, 0] == -1).all()
    assert (asked[:, 0] <= 0).all()
    assert (asked[(np.abs(cells[:, :2] - 32) > 26).any(1), 0] == 0).all()


class Stills(list):
    """Scenes that all hold a face to be shown close."""

    def __init__(self, scenes, sizes):
        super().__init__(scenes)
        self.sizes = sizes

    @property
    def close(self):
        return np.arange(len(self))


@pytest.mark.parametrize(("sizes", "tiles"), [("ALL_SIZES", {2, 3, 4}), ("NEAR_SIZES", {2, 3, 4, 5, 6})])
def test_faces_shown_close_fill_their_tiles(tools, sizes, tiles):
    import detector_scenes

    always = dataclasses.replace(getattr(detector_scenes, sizes), close_ups=1)
    still = scene([[30, 30, 70, 70]], points=[[[40, 40], [60, 40], [50, 50], [42, 60], [58, 60]]])
    held = set()
    for seed in range(30):
        made = detector_scenes.augmented(Stills([still], always), 0, 240, 240, np.random.default_rng(seed))
        across = round(len(made.boxes) ** 0.5)
        held.add(across)
        tile = 240 / across
        sizes = detector_scenes.sizes_of(made.boxes[made.wanted])
        assert ((sizes > 0.3 * tile) & (sizes < 0.95 * tile)).all()
        for (left, top, right, bottom), five in zip(made.boxes, made.points, strict=True):
            np.testing.assert_allclose(five[2], [(left + right) / 2, (top + bottom) / 2], atol=0.5)
    assert held == tiles


@pytest.mark.parametrize("sizes", ["ALL_SIZES", "NEAR_SIZES"])
def test_a_face_too_small_to_be_learnt_is_not_wanted(tools, sizes):
    import detector_scenes

    learnt = dataclasses.replace(getattr(detector_scenes, sizes), close_ups=0)
    still, found = Stills([scene([[30, 30, 40, 40]])] * 4, learnt), []
    for seed in range(60):
        made = detector_scenes.augmented(still, 0, 128, 128, np.random.default_rng(seed))
        for box, wanted in zip(made.boxes, made.wanted, strict=True):
            found.append((detector_scenes.sizes_of(box[None])[0], bool(wanted)))
    assert any(size < learnt.smallest_px for size, _ in found)
    assert all(size >= learnt.smallest_px for size, wanted in found if wanted)


def test_points_go_where_the_picture_goes(tools, monkeypatch):
    """Zoomed, cut, turned, mirrored, tiled: a spot on the nose is where the canvas's points say."""
    import detector_scenes

    monkeypatch.setattr(detector_scenes, "_spoilt", lambda image, _: image)
    monkeypatch.setattr(detector_scenes, "_cover", lambda *_: None)
    monkeypatch.setattr(detector_scenes, "PADDING", 0)
    still = scene([[30, 30, 70, 70]], points=[[[40, 40], [60, 40], [50, 50], [42, 60], [58, 60]]])
    still.image[46:54, 46:54] = 255
    checked = 0
    for seed in range(60):
        made = detector_scenes.augmented(
            Stills([still], detector_scenes.ALL_SIZES), 0, 256, 256, np.random.default_rng(seed)
        )
        for size, (x, y) in zip(detector_scenes.sizes_of(made.boxes), made.points[:, 2], strict=True):
            around = round(size / 4)
            left, top = round(float(x)) - around, round(float(y)) - around
            spot = made.image[max(top, 0) : top + 2 * around, max(left, 0) : left + 2 * around, 0].astype(float)
            whole = spot.sum() > 0.97 * 255 * (size / 5) ** 2  # none is cut where a tile ends
            if whole and spot.shape == (2 * around, 2 * around) and spot[[0, -1]].max() == spot[:, [0, -1]].max() == 0:
                rows, columns = np.mgrid[0 : 2 * around, 0 : 2 * around] + 0.5
                found = left + (spot * columns).sum() / spot.sum(), top + (spot * rows).sum() / spot.sum()
                np.testing.assert_allclose(found, (x, y), atol=0.15)
                checked += 1
    assert checked > 100


def test_a_head_that_is_tilted_takes_its_points_along(tools):
    from detector_scenes import Scene, turned

    image = np.zeros((100, 200, 3), np.uint8)
    points = [[90, 40], [110, 40], [100, 50], [92, 60], [108, 60]]
    boxes = np.array([[80, 30, 120, 90], [10, 10, 30, 30]], np.float32)
    still = Scene(image, boxes, np.array([points, points], np.float32), np.ones(2, bool))
    image[48:52, 98:102] = 255  # the nose: a spot whose middle is a pixel's corner
    for angle in (90, 30):
        made = turned(still, angle, np.array([90, 70]))
        spot = np.maximum(made.image[..., 0].astype(float) - PADDING, 0)
        rows, columns = np.mgrid[0:100, 0:200] + 0.5
        seen = (spot * columns).sum() / spot.sum(), (spot * rows).sum() / spot.sum()
        np.testing.assert_allclose(seen, made.points[0, 2], atol=0.05)
    # An ellipse of 40x60 that leans by 30 degrees is as wide as sqrt(40^2 * 3/4 + 60^2 / 4), and so on.
    np.testing.assert_allclose(made.boxes[0, 2:] - made.boxes[0, :2], [45.826, 55.678], atol=1e-2)
    made = turned(still, 90, np.array([100, 60]))
    assert made.points[0, 0, 1] > made.points[0, 1, 1], "anticlockwise: the left eye is below the right one"
    np.testing.assert_allclose(made.boxes[0], [70, 40, 130, 80], atol=1e-3)
    assert made.wanted.tolist() == [True, False], "the other has left the picture"
    np.testing.assert_allclose(turned(still, 0, np.array([100, 60])).boxes, boxes, atol=1e-3)


def test_a_mirrored_face_keeps_its_left_eye_left(tools):
    from detector_scenes import ALL_SIZES, augmented

    face = scene([[30, 30, 70, 70]], points=[[[40, 40], [60, 40], [50, 50], [42, 60], [58, 60]]])
    still = Stills([face] * 4, ALL_SIZES)
    mirrored = 0
    for seed in range(40):
        made = augmented(still, 0, 128, 128, np.random.default_rng(seed))
        for left_eye, right_eye, nose, left_mouth, right_mouth in made.points:
            # To the face's side, however it is tilted.
            across = (left_mouth + right_mouth - left_eye - right_eye) @ [[0, -1], [1, 0]]
            assert left_eye @ across < nose @ across < right_eye @ across
            assert left_mouth @ across < nose @ across < right_mouth @ across
            mirrored += 1
    assert mirrored > 20


PLAIN = np.full((60, 80, 3), 90, np.uint8)


def write_pack(path, fields, picture=PLAIN):
    jpeg = cv2.imencode(".jpg", picture)[1].ravel()
    np.savez(path, blob=np.concatenate([jpeg, jpeg]), off=[0, len(jpeg), 2 * len(jpeg)], **fields)


def test_a_detector_is_measured_beside_another_and_its_card_written(comparing, tmp_path, monkeypatch, capsys):
    """Two plain pictures in each pack: nothing is found, and nothing made up. `far` has no figures in float here."""
    import evaluate
    from command_line import run

    boxes = np.array([[60, 2, 78, 20]] * 2, np.float32)
    write_pack(tmp_path / "faceboxes_dev.npz", {"boxes": boxes, "box_image": [0, 1]})
    photos = {"box": boxes[:1], "kps": np.zeros((1, 5, 2), np.float32), "img": [0], "ignore": [0]}
    write_pack(tmp_path / "det_val.npz", photos)
    for name in ("near", "far"):
        shutil.copy(ROOT / f"models/{name}.tflite", tmp_path)
        card = read_card(ROOT / f"models/{name}.json")
        in_float = Metric("faceboxes_dev", "odd images", "AP50, faces >= 16 px", 0.5, "float32")
        card = dataclasses.replace(card, metrics=(in_float,) if name == "near" else ())
        (tmp_path / f"{name}.json").write_text(card.to_json())
    near, far = str(tmp_path / "near.json"), str(tmp_path / "far.json")
    monkeypatch.setattr("sys.argv", ["evaluate.py", "detector", near, "--beside", far, "--data", str(tmp_path)])
    assert run(evaluate.main) == 0
    said = capsys.readouterr().out
    assert "| `near` | 288x224 |" in said
    assert "| `far` | 416x320 |" in said
    (line,) = [line for line in said.splitlines() if "AP50, faces >= 16 px " in line]
    assert line.split()[-4:] == ["0.0000", "int8", "0.0000", "int8"], "what was measured, not what the card keeps"
    kept = {(m.precision, m.value) for m in read_card(tmp_path / "near.json").metrics if m.metric == in_float.metric}
    assert kept == {("int8", 0.0), ("float32", 0.5)}, "another precision's stays, and another model's doesn't come"
    figures = {(metric.metric, metric.precision): metric.value for metric in read_card(Path(near)).metrics}
    assert figures["AP50, faces >= 16 px", "int8"] == 0
    assert figures["false faces / empty picture", "int8"] == 0
    assert figures["AP50, faces >= 16 px", "float32"] == 0.5, "another precision's figures stay"
    assert read_card(Path(far)).metrics == ()


def test_a_threshold_is_chosen_and_what_hung_on_the_former_one_is_dropped(tools, tmp_path, monkeypatch, capsys):
    import evaluate_detector
    from command_line import run

    write_pack(tmp_path / "faceboxes_dev.npz", {"boxes": [[10, 10, 50, 50]] * 2, "box_image": [0, 1]})
    photos = {"box": np.ones((1, 4), np.float32), "kps": np.zeros((1, 5, 2), np.float32), "img": [0], "ignore": [0]}
    write_pack(tmp_path / "det_val.npz", photos)
    shutil.copy(ROOT / "models/near.tflite", tmp_path)
    card = tmp_path / "near.json"
    card.write_bytes((ROOT / "models/near.json").read_bytes())
    before = {metric.metric for metric in read_card(card).metrics}
    monkeypatch.setattr("sys.argv", ["evaluate_detector.py", str(card), "--data", str(tmp_path)])
    assert run(evaluate_detector.main) == 0
    assert read_card(card).thresholds == {"min_score": 0.22}, "nothing is made up on a plain picture; and a step more"
    dropped = before - {metric.metric for metric in read_card(card).metrics}
    assert dropped == {
        "recall at min_score, faces >= 16 px",
        "recall at min_score, faces >= 32 px",
        "false faces / empty picture",
        "landmark error at min_score, >= 32 px",
    }
    kept = card.read_text()
    assert "its figures at the former one are gone" in capsys.readouterr().out
    assert run(evaluate_detector.main) == 0
    assert card.read_text() == kept
    assert "are gone" not in capsys.readouterr().out


def test_what_hides_a_face_stays_about_its_lower_part(tools):
    from detector_scenes import _cover

    box, covered = np.array([[60, 60, 120, 140]]), 0
    for seed in range(400):
        image = np.full((200, 200, 3), 100, np.uint8)
        _cover(image, box, np.random.default_rng(seed))
        rows, columns = np.nonzero((image != 100).any(-1))
        if len(rows):
            covered += 1
            assert rows.min() > 60 + 0.25 * 80, "the eyes stay"
            assert columns.min() > 60 - 30
            assert columns.max() < 120 + 30
    assert 10 < covered < 45, "one in sixteen"


def test_pictures_are_spoilt_as_worse_cameras_and_rooms_spoil_them(tools):
    from detector_scenes import _blurred, _shrunk, _spoilt

    rng = np.random.default_rng(3)
    sharp = rng.integers(60, 200, (96, 128, 3), np.uint8)
    means = []
    for _ in range(300):
        made = _spoilt(sharp.copy(), rng)
        assert (made.shape, made.dtype) == (sharp.shape, np.uint8)
        means.append(made.mean() / sharp.mean())
    means = np.array(means)
    assert 0.03 < (means < 0.55).mean() < 0.2, "a tenth is dark"
    assert means.max() > 1.3, "some are bright"
    assert 0.1 < np.isclose(means, 1, atol=1e-3).mean() < 0.4, "some stay as they are lit"
    edges = np.abs(np.diff(sharp.astype(int), axis=1)).mean()
    for worse in (_blurred, _shrunk):
        for _ in range(20):
            made = worse(sharp, rng)
            assert made.shape == sharp.shape
            assert np.abs(np.diff(made.astype(int), axis=1)).mean() < edges
            assert made.mean() == pytest.approx(sharp.mean(), rel=0.02), "blur takes no light"


def test_photos_that_nobody_looked_at_are_no_empty_rooms(tools, tmp_path):
    from detector_scenes import Scenes

    fields = {"box": np.full((1, 4), [2, 2, 30, 30]), "kps": np.zeros((1, 5, 2)), "img": [0], "ignore": [0]}
    write_pack(tmp_path / "faceboxes_dev.npz", {"boxes": [[1, 1, 9, 9]], "box_image": [0]})
    for negative, shown in (([0, 0], 1), ([0, 1], 2), (None, 2)):
        write_pack(tmp_path / "det_train.npz", fields | ({} if negative is None else {"negative": negative}))
        scenes = Scenes(tmp_path, 1)
        assert len(scenes) == shown + 1, "and the even half of faceboxes_dev"
        assert scenes.close.tolist() == [0]
    unknown = fields | {"kps": np.full((1, 5, 2), np.nan)}
    write_pack(tmp_path / "det_train.npz", unknown)
    assert Scenes(tmp_path, 1).close.tolist() == [], "a face without landmarks teaches none from close"


def test_photos_without_a_face_to_show_close_are_learnt_from_too(tools):
    from detector_scenes import ALL_SIZES, augmented

    class Small(Stills):
        close = np.array([], np.intp)

    still = Small([scene([[30, 30, 40, 40]])] * 4, ALL_SIZES)
    for seed in range(20):
        assert augmented(still, 0, 128, 128, np.random.default_rng(seed)).image.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("field", "wrong", "words"),
    [
        ("img", [0, 1], r"img is \(2,\), not \(1,\) for 1 faces"),
        ("kps", np.zeros((1, 5, 3)), r"kps is \(1, 5, 3\), not \(1, 5, 2\)"),
        ("box", np.zeros((1, 3)), r"box is \(1, 3\), not \(1, 4\)"),
    ],
)
def test_photos_whose_fields_dont_go_together_are_told(tools, tmp_path, field, wrong, words):
    from detector_scenes import open_photos

    fields = {"box": np.ones((1, 4)), "kps": np.zeros((1, 5, 2)), "img": [0], "ignore": [0], field: wrong}
    write_pack(tmp_path / "photos.npz", fields)
    with pytest.raises(InputError, match=words):
        open_photos(tmp_path / "photos.npz")


@pytest.mark.skipif(not (DATA / "clips").is_dir(), reason="needs the research data in ../shared/data")
@pytest.mark.parametrize("name", ["near", "far"])
def test_no_track_of_a_non_face_lasts_over_a_second(tools, name):
    """On the clips, five frames a second: YuNet sees a face in each such track too, in half of the looks and more."""
    from evaluate_gallery import frames_of
    from peers import YUNET, YuNet

    detector = Detector(Model(find_model(name), "detector"))
    yunet = YuNet(DATA / YUNET, 640, 0.5)
    brighter = (255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)  # ours sees more in the dark than YuNet does
    followed = 0
    for clip in sorted((DATA / "clips").glob("*.mp4")):
        track, looks, seen_s = Tracker("clip"), defaultdict(list), defaultdict(list)
        for frame in frames_of(clip):
            for face in track(frame, detector(frame.image)):
                if face.last_seen_s != frame.stream_s:
                    continue
                if not seen_s[face.track_id] or frame.stream_s - looks[face.track_id][-1][0] >= 1:
                    looks[face.track_id].append((frame.stream_s, frame.image, face.detection.box))
                seen_s[face.track_id].append(frame.stream_s)
        for track_id, at_s in seen_s.items():
            if at_s[-1] - at_s[0] > 1:
                followed += 1
                looked = looks[track_id]
                faces = [(box, yunet(image) + yunet(cv2.LUT(image, brighter))) for _, image, box in looked]
                found = [any(face.box.iou(box) > 0.4 for face in there) for box, there in faces]
                assert sum(found) >= len(found) / 2, f"{clip.name}: {track_id} from {at_s[0]:.1f} s, {looked[0][2]}"
    assert followed >= 4
