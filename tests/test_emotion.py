"""The emotion reader: probabilities, their temperature, and the shipped model on faces it never saw."""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_models import pictures, place

from edgefer.errors import ModelError
from edgefer.messages import Box, Detection
from edgefer.vision.card import Crop, Metric, read_card
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import Model, find_model
from edgefer.vision.preprocess import crop_matrix

ROOT = Path(__file__).parent.parent
FER2013 = ROOT.parent / "shared" / "data" / "fer2013"


def tiny_reader(folder: Path, **changes: object) -> EmotionReader:
    return EmotionReader(Model(place(folder, **changes), "emotion"))


@pytest.mark.runtime
def test_probabilities_sum_to_one(tmp_path):
    reader = tiny_reader(tmp_path)
    for picture in pictures():
        probabilities = reader.read(picture)
        assert probabilities.shape == (3,)
        assert probabilities.min() >= 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.runtime
def test_a_temperature_softens_and_keeps_the_order(tmp_path):
    plain, softer = tmp_path / "plain", tmp_path / "softer"
    plain.mkdir()
    softer.mkdir()
    at_one, at_two = tiny_reader(plain), tiny_reader(softer, temperature=2.0)
    for picture in pictures():
        sharp, soft = at_one.read(picture), at_two.read(picture)
        np.testing.assert_array_equal(np.argsort(sharp, kind="stable"), np.argsort(soft, kind="stable"))
        assert soft.max() < sharp.max()
        np.testing.assert_allclose(soft, np.sqrt(sharp) / np.sqrt(sharp).sum(), rtol=1e-4)


@pytest.mark.runtime
def test_a_card_with_a_label_too_many(tmp_path):
    with pytest.raises(ModelError, match=r"tiny\.tflite: the card names 4 labels, the model gives \[\(3,\)\]"):
        tiny_reader(tmp_path, labels=("angry", "happy", "neutral", "sad"))


@pytest.mark.runtime
def test_the_face_is_cropped_as_the_card_says(tmp_path):
    """A box of 16 px around (40, 30), twice as large, then half a crop to the right: x 40 to 72, y 14 to 46."""
    reader = tiny_reader(tmp_path, crop=Crop("box", 2.0, (0.5, 0.0)))
    frame = np.zeros((64, 80, 3), np.uint8)
    face = Detection(Box(32, 22, 16, 16), 0.9, None)
    blocks = pictures(1)[0]
    frame[14:46, 40:72] = np.kron(blocks, np.ones((4, 4), np.uint8))[..., None]
    np.testing.assert_allclose(reader(frame, face), reader.read(blocks), atol=0.02)


# The tools that measure and fit


@pytest.fixture
def tool(monkeypatch):
    """Imports a tool by its name."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


def test_the_figures_of_a_small_test(tool):
    """Two labels; three images of the first, of which one is missed, and one of the second, which is found."""
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.2, 0.8]], np.float32)
    figures = tool("evaluate_emotion").measure(probabilities, np.array([0, 0, 0, 1]), ("calm", "glad"))
    assert figures == pytest.approx(
        {
            "accuracy": 3 / 4,
            "macro-F1": (4 / 5 + 2 / 3) / 2,
            # Confidences .9, .7, .6 and .8 fall into bins of their own; right, right, wrong, right.
            "expected calibration error": (0.1 + 0.3 + 0.6 + 0.2) / 4,
            "recall calm": 2 / 3,
            "recall glad": 1.0,
            "precision calm": 1.0,
            "precision glad": 1 / 2,
        },
        abs=1e-6,
    )


def test_a_label_that_no_face_has_counts_for_nothing(tool):
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], np.float32)
    figures = tool("evaluate_emotion").measure(probabilities, np.array([0, 1]), ("calm", "glad", "vexed"))
    assert figures["macro-F1"] == 1.0
    assert not [name for name in figures if "vexed" in name]


def test_the_temperature_that_made_them_is_found(tool):
    """Answers drawn from probabilities that were then made twice as sure of themselves."""
    confidence = tool("fit_confidence")
    rng = np.random.default_rng(5)
    honest = rng.dirichlet(np.ones(7), 5000).astype(np.float32)
    labels = np.array([rng.choice(7, p=row / row.sum()) for row in honest.astype(np.float64)])
    boastful = confidence.soften(honest, 0.5)
    assert confidence.fit_temperature(np.maximum(boastful, 1e-9), labels) == pytest.approx(2, rel=0.1)


def test_the_threshold_is_where_answers_turn_right(tool):
    confidence = np.linspace(0.3, 0.9, 601, dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence - 0.01, np.full_like(confidence, 0.01)], 1)
    probabilities = probabilities[probabilities.argmax(1) == 0]
    labels = np.where(probabilities[:, 0] >= 0.7, 0, 2)
    fit_threshold = tool("fit_confidence").fit_threshold
    assert fit_threshold(probabilities, labels) == pytest.approx(0.7, abs=0.015)
    assert fit_threshold(probabilities, np.zeros(len(labels), int)) == 0.35, "of three, all right: over a third"


def test_the_fitted_crop_brings_the_landmarks_to_their_frame(tool):
    """Five points as they lie in a box, and in a frame of 80 % of its side, 5 % of that to the left and 10 % up."""
    in_frame = np.array([(-0.2, -0.1), (0.2, -0.1), (0, 0.05), (-0.15, 0.25), (0.15, 0.25)])
    in_box = (in_frame + np.array([-0.05, -0.1])) * 0.8
    crop = tool("fit_crop").fit(in_box, in_frame)
    assert (crop.scale, *crop.shift) == pytest.approx((0.8, -0.05, -0.1))
    face = Detection(Box(31, 40, 52, 66), 0.9, None)
    matrix = crop_matrix(face, crop, 48, 48)
    for box_point, frame_point in zip(in_box, in_frame, strict=True):
        pixel = np.array(face.box.centre) + box_point * 66
        np.testing.assert_allclose(matrix @ (*pixel, 1), (frame_point + 0.5) * 48, atol=1e-6)


def face_files(folder: Path, counts: dict[str, int]) -> None:
    """So many pictures in each folder of a tree."""
    rng = np.random.default_rng(2)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            assert cv2.imwrite(str(folder / name / f"{number}.png"), rng.integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.runtime
def test_a_model_is_measured_on_the_test_faces_of_a_folder_tree(tool, tmp_path, monkeypatch, capsys):
    """Faces of labels that it doesn't know, and those to train on, are left out."""
    face_files(tmp_path / "faces", {"train/happy": 2, "test/anger": 3, "test/happy": 5, "test/bored": 4})
    monkeypatch.chdir(tmp_path)
    model = Model(find_model("emotion-48"), "emotion")
    figures = tool("evaluate_emotion").evaluate_emotion(model, tmp_path / "faces")
    assert {(figure.dataset, figure.split) for figure in figures} == {("faces", "test")}
    assert {"accuracy", "macro-F1", "expected calibration error", "recall happy"} <= {f.metric for f in figures}
    digest = model.card.sha256[:8]
    assert (tmp_path / "runs" / f"emotion-48-{digest}-faces-int8-confusion.png").stat().st_size > 1000
    assert "8 faces" in capsys.readouterr().out


def test_a_second_model_of_other_labels_stands_beside_the_first(tool, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ai_edge_litert", reason="evaluate.py needs LiteRT's schema of .tflite files")
    face_files(tmp_path / "faces", {"happy": 6, "angry": 6, "fear": 2})
    monkeypatch.chdir(tmp_path)
    labels, other = ("angry", "happy", "sad"), find_model("emotion-48")
    own = place(tmp_path, labels=labels)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "emotion", str(own), "--data", "faces"])
    assert tool("command_line").run(tool("evaluate").main) == 66
    assert "its card has None in training.precision, where one of int8, " in capsys.readouterr().err
    own = place(tmp_path, labels=labels, training={"precision": "int8"})
    before = own.with_suffix(".json").read_text(), other.with_suffix(".json").read_text()
    monkeypatch.setattr("sys.argv", ["evaluate.py", "emotion", str(own.with_suffix(".json")), "--data", "faces",
                                     "--beside", str(other.with_suffix(".json"))])  # fmt: skip
    assert tool("command_line").run(tool("evaluate").main) == 0
    lines = capsys.readouterr().out.splitlines()
    (happy,) = [line for line in lines if "recall happy" in line]
    (fear,) = [line for line in lines if "recall fear" in line]
    assert (happy.count("int8"), fear.count("int8")) == (2, 1)
    after = own.with_suffix(".json").read_text(), other.with_suffix(".json").read_text()
    assert before[0] != after[0], "measured, and kept in the card"
    assert before[1] == after[1]


def test_confidence_is_fitted_on_a_folder_tree_of_any_labels(tool, tmp_path, monkeypatch, capsys):
    face_files(tmp_path / "faces", {"val/glad": 6, "val/calm": 6, "train/glad": 2, "test/calm": 3})
    card = place(tmp_path, labels=("calm", "glad", "sad")).with_suffix(".json")
    monkeypatch.setattr("sys.argv", ["fit_confidence.py", str(card), "--data", str(tmp_path / "faces")])
    assert tool("command_line").run(tool("fit_confidence").main) == 0
    told = capsys.readouterr().out
    assert "12 validation faces" in told
    assert "no temperature that is tried makes its confidence fit" in told, "they are noise"
    fitted = read_card(card)
    assert fitted.temperature == 10
    monkeypatch.setattr("sys.argv", ["fit_confidence.py", str(card), "--data", str(tmp_path / "nowhere")])
    assert tool("command_line").run(tool("fit_confidence").main) == 66
    assert "nowhere isn't there" in capsys.readouterr().err
    assert read_card(card) == fitted


def test_confidence_fitted_on_what_a_model_learned_from_is_told(tool, tmp_path, monkeypatch, capsys):
    face_files(tmp_path / "faces", {"train/glad": 20, "train/calm": 20, "test/calm": 3})
    measured = tuple(Metric("faces", "test", name, 0.5, "int8") for name in ("accuracy", "expected calibration error"))
    mine = place(tmp_path, labels=("calm", "glad", "sad"), metrics=measured, temperature=50.0).with_suffix(".json")
    monkeypatch.setattr("sys.argv", ["fit_confidence.py", str(mine), "--data", str(tmp_path / "faces")])
    assert tool("command_line").run(tool("fit_confidence").main) == 0
    told = capsys.readouterr().out
    assert "4 validation faces" in told
    assert "they are of train/" in told
    assert f"its calibration error at the former one is gone: python tools/evaluate.py emotion {mine}" in told
    assert read_card(mine).metrics == measured[:1]
    ours = replace(read_card(mine), training={"command": "python tools/train_emotion.py", "precision": "int8"})
    mine.write_text(ours.to_json())
    assert tool("command_line").run(tool("fit_confidence").main) == 0
    assert "they are of train/" not in capsys.readouterr().out, "train_emotion.py left these out"


def test_a_card_that_could_not_be_read_again_is_not_written(tool, tmp_path):
    card = place(tmp_path).with_suffix(".json")
    before = card.read_text()
    with pytest.raises(
        ModelError, match=r"tiny\.json would be, and so was left as it is: not a valid model card: .*match"
    ):
        tool("model_file").write_card(card, replace(read_card(card), thresholds={"match": float("nan")}))
    assert card.read_text() == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".tflite"]


def test_only_the_float_of_the_same_model_is_its_float(tool, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="evaluate.py needs LiteRT's schema of .tflite files")
    card = read_card(place(tmp_path, training={"source": "a.hdf5, sha256 1", "precision": "int8"}).with_suffix(".json"))
    in_float = replace(card, training=card.training | {"precision": "float32"})
    another = replace(card, training={"source": "b.hdf5, sha256 2", "precision": "float32"})
    is_float_of = tool("evaluate").is_float_of
    asked = [(in_float, card), (another, card), (in_float, in_float)]
    assert [is_float_of(*pair) for pair in asked] == [True, False, False]


def test_batches_are_the_same_whatever_number_of_processes_makes_them(tool):
    def make(rows, rng):
        return np.array([os.getpid()]), np.array([*rows, rng.random()])

    made = {}
    for workers in (1, 3):
        with closing(tool("batches").Batches(make, 11, 3, 5, workers)) as batches:
            made[workers] = list(batches.epochs(1, 4))
    assert len(made[1]) == 9, "three epochs of three whole batches"
    np.testing.assert_array_equal(*[[targets for _, targets in whole] for whole in made.values()])
    assert len({tuple(targets) for _, targets in made[1]}) == 9
    assert {int(pid[0]) for pid, _ in made[1]} == {os.getpid()}
    assert os.getpid() not in {int(pid[0]) for pid, _ in made[3]}


def test_what_goes_wrong_in_a_worker_is_told(tool):
    def make(rows, rng):
        raise ValueError("a bad picture")

    bad = tool("batches").Batches(make, 6, 3, 5, 2)
    with closing(bad), pytest.raises(ValueError, match="a bad picture"):
        list(bad.epochs(0, 1))


# The shipped model


@pytest.mark.runtime
def test_the_shipped_model_reads_the_seven_emotions():
    reader = EmotionReader(Model(find_model("emotion-48"), "emotion"))
    assert reader.labels == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert 0 < reader.model.card.thresholds["min_confidence"] < 1
    figures = {(m.metric, m.precision): m.value for m in reader.model.card.metrics if m.split == "PrivateTest"}
    floors = {"accuracy": 0.70, "macro-F1": 0.66, "recall disgust": 0.45, "recall fear": 0.45}
    assert {name: figures[name, "int8"] for name, floor in floors.items() if figures[name, "int8"] < floor} == {}
    assert figures["expected calibration error", "int8"] <= 0.05
    assert figures["accuracy", "int8"] >= figures["accuracy", "float32"] - 0.005


@pytest.mark.skipif(not FER2013.is_dir(), reason="needs the research data in ../shared/data")
@pytest.mark.runtime
def test_the_shipped_model_on_unseen_faces(tool):
    """300 images of PublicTest: far better than with the pixels upside down, which a wrong range amounts to."""
    fer = tool("data").load_fer2013(FER2013)
    rows = np.flatnonzero(fer.usage == 1)[:300]
    reader = EmotionReader(Model(find_model("emotion-48"), "emotion"))

    def accuracy(images):
        return np.mean([reader.read(image).argmax() for image in images] == fer.labels[rows])

    plain = accuracy(fer.images[rows])
    assert plain >= 0.57, "several points under what the card says"
    assert accuracy(fer.images[rows] // 6) < plain - 0.1
    assert accuracy(255 - fer.images[rows]) < 0.4
    # A colour frame of a gray picture is that picture.
    assert accuracy(np.repeat(fer.images[rows][..., None], 3, 3)) == plain


@pytest.mark.skipif(not FER2013.is_dir(), reason="needs the research data in ../shared/data")
def test_a_crop_is_written_only_once_it_is_measured(tool, tmp_path, monkeypatch, capsys):
    """FER2013 knows none of this model's labels: it can't be measured, and keeps its crop."""
    run = tool("command_line").run
    card = tmp_path / "mine.json"
    shutil.copy(find_model("emotion-48"), card.with_suffix(".tflite"))
    shipped = read_card(find_model("emotion-48").with_suffix(".json"))
    strange = replace(shipped, labels=tuple("abcdefg"), crop=Crop("box", 0.5), metrics=())
    card.write_text(strange.to_json())
    kept = card.read_text()
    monkeypatch.setattr("sys.argv", ["fit_crop.py", str(card), "--data", str(FER2013.parent), "--images", "60"])
    assert run(tool("fit_crop").main) == 66
    assert "none of the 60 faces has a label that the model knows" in capsys.readouterr().err
    assert card.read_text() == kept
