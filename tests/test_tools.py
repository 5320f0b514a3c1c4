"""The offline tools: they need the `train` extra (`make test` sets up an environment for them).

Trainers run for one small epoch on the research data where it lies beside the checkout.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "tools"))

pytest.importorskip("keras", reason="the tools need the train extra: pip install 'edgefer[train]'")
pytest.importorskip("tensorflow", reason="the tools need the train extra: pip install 'edgefer[train]'")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the research data isn't beside this checkout")

from edgefer.vision.card import read_card  # noqa: E402
from edgefer.vision.model import Model  # noqa: E402

pytestmark = pytest.mark.timeout(500)

CARD = {
    "schema": "edgefer.model/1",
    "name": "tiny",
    "task": "emotion",
    "decoder": "softmax",
    "input": {"width": 24, "height": 24, "colour": "gray", "range": [-1.0, 1.0]},
    "crop": {"from": "box"},
    "labels": ["angry", "happy", "sad"],
}


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=450, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A folder with a small network of random weights, its card, and pictures."""
    script = f"""
import os; os.environ["KERAS_BACKEND"] = "tensorflow"
import keras; from keras import layers
keras.utils.set_random_seed(1)
image = keras.Input((24, 24, 1))
x = layers.Conv2D(8, 3, strides=2, use_bias=False)(image)
x = layers.ReLU()(layers.BatchNormalization()(x))
x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3)(x)))
keras.Model(image, x).save({str(tmp_path / "tiny.keras")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    (tmp_path / "tiny.json").write_text(json.dumps(CARD))
    rng = np.random.default_rng(1)
    np.save(tmp_path / "pictures.npy", rng.integers(0, 256, (96, 24, 24, 1), np.uint8))
    return tmp_path


def test_quantize_writes_an_int8_model_that_agrees_and_its_card(tiny):
    done = tool("quantize.py", tiny / "tiny.keras", "--card", tiny / "tiny.json", "--calibrate", tiny / "pictures.npy",
                "-o", tiny / "out.tflite")  # fmt: skip
    assert "signal to noise" in done.stdout
    assert float(done.stdout.split()[-2]) > 25
    card = read_card(tiny / "out.json")
    assert len(card.sha256) == 64
    model = Model(tiny / "out.tflite", "emotion")
    (probabilities,) = model(np.load(tiny / "pictures.npy")[0])
    assert probabilities.sum() == pytest.approx(1, abs=0.02)


def test_quantize_asks_for_enough_pictures(tiny):
    np.save(tiny / "few.npy", np.zeros((5, 24, 24, 1), np.uint8))
    command = [sys.executable, ROOT / "tools" / "quantize.py", tiny / "tiny.keras", "--card", tiny / "tiny.json",
               "--calibrate", tiny / "few.npy", "-o", tiny / "out.tflite"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "at least 64 pictures" in done.stderr
    assert not (tiny / "out.tflite").exists()


@needs_data
@pytest.mark.parametrize(
    ("script", "limit", "leaves"),
    [
        ("train_emotion.py", 512, ["model.keras", "card.json", "calibrate.npy"]),
        ("train_embedding.py", 192, ["model.keras", "card.json", "calibrate.npy"]),
        ("train_detector.py", 48, ["far.keras", "far.json", "far.npy", "near.keras", "near.json", "near.npy"]),
    ],
)
def test_a_trainer_runs_and_resumes(tmp_path, script, limit, leaves):
    output = "--out" if script == "train_emotion.py" else "-o"
    tool(script, output, tmp_path, "--data", DATA, "--epochs", 1, "--limit", limit)
    for name in leaves:
        assert (tmp_path / name).stat().st_size > 0
    for name in leaves:
        if name.endswith(".json"):
            assert read_card(tmp_path / name).licence == "LicenseRef-edgefer-models-research-only"
    # Everything is done, so that resuming only writes the results again.
    tool(script, output, tmp_path, "--resume")
