"""A model and its card: what fits runs, what doesn't is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from edgefer.errors import ModelError
from edgefer.vision.card import Crop, ModelCard, ModelInput, Task, card_schema, read_card
from edgefer.vision.model import RUNTIME, Model, find_card, find_model, models_folder
from edgefer.vision.preprocess import quantised_values

TINY = Path(__file__).parent / "data"
"""8x8 gray in, range 0..1, three softmax outputs; make_models.py made them."""
CARD = ModelCard(
    schema="edgefer.model/1",
    name="tiny",
    task="emotion",
    decoder="softmax",
    input=ModelInput(8, 8, "gray", (0.0, 1.0)),
    crop=Crop("box"),
    labels=("angry", "happy", "neutral"),
)
SHIPPED = sorted(models_folder().glob("*.json"))


def place(folder: Path, name: str = "int8", **changes: Any) -> Path:
    """A tiny model in a folder, with a card that fits it but for the changes."""
    content = (TINY / f"{name}.tflite").read_bytes()
    changes = {"sha256": hashlib.sha256(content).hexdigest(), **changes}
    path = folder / "tiny.tflite"
    path.write_bytes(content)
    path.with_suffix(".json").write_text(dataclasses.replace(CARD, **changes).to_json())
    return path


def edit_card(path: Path, **fields: Any) -> None:
    """Write fields into a card as a person with an editor would."""
    card = path.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | fields))


def refusal(path: Path, task: Task = "emotion") -> str:
    """What is said about a model that isn't taken; it starts with the file's name."""
    with pytest.raises(ModelError) as refused:
        Model(path, task)
    message = str(refused.value)
    assert message.startswith((f"{path}: ", f"{path.with_suffix('.json')}: "))
    return message


def pictures(count: int = 20) -> list[Any]:
    rng = np.random.default_rng(3)
    return [cv2.resize(rng.integers(0, 256, (3, 3), np.uint8), (8, 8)) for _ in range(count)]


# What fits


def test_every_precision_gives_the_same_answers(tmp_path):
    answers = {}
    for name in ("int8", "uint8", "float32", "dynamic"):
        folder = tmp_path / name
        folder.mkdir()
        model = Model(place(folder, name), "emotion")
        assert model.output_shapes == [(3,)]
        answers[name] = np.array([model(picture)[0] for picture in pictures()])
    assert len(set(answers["float32"].argmax(1))) > 1, "pictures that all give one answer test nothing"
    # One step of an output is 1/256; the weights and the activations inside add a little.
    np.testing.assert_allclose(answers["int8"], answers["float32"], atol=0.05)
    np.testing.assert_allclose(answers["uint8"], answers["int8"], atol=0.005)
    np.testing.assert_allclose(answers["dynamic"], answers["float32"], atol=0.05)


def test_a_colour_picture_is_made_gray(tmp_path):
    model = Model(place(tmp_path, "float32"), "emotion")
    gray = pictures(1)[0]
    np.testing.assert_array_equal(model(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))[0], model(gray)[0])


@pytest.mark.parametrize(
    ("values", "scale", "zero"),
    [((0.0, 1.0), 1 / 255, -128), ((-1.0, 1.0), 2 / 255, -1), ((1.0, -1.0), 2 / 255, -1), ((-1.5, 1.5), 3 / 255, 0)],
)
def test_each_pixel_value_has_a_level_of_its_own(values, scale, zero):
    # From -1 to 1 each lies midway between two: rounded to the even one, every second level would stay empty.
    levels = quantised_values(ModelInput(8, 8, "gray", values), np.dtype(np.int8), np.float32(scale), zero)
    assert sorted(levels.tolist()) == list(range(-128, 128))


def test_the_cards_range_is_what_the_model_is_fed(tmp_path):
    model = Model(place(tmp_path), "emotion")
    swapped_folder = tmp_path / "swapped"
    swapped_folder.mkdir()
    swapped = Model(place(swapped_folder, input=dataclasses.replace(CARD.input, range=(1.0, 0.0))), "emotion")
    for picture in pictures(5):
        np.testing.assert_array_equal(model(picture)[0], swapped(255 - picture)[0])


def test_a_card_without_a_digest_is_taken(tmp_path):
    assert Model(place(tmp_path, sha256=""), "emotion").card.name == "tiny"


def test_a_card_survives_being_written_and_read(tmp_path):
    path = place(tmp_path, temperature=1.3, thresholds={"min_confidence": 0.4}, crop=Crop("box", 1.1, (0.0, -0.02)))
    card = read_card(path.with_suffix(".json"))
    assert card.to_json() == path.with_suffix(".json").read_text()
    assert (card.temperature, card.crop) == (1.3, Crop("box", 1.1, (0.0, -0.02)))


# What is missing or damaged


def test_no_model(tmp_path):
    path = place(tmp_path)
    path.unlink()
    assert "can't read the model: No such file" in refusal(path)


def test_no_card(tmp_path):
    path = place(tmp_path)
    path.with_suffix(".json").unlink()
    message = refusal(path)
    assert "tiny.json" in message
    assert "can't read the model's card: No such file" in message


def test_a_truncated_model(tmp_path):
    path = place(tmp_path)
    path.write_bytes(path.read_bytes()[:1500])
    assert "damaged or was replaced" in refusal(path)


@pytest.mark.skipif(
    RUNTIME.startswith("tflite-runtime"),
    reason="tflite-runtime 2.14 doesn't verify what it loads: there, only the digest in the card protects",
)
def test_a_truncated_model_whose_card_has_no_digest(tmp_path):
    path = place(tmp_path, sha256="")
    path.write_bytes(path.read_bytes()[:1500])
    assert "can't load the model" in refusal(path)


def test_a_model_with_a_name_that_is_no_text(tmp_path):
    path = place(tmp_path, sha256="")
    content = path.read_bytes()
    assert content.count(b"StatefulPartitionedCall_1:0") == 1
    path.write_bytes(content.replace(b"StatefulPartitionedCall_1:0", b"\x80tatefulPartitionedCall_1:0"))
    assert "a name in the model isn't text" in refusal(path)


def test_a_trial_runs_no_code_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "resource.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    Model(place(tmp_path, sha256=""), "emotion")
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x89PNG\r\n\x1a\n and so on", b"version https://git-lfs"])
def test_not_a_model(tmp_path, content):
    path = place(tmp_path)
    path.write_bytes(content)
    assert f"not a TFLite model ({len(content)} bytes)" in refusal(path)


def test_another_model_than_the_cards(tmp_path):
    path = place(tmp_path)
    other = (TINY / "uint8.tflite").read_bytes()
    path.write_bytes(other)
    message = refusal(path)
    assert hashlib.sha256(other).hexdigest()[:12] in message
    assert hashlib.sha256((TINY / "int8.tflite").read_bytes()).hexdigest()[:12] in message


# What doesn't fit


@pytest.mark.parametrize("text", ["", "{", "not JSON", "[]", "\xff"])
def test_a_card_that_is_not_one(tmp_path, text):
    path = place(tmp_path)
    path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    assert "not a valid model card" in refusal(path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"labesl": ["happy"]}, "labesl"),
        ({"input": {"width": 8, "height": 8, "colour": "grey", "range": [0, 1]}}, "input.colour"),
        ({"input": {"width": 0, "height": 8, "colour": "gray", "range": [0, 1]}}, "input.width"),
        ({"input": {"width": 8, "height": 8, "colour": "gray", "range": [0]}}, "input.range.1"),
        ({"input": {"width": 8, "height": 8, "colour": "gray", "range": [1, 1]}}, "input.range"),
        ({"crop": {"from": "box", "sclae": 1.2}}, "crop.sclae"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 1e-320}, "temperature"),
        ({"crop": {"from": "box", "shift": [math.nan, 0]}}, "crop.shift.0"),
        ({"labels": ["happy", ""]}, "labels.1"),
        ({"labels": ["happy", "sad", "happy"]}, "labels"),
        ({"thresholds": {"min_confidence": 7}}, "thresholds.min_confidence"),
        ({"schema": "edgefer.model/2"}, "schema"),
        ({"sha256": "abc"}, "sha256"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, fields, named):
    path = place(tmp_path)
    edit_card(path, **fields)
    assert f"{named}: " in refusal(path)


def test_every_wrong_field_is_named_at_once(tmp_path):
    path = place(tmp_path)
    edit_card(path, temperature=-1, labesl=[], task="emotions")
    message = refusal(path)
    assert all(f"{name}: " in message for name in ("temperature", "labesl", "task"))


@pytest.mark.parametrize("missing", ["crop", "labels"])
def test_a_field_that_the_task_needs(tmp_path, missing):
    path = place(tmp_path, **{missing: None if missing == "crop" else ()})
    assert f"needs '{missing}'" in refusal(path)


def test_a_model_for_another_task(tmp_path):
    path = place(tmp_path)
    assert "is for emotion, and here one for detector is wanted" in refusal(path, "detector")


def test_a_decoder_of_another_task(tmp_path):
    path = place(tmp_path, decoder="unit-vector")
    assert "decoder 'unit-vector' doesn't fit task 'emotion'; it takes softmax" in refusal(path)


@pytest.mark.parametrize(("changes", "said"), [({"width": 48}, "(1, 8, 48, 1)"), ({"colour": "rgb"}, "(1, 8, 8, 3)")])
def test_another_input_than_the_cards(tmp_path, changes, said):
    path = place(tmp_path, input=dataclasses.replace(CARD.input, **changes))
    message = refusal(path)
    assert "takes (1, 8, 8, 1)" in message
    assert f"its card says {said}" in message


def test_a_model_with_two_inputs(tmp_path):
    assert "has 2 inputs" in refusal(place(tmp_path, "two_inputs"))


@pytest.mark.parametrize("name", ["int8", "uint8"])
@pytest.mark.parametrize("values", [(0.0, 255.0), (-1.0, 1.0), (0.0, 0.5)])
def test_a_range_that_the_models_input_cant_hold(tmp_path, name, values):
    path = place(tmp_path, name, input=dataclasses.replace(CARD.input, range=values))
    message = refusal(path)
    assert f"range {list(values)} doesn't fit" in message
    assert "0 to 1" in message


# Finding a model


def test_a_name_that_isnt_shipped():
    with pytest.raises(ModelError) as refused:
        find_model("emotion-84")
    message = str(refused.value)
    assert "no model named 'emotion-84'" in message
    assert all(path.stem in message for path in SHIPPED)


def test_a_path_is_taken_as_it_is(tmp_path):
    assert find_model(str(tmp_path / "mine.tflite")) == tmp_path / "mine.tflite"
    assert find_model("mine.tflite") == Path("mine.tflite")


# What ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_model(path):
    card = read_card(path)
    jsonschema.validate(json.loads(path.read_text()), card_schema(), jsonschema.Draft202012Validator)
    assert card.name == path.stem
    assert find_model(card.name) == path.with_suffix(".tflite")
    assert card.sha256, "a shipped model's card carries its digest"
    assert card.licence == "LicenseRef-edgefer-models-research-only"
    assert card.metrics
    assert all(card.training.get(key) for key in ("command", "data", "seed"))
    assert card.intended_use
    assert card.limits
    Model(path.with_suffix(".tflite"), card.task)


def test_three_tasks_are_shipped():
    assert {read_card(path).task for path in SHIPPED} == {"detector", "embedding", "emotion"}


def test_the_schema_in_docs_is_the_codes():
    kept = Path(__file__).parent.parent / "docs" / "model-card.schema.json"
    assert json.loads(kept.read_text()) == card_schema(), "make it again from edgefer.vision.card.card_schema"


def test_a_card_without_a_digest_gets_the_file_s(tmp_path):
    path = place(tmp_path, sha256="")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert find_card(str(path)).sha256 == Model(path, "emotion").card.sha256 == digest
