"""From a face in a picture to a unit vector: alignment, the warp, the embedder, and how its marks are made."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_models import CARD, pictures, place

from edgefer.errors import ModelError
from edgefer.identify import IdentityRule
from edgefer.messages import Box, Detection, Landmarks
from edgefer.vision.card import Crop, ModelInput, read_card
from edgefer.vision.embedder import Embedder
from edgefer.vision.model import Model, find_card, find_model
from edgefer.vision.preprocess import TEMPLATE, align, crop_matrix, warp

ROOT = Path(__file__).parent.parent
DATA = ROOT / "../shared/data"
"""The research data, which is not in the repository."""
IN_PLACE = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
"""The affine that leaves everything in its place."""


def landmarks_at(points: np.ndarray) -> Landmarks:
    left_eye, right_eye, nose, left_mouth, right_mouth = [(float(x), float(y)) for x, y in points]
    return left_eye, right_eye, nose, left_mouth, right_mouth


def similarity(turn: float, scale: float, right: float, down: float) -> np.ndarray:
    """3x3: turned by `turn` radians, then made `scale` times as large, then moved."""
    a, b = scale * math.cos(turn), scale * math.sin(turn)
    return np.array([[a, -b, right], [b, a, down], [0, 0, 1]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def face_at(points: np.ndarray) -> Detection:
    (x, y), (width, height) = points.min(0), np.ptp(points, 0)
    return Detection(Box(float(x), float(y), float(width), float(height)), 0.9, landmarks_at(points))


# Alignment


def test_the_template_stays_where_it_is():
    np.testing.assert_allclose(align(landmarks_at(TEMPLATE)), IN_PLACE, atol=1e-9)


@given(
    turn=st.floats(-math.pi, math.pi),
    scale=st.floats(0.05, 20),
    right=st.floats(-500, 4000),
    down=st.floats(-500, 3000),
)
def test_a_turned_scaled_moved_face_is_brought_back(turn, scale, right, down):
    there = similarity(turn, scale, right, down)
    back = align(landmarks_at(moved(TEMPLATE, there)))
    np.testing.assert_allclose(moved(moved(TEMPLATE, there), back), TEMPLATE, atol=1e-6)
    np.testing.assert_allclose(back, np.linalg.inv(there)[:2], rtol=1e-6, atol=1e-6)


def test_landmarks_that_dont_fit_are_brought_as_near_as_can_be():
    """The same answer as a general least-squares solver's, for a, b, and the move of [[a, -b, c], [b, a, d]]."""
    points = TEMPLATE * 1.7 + np.random.default_rng(4).normal(0, 6, TEMPLATE.shape)
    rows = [row for x, y in points for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    (a, b, c, d), *_ = np.linalg.lstsq(np.array(rows), TEMPLATE.ravel(), rcond=None)
    np.testing.assert_allclose(align(landmarks_at(points)), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_a_mirrored_face_is_turned_never_mirrored():
    mirrored = TEMPLATE * (-1, 1) + (112, 0)
    matrix = align(landmarks_at(mirrored))
    assert np.linalg.det(matrix[:, :2]) > 0


def test_five_landmarks_in_one_place_give_a_matrix():
    assert np.isfinite(align(landmarks_at(np.full((5, 2), 40.0)))).all()


def test_a_crop_of_points_is_made_larger_about_its_middle():
    """At scale 2 the crop reaches half a template further on every side; at 56 px everything is half as large."""
    matrix = crop_matrix(face_at(TEMPLATE), Crop("points", 2.0), 56, 56)
    np.testing.assert_allclose(moved(np.array([(56, 56), (-56, -56), (168, 0)]), matrix), [(28, 28), (0, 0), (56, 14)])


def test_a_crop_of_points_is_moved_in_sides_of_the_crop():
    matrix = crop_matrix(face_at(TEMPLATE), Crop("points", 2.0, (0.25, -0.5)), 112, 112)
    # A quarter of 224 px to the right, half of them up.
    np.testing.assert_allclose(moved(np.array([(56 + 56, 56 - 112)]), matrix), [(56, 56)])


def test_a_crop_of_points_needs_points():
    with pytest.raises(ValueError, match="made from landmarks"):
        crop_matrix(Detection(Box(0, 0, 10, 10), 0.9, None), Crop("points"), 112, 112)


# The warp


@pytest.fixture
def blocks() -> np.ndarray:
    """64x64, colour: 8x8 blocks of 8 px, each of one random colour."""
    colours = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    return np.kron(colours, np.ones((8, 8, 1), np.uint8))


def test_nothing_moves(blocks):
    np.testing.assert_array_equal(warp(blocks, IN_PLACE, 64, 64), blocks)


def test_moved_by_whole_pixels_the_edge_goes_on_outside(blocks):
    result = warp(blocks, similarity(0, 1, 10, -3)[:2], 64, 64)
    np.testing.assert_array_equal(result[:61, 10:], blocks[3:, :54])
    np.testing.assert_array_equal(result[61:, 10:], blocks[-1:, :54].repeat(3, 0))
    np.testing.assert_array_equal(result[:, :10], result[:, 10:11].repeat(10, 1))


def test_a_quarter_turn(blocks):
    """What was up is now to the right: pixel (x, y) of the picture is at (63 - y, x)."""
    result = warp(blocks, similarity(math.pi / 2, 1, 64, 0)[:2], 64, 64)
    np.testing.assert_array_equal(result, np.rot90(blocks, -1))


@pytest.mark.parametrize("shrunk", [2, 4, 8])
def test_shrunk_to_the_average_of_what_it_covers(blocks, shrunk):
    noisy = np.random.default_rng(6).integers(0, 256, blocks.shape, np.uint8)
    side = 64 // shrunk
    result = warp(noisy, similarity(0, 1 / shrunk, 0, 0)[:2], side, side)
    average = noisy.reshape(side, shrunk, side, shrunk, 3).mean((1, 3))
    np.testing.assert_allclose(result, average, atol=0.51)


@pytest.mark.parametrize("shrunk", [3, 5, 6.5, 13])
def test_fine_lines_turn_gray_and_dont_alias(shrunk):
    lines = np.zeros((208, 208), np.uint8)
    lines[:, ::2] = 255  # sampled here and there, they would come out at 0 and 255
    side = int(208 / shrunk)
    result = warp(lines, similarity(0, 1 / shrunk, 0, 0)[:2], side, side)
    assert np.abs(result[1:-1, 1:-1].astype(float) - 127.5).max() < 80


def test_enlarged_blocks_keep_their_place(blocks):
    result = warp(blocks, similarity(0, 3, 0, 0)[:2], 192, 192)
    # The middle of each block, away from where neighbours mix.
    np.testing.assert_array_equal(result[12::24, 12::24], blocks[4::8, 4::8])


@given(scale=st.floats(0.08, 3), right=st.floats(-20, 20), down=st.floats(-20, 20))
def test_a_spot_comes_to_where_the_matrix_says(scale, right, down):
    """A round spot at (60, 44): its middle is found again within a fifth of a pixel, however much it shrinks."""
    x, y = np.meshgrid(np.arange(128) + 0.5, np.arange(128) + 0.5)
    width = max(4.0, 1.5 / scale)
    spot = (255 * np.exp(-((x - 60) ** 2 + (y - 44) ** 2) / (2 * width**2))).round().astype(np.uint8)
    spot[spot < 3] = 0
    matrix = similarity(0, scale, 40 - 60 * scale + right, 40 - 44 * scale + down)[:2]
    result = warp(spot, matrix, 96, 96).astype(float)
    u, v = np.meshgrid(np.arange(96) + 0.5, np.arange(96) + 0.5)
    # Only the spot's core: its tail may leave the crop.
    core = np.where(result > 0.5 * result.max(), result - 0.5 * result.max(), 0)
    found = (core * u).sum() / core.sum(), (core * v).sum() / core.sum()
    np.testing.assert_allclose(found, (40 + right, 40 + down), atol=0.2)


# The embedder


def tiny_embedder(folder: Path, name: str = "int8", **changes: object) -> Embedder:
    """8x8 gray in, three values out."""
    fields = {"task": "embedding", "decoder": "unit-vector", "crop": Crop("points"), "labels": (), **changes}
    return Embedder(Model(place(folder, name, **fields), "embedding"))


@pytest.mark.parametrize("name", ["int8", "uint8", "float32"])
@pytest.mark.runtime
def test_embeddings_have_length_one(tmp_path, name):
    embedder = tiny_embedder(tmp_path, name)
    assert embedder.size == 3
    for picture in pictures():
        vector = embedder.embed(picture)
        assert vector.shape == (3,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.runtime
def test_a_template_is_the_same_of_a_face_and_of_its_mirror_image(tmp_path):
    embedder = tiny_embedder(tmp_path)
    for picture in pictures():
        mirrored = picture[:, ::-1].copy()
        template = embedder.template_of(picture)
        assert np.linalg.norm(template) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(template, embedder.template_of(mirrored), atol=1e-6)
        one, other = embedder.embed(picture), embedder.embed(mirrored)
        assert template @ one == pytest.approx(template @ other, abs=1e-6)
        assert template @ one > one @ other


@pytest.mark.runtime
def test_the_face_is_aligned_before_it_is_embedded(tmp_path):
    """A face three times as large as the template, turned by a right angle and off the middle of its frame."""
    embedder = tiny_embedder(tmp_path, "float32")
    blocks = pictures(1)[0]
    face = np.kron(blocks, np.ones((42, 42), np.uint8))
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[100:436, 200:536] = np.rot90(face, -1)[..., None]
    there = similarity(math.pi / 2, 3, 536, 100)
    turned = face_at(moved(TEMPLATE, there))
    np.testing.assert_allclose(embedder(frame, turned), embedder.embed(blocks), atol=0.03)
    np.testing.assert_allclose(embedder.template(frame, turned), embedder.template_of(blocks), atol=0.03)


@pytest.mark.runtime
def test_a_model_with_several_outputs_is_no_embedder(tmp_path):
    detector = find_model("near")
    seen = read_card(detector.with_suffix(".json"))
    path = tmp_path / "near.tflite"
    path.write_bytes(detector.read_bytes())
    card = dataclasses.replace(CARD, task="embedding", decoder="unit-vector", crop=Crop("points"), labels=())
    path.with_suffix(".json").write_text(dataclasses.replace(card, input=seen.input, sha256=seen.sha256).to_json())
    with pytest.raises(ModelError, match=r"near\.tflite: an embedding model has one output of n values, this one has"):
        Embedder(Model(path, "embedding"))


# The tools that measure and fit


@pytest.fixture
def tool(monkeypatch):
    """Imports a tool by its name."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


def test_each_fold_is_judged_with_the_others_threshold(tool):
    """Fold 0 would have only right answers at 0.2; the other fold says 0.6, and there one of its four is wrong."""
    cosines = np.array([0.1, 0.15, 0.3, 0.9, 0.5, 0.55, 0.65, 0.8], np.float32)
    same = np.array([False, False, True, True, False, False, True, True])
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    measure = tool("evaluate_embedding")
    assert measure.best_threshold(cosines[4:], same[4:]) == pytest.approx(0.6)
    # And fold 0's threshold, 0.225, takes both of fold 1's strangers for the same.
    assert measure.fold_accuracy(cosines, same, folds) == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_one_stranger_in_a_thousand_is_over_the_threshold(tool):
    cosines = np.random.default_rng(1).permutation(np.linspace(-0.5, 0.7, 3000)).astype(np.float32)
    measure = tool("evaluate_embedding")
    assert (cosines > measure.threshold_at(cosines)).sum() == 3
    assert (cosines > measure.threshold_at(cosines, 0.01)).sum() == 30


def test_a_pair_whose_face_isnt_found_is_left_out(tool):
    vectors = np.array([[1, 0], [1, 0], [0, 1], [np.nan, np.nan]] * 2, np.float32)
    fields = {
        "pairs": np.array([[0, 1], [0, 2], [1, 3], [4, 5], [4, 6], [3, 7]]),
        "same": np.array([True, False, False] * 2),
        "fold": np.array([0, 0, 0, 1, 1, 1]),
    }
    figures = tool("evaluate_embedding").pair_figures(vectors, tool("data").Pack("pairs", fields))
    assert figures == {"accuracy": 1.0, "TAR at FAR 0.001": 1.0}


@pytest.mark.parametrize("side", [72, 108, 144])
def test_a_face_in_a_larger_picture_is_aligned_back_to_where_it_was(tool, side):
    """Soft waves in colour, brought to another size: half a pixel aside, and they would be 9 levels off."""
    y, x = np.mgrid[0:112, 0:112]
    face = np.stack([128 + 60 * np.sin((x + channel * y) / 6) for channel in range(3)], -1).astype(np.uint8)
    picture, frame = tool("fit_crop").place(face, side)
    back = warp(picture, align(tool("evaluate_embedding").template_in(frame)), 112, 112)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(back[inside].astype(float) - face[inside]).mean() < 0.8


@pytest.mark.runtime
def test_aligned_faces_are_brought_to_the_size_of_any_model(tool, tmp_path):
    blocks = pictures(1)[0]
    face = np.kron(blocks, np.ones((14, 14), np.uint8))[..., None].repeat(3, 2)
    jpeg = cv2.imencode(".jpg", face)[1].ravel()
    pack = tool("data").Pack("one", {"blob": jpeg, "off": np.array([0, len(jpeg)])})
    embedder = tiny_embedder(tmp_path, "float32")
    (found,) = tool("evaluate_embedding").embed_all(embedder, pack)
    np.testing.assert_allclose(found, embedder.embed(blocks), atol=0.03)


def test_a_share_tells_how_sure_it_is(tool):
    share = tool("evaluate_gallery").Share
    assert str(share(0, 0)) == "none"
    # Wilson's interval of 10 of 100 is 5.52 to 17.44 %.
    assert str(share(10, 100)) == "10.00% (10 of 100; 5.52% to 17.44%)"
    assert share(0, 697).interval == (0.0, pytest.approx(0.00548, abs=1e-5))


def test_who_is_enrolled_is_shown_by_other_pictures(tool):
    gallery = tool("evaluate_gallery")
    rng = np.random.default_rng(2)
    people = {f"p{n}": rng.normal(size=(n, 4)).astype(np.float32) for n in range(1, 9)}
    templates = {name: -faces for name, faces in people.items()}
    enrolled, shown, strangers = gallery.draw(people, templates, 3, 1)
    assert set(enrolled) == set(shown)
    assert set(enrolled) <= {"p5", "p6", "p7", "p8"}
    assert set(strangers) == set(people) - set(enrolled)
    for name, faces in enrolled.items():
        assert (len(faces), len(shown[name])) == (1, len(people[name]) - 3)
        assert (-faces[:, None] == people[name]).all(-1).any()
        assert not (-faces[:, None] == shown[name]).all(-1).any()
    again = gallery.draw(people, templates, 3, 3)[0]
    assert all((again[name][0] == enrolled[name][0]).all() for name in enrolled), "the same draw for three pictures"


def test_a_stranger_who_was_named_for_a_moment_was_named(tool):
    gallery = tool("evaluate_gallery")
    ada, other = np.eye(4, dtype=np.float32)[:2]
    rule = IdentityRule(0.8, 0.05)
    with gallery.gallery_of({"Ada": ada[None]}) as opened:
        passing = np.stack([ada] * 4 + [other] * 8)
        assert gallery.track_names(opened, rule, passing)[-1] is None
        strangers, found = gallery.several(opened, rule, {"Ada": np.stack([ada] * 3)}, {"x": passing, "y": passing[4:]})
        assert (strangers.count, strangers.of, found.count, found.of) == (1, 2, 1, 1)
        named, right, mistaken, _ = gallery.one_picture(opened, rule, {"Ada": np.stack([ada, other])}, {"x": passing})
        assert (named.count, named.of, right.count, mistaken.count) == (4, 12, 1, 0)


def test_who_is_found_is_told_at_the_threshold_that_lets_one_stranger_in_a_thousand_pass(tool):
    gallery = tool("evaluate_gallery")
    near = np.linspace(0.1, 0.9, 2000)
    strangers = np.stack([near, np.sqrt(1 - near**2)], 1).astype(np.float32)
    shown = strangers[[-1, -2, -3, -4]]  # as near to her as the nearest strangers: two of those may pass
    with gallery.gallery_of({"Ada": np.array([[1, 0]], np.float32)}) as opened:
        *_, found = gallery.one_picture(opened, IdentityRule(0.95, 0.0), {"Ada": shown}, {"x": strangers})
    assert (found.count, found.of) == (2, 4)


def test_the_threshold_is_fitted_on_what_a_track_is_decided_on(tool):
    gallery = tool("evaluate_gallery")
    looks = np.random.default_rng(3).normal(1, 0.5, size=(6, 4)).astype(np.float32)  # of one person
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    asked = []
    with gallery.gallery_of({"Ada": looks[:1]}) as opened:
        known = opened.match
        opened.match = lambda face: asked.append(face) or known(face)
        gallery.track_names(opened, IdentityRule(0.8, 0.05), looks)
    np.testing.assert_allclose(tool("fit_threshold").decided_on(looks), asked, atol=1e-6)
    assert len(asked) == 4


def test_a_face_is_cut_off_at_each_side(tool):
    cuts = tool("evaluate_cuts")
    image = np.arange(100 * 80).reshape(100, 80, 1)
    box = Box(20, 30, 40, 50)
    for side, left in {
        "left": image[:, 30:],
        "right": image[:, :50],
        "top": image[42:],
        "bottom": image[:68],
    }.items():
        np.testing.assert_array_equal(cuts.cut(image, box, side, 0.75), left)
    near, far = np.eye(2, dtype=np.float32)
    assert cuts.taken_for_one([near, near, far, far], 0.5) == pytest.approx(2 / 6)


def test_how_far_an_alignment_is_off(tool):
    """A detector that sees a face turned, enlarged and moved aligns it the other way."""
    middle = np.full(2, 56.0)
    seen = moved(TEMPLATE - middle, similarity(math.radians(3), 1.05, 2, -1)) + middle
    turn, scale, right, down = tool("evaluate_embedding").misalignment(landmarks_at(TEMPLATE), landmarks_at(seen))
    back = np.linalg.inv(similarity(math.radians(3), 1.05, 2, -1))
    assert (turn, scale) == pytest.approx((-3, 1 / 1.05))
    assert (right, down) == pytest.approx(tuple(back[:2, 2]))


# The shipped model


@pytest.mark.runtime
def test_the_shipped_model_is_what_its_card_says():
    embedder = Embedder(Model(find_model("identity-112"), "embedding"))
    card = embedder.model.card
    assert embedder.size == 128
    assert card.input == ModelInput(112, 112, "bgr", (-1.0, 1.0))
    assert card.crop == Crop("points")
    assert 0 < card.thresholds["match"] < 1


@pytest.mark.runtime
def test_the_shipped_model_reaches_its_floor():
    card = find_card("identity-112")
    figures = {(metric.metric, metric.precision): metric.value for metric in card.metrics}
    assert figures["accuracy", "int8"] >= 0.985


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the research data in ../shared/data")
@pytest.mark.runtime
def test_the_shipped_model_on_people_it_never_saw(tool):
    """400 of LFW's pairs: one person's two faces are alike, two people's aren't."""
    pack = tool("data").open_pack(DATA / "lfw_pairs_112.npz")
    rows = np.concatenate([np.flatnonzero(pack.fields["same"] == same)[:200] for same in (True, False)])
    pairs, same = pack.fields["pairs"][rows], pack.fields["same"][rows]
    embedder = Embedder(Model(find_model("identity-112"), "embedding"))

    def area(change=lambda picture: picture) -> float:
        """The share of (same, different) couples of pairs in which the same person's cosine is the larger."""
        vectors = {i: embedder.embed(change(pack.picture(i))) for i in np.unique(pairs)}
        cosines = np.array([vectors[a] @ vectors[b] for a, b in pairs])
        return float((cosines[same][:, None] > cosines[~same]).mean())

    plain = area()
    assert plain >= 0.96
    # Upside down is not how faces stand; a flipped axis somewhere would look like this.
    assert area(lambda picture: cv2.flip(picture, 0)) < plain - 0.1
