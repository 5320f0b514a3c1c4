"""Chooses Keras's backend, before Keras is imported: PyTorch where it is installed, as it trains fastest on a CPU."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("keras") is None:
    # Told here, for everything else that needs Keras is imported after.
    sys.exit(f"{Path(sys.argv[0]).stem}: Keras isn't installed; the tools need pip install '.[train]'")

os.environ.setdefault("KERAS_BACKEND", "torch" if find_spec("torch") else "tensorflow")
if find_spec(chosen := os.environ["KERAS_BACKEND"]) is None:
    sys.exit(f"{Path(sys.argv[0]).stem}: KERAS_BACKEND={chosen} isn't installed: unset it, or pip install {chosen}")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

COMPILE = os.environ["KERAS_BACKEND"] == "jax"
"""Whether a training step is compiled: JAX is slow without, and with TensorFlow it takes minutes on a CPU."""
