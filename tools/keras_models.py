"""Any Keras model, whoever's and however old: read, run, and written as a float .tflite.

`.keras` (Keras 3), `.h5`/`.hdf5` (Keras 2 and 3; its loss and optimiser aren't needed), a SavedModel folder, and an
`architecture.json` with weights. The Keras that wrote a file reads it first: `tf_keras` is Keras 2, and Keras 3 reads
only some of its files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # only TensorFlow can write a .tflite
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError

Floats = NDArray[np.float32]
BATCH = 64
FOREIGN = "it holds Python code of its own (a Lambda layer, a custom layer or function), which no model file carries"
"""Why a model can't be read, where that is why."""


class ConversionError(InputError):
    """The model can be read, but not made a .tflite."""

    exit_code = 65


class KerasModel:
    """A model that takes one picture and gives one or more outputs; `library` is the Keras that it belongs to."""

    def __init__(self, path: Path, library: Any, model: Any) -> None:
        self.path, self._library, self._model = path, library, model
        shapes = model.input_shape if isinstance(model.input_shape, list) else [model.input_shape]
        shape = tuple(shapes[0])
        if len(shapes) != 1 or len(shape) != 4 or shape[3] not in {1, 3}:
            raise ConversionError(
                f"{path}: its input is {', '.join(map(str, shapes))}; edgefer gives a model one picture: "
                "(batch, height, width, 1 or 3 channels)"
            )
        self._batch = shape[0] or BATCH
        self.size = shape[1:]
        """Height, width and channels; None where any will do."""

    def __call__(self, pictures: Floats) -> list[Floats]:
        """The outputs for n x height x width x channels, each n x ..., in the model's order."""
        parts = []
        for start in range(0, len(pictures), self._batch):
            with quiet():
                outputs = self._model(pictures[start : start + self._batch], training=False)
            parts.append([np.asarray(output, np.float32) for output in _listed(outputs)])
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def with_softmax(self) -> KerasModel:
        """The model that gives probabilities where this one gives logits."""
        library, model = self._library, self._model
        with quiet():
            whole = library.Model(model.inputs, library.layers.Softmax()(model.outputs[0]))
        return KerasModel(self.path, library, whole)

    def norm_input(self) -> tuple[Callable[[Floats], Floats], Floats, Floats] | None:
        """What reaches the first batch normalisation, and the mean and variance that it met there in training."""
        layers = [layer for layer in self._model.layers if type(layer).__name__.startswith("BatchNormalization")]
        if not layers:
            return None
        try:
            probe = self._library.Model(self._model.inputs, layers[0].input)
        except (AttributeError, ValueError):  # a model within a model, or one without a graph
            return None
        mean, variance = (np.asarray(values, np.float32) for values in layers[0].get_weights()[-2:])
        return lambda pictures: np.asarray(probe(pictures, training=False), np.float32), mean, variance

    def to_tflite(self, height: int, width: int, channels: int) -> bytes:
        """The float32 .tflite, with the batch fixed at 1 (a free batch costs LiteRT extra operators)."""
        import tensorflow  # noqa: PLC0415  # takes seconds, and --help shouldn't

        for wanted, own in zip((height, width, channels), self.size, strict=True):
            if own not in {None, wanted}:
                raise ConversionError(
                    f"{self.path}: it takes pictures of (height, width, channels) {self.size}, and "
                    f"{(height, width, channels)} is asked for"
                )
        try:
            with quiet():
                fixed = self._library.Input(batch_shape=(1, height, width, channels), name="image")
                # Called through a model of its own: a converter fed with a concrete function leaves tensors behind
                # that the quantizer can't read.
                whole = self._library.Model(fixed, self._model(fixed, training=False))
                return bytes(tensorflow.lite.TFLiteConverter.from_keras_model(whole).convert())
        except Exception as error:  # the converter raises what it likes
            missing = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
            why = f"there is no {', '.join(missing)} in TensorFlow Lite" if missing else _why(error)
            raise ConversionError(
                f"{self.path}: TensorFlow can't write it as a .tflite: {why}; build the layer that needs it from "
                "others (https://ai.google.dev/edge/litert/models/ops_compatibility)"
            ) from error


def read_model(path: Path, weights: Path | None = None) -> KerasModel:
    """The model in a file or folder; `weights` belong to an architecture.json. InputError says why it can't be read."""
    if not path.exists():
        raise InputError(f"{path} isn't there; a .keras, .h5, .hdf5, .json or a SavedModel folder is wanted")
    with quiet():
        import keras  # noqa: PLC0415  # takes seconds, and --help shouldn't
    if path.is_dir():
        return _saved_model(path, keras)
    start = path.read_bytes()[:64]
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: only a pointer to the file, from Git LFS: fetch it with `git lfs pull`")
    if path.suffix == ".json":
        return _architecture(path, weights or _weights_beside(path), keras)
    if start.startswith(b"PK"):
        return _first_that_reads(path, [keras, *_keras_2()], lambda library: _loaded(library, path))
    if start.startswith(b"\x89HDF"):
        return _h5(path, keras)
    raise InputError(
        f"{path}: not a Keras model ({len(start) and path.stat().st_size} bytes); a .keras, an .h5 or .hdf5, "
        "an architecture.json or a SavedModel folder is wanted"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TensorFlow, Keras and the quantizer tell and warn of their own affairs, from C++ too: keep that away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _h5(path: Path, keras: Any) -> KerasModel:
    import h5py  # noqa: PLC0415  # comes with Keras

    with h5py.File(path) as file:
        attributes = dict(file.attrs)
    if "model_config" not in attributes:
        architecture = path.with_suffix(".json")
        if architecture.is_file():
            return _architecture(architecture, path, keras)
        raise InputError(
            f"{path}: holds weights only; name its architecture: quantize.py architecture.json --weights {path.name}"
        )
    version = attributes.get("keras_version", "2")
    libraries = [keras, *_keras_2()] if str(version).startswith("3") else [*_keras_2(), keras]
    return _first_that_reads(path, libraries, lambda library: _loaded(library, path))


def _architecture(path: Path, weights: Path, keras: Any) -> KerasModel:
    text = path.read_text(errors="replace")
    try:
        config = json.loads(text)
        config = json.loads(config) if isinstance(config, str) else config  # to_json() was dumped once more
        version = str(config.get("keras_version", "2" if "module" not in config else "3"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not the architecture of a Keras model: {error}") from error

    def build(library: Any) -> Any:
        model = library.models.model_from_json(json.dumps(config))
        model.load_weights(str(weights))
        return model

    libraries = [keras, *_keras_2()] if version.startswith("3") else [*_keras_2(), keras]
    return _first_that_reads(path, libraries, build)


def _weights_beside(path: Path) -> Path:
    """The weights that lie beside an architecture.json: of its name, or the only ones there are."""
    files = [file for file in sorted(path.parent.iterdir()) if file.suffix in {".h5", ".hdf5"}]
    named = [file for file in files if file.name.split(".")[0] == path.stem]
    chosen = named or files
    if len(chosen) != 1:
        found = ", ".join(file.name for file in chosen) or "no .h5"
        raise InputError(f"{path}: which weights belong to it? There is {found} beside it; name them with --weights")
    return chosen[0]


def _saved_model(path: Path, keras: Any) -> KerasModel:
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise InputError(f"{path}: a folder without a saved_model.pb: no SavedModel")
    import tensorflow  # noqa: PLC0415  # takes seconds, and --help shouldn't

    try:
        with quiet():
            signatures = tensorflow.saved_model.load(str(path)).signatures
            (named,) = signatures["serving_default"].structured_input_signature[1].values()
            layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")
            image = keras.Input(batch_shape=tuple(named.shape), dtype=named.dtype.name)
            return KerasModel(path, keras, keras.Model(image, list(layer(image).values())))
    except (KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: no signature 'serving_default' that takes one picture ({_why(error)}); save the model again with "
            "tf.saved_model.save() or Keras's model.export()"
        ) from error


def _first_that_reads(path: Path, libraries: list[Any], load: Callable[[Any], Any]) -> KerasModel:
    failures = []
    for library in libraries:
        try:
            with quiet():
                model = load(library)
                if not model.built:
                    raise ValueError("its input has no shape: it was saved before it was built")  # noqa: TRY301
        except Exception as error:  # each Keras raises what it likes, and the next one may read it
            failures.append(f"{library.__name__} {library.__version__}: {_why(error)}")
            continue
        return KerasModel(path, library, model)
    reasons = "; ".join(failures)
    told = f"{path}: can't be read as a Keras model: {reasons}"
    if any(word in reasons for word in ("Lambda", "lambda", "Unknown layer", "custom", "Could not locate")):
        told += f". If {FOREIGN}: save it as a SavedModel where that code is (model.export('folder'))"
    if len(libraries) == 1:
        told += ". A model of Keras 1 or 2 needs tf_keras: pip install 'edgefer[train]'"
    raise InputError(told)


def _loaded(library: Any, path: Path) -> Any:
    return library.models.load_model(str(path), compile=False)


def _keras_2() -> list[Any]:
    try:
        with quiet():
            import tf_keras  # noqa: PLC0415  # takes seconds, and --help shouldn't
    except ImportError:
        return []
    return [tf_keras]


def _listed(outputs: Any) -> list[Any]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _why(error: Exception) -> str:
    """The first lines of what may be a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
