"""PyTorch's batch normalisation in Keras's place."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "keras")),
    reason="PyTorch and Keras aren't installed: pip install torch keras",
)

BOTH = """
import keras, numpy as np
from keras import layers
from fast_norm import use_fast_norm
from torch.nn import functional

slow = layers.BatchNormalization.call

def learnt():
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(5, 3)(image))
    x = layers.BatchNormalization()(layers.Dense(4)(layers.Flatten()(layers.ReLU()(x))))
    model = keras.Model(image, x)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    rng = np.random.default_rng(0)
    for _ in range(5):
        model.train_on_batch(rng.normal(2, 3, (16, 8, 8, 3)), rng.normal(size=(16, 4)))
    return [*model.get_weights(), model.predict(rng.normal(size=(4, 8, 8, 3)), verbose=0)]

fast, calls = functional.batch_norm, []
functional.batch_norm = lambda *arguments: calls.append(1) or fast(*arguments)
for policy, off in (("float32", 1e-5), ("mixed_bfloat16", 0.03)):
    keras.config.set_dtype_policy(policy)
    layers.BatchNormalization.call = slow
    wanted, before = learnt(), len(calls)
    use_fast_norm()
    given = learnt()
    assert len(calls) - before >= 2 * 6, "two layers, five steps and an answer"
    for one, other in zip(wanted, given, strict=True):
        np.testing.assert_allclose(one.astype("float32"), other.astype("float32"), atol=off * (1 + abs(one).max()))
"""


def test_it_learns_and_answers_what_keras_does():
    tools = Path(__file__).parent.parent / "tools"
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": str(tools)}
    done = subprocess.run([sys.executable, "-c", BOTH], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
