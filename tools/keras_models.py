"""Any Keras model, whoever's and however old: read, run, and written as a float .tflite.

`.keras` (Keras 2 and 3), `.h5`/`.hdf5` (Keras 1, 2 and 3; its loss and optimiser aren't needed), a SavedModel folder,
and an `architecture.json` with weights. The Keras that wrote a file reads it first: `tf_keras` is Keras 2, and Keras 3
reads only some of its files. Nothing reads those of Keras 1: keras_1.py builds such a model anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # only TensorFlow can write a .tflite
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if find_spec("h5py") is None or find_spec("tensorflow") is None:
    # Told here, for everything else that needs them is imported after.
    print(
        f"{Path(sys.argv[0]).stem}: TensorFlow isn't installed; the tools need pip install '.[train]'", file=sys.stderr
    )
    sys.exit(69)  # 1 is quantize.py's, for another thing

import h5py
import numpy as np
from keras_1 import is_keras_1, rebuild
from numpy.typing import NDArray

from edgefer.errors import InputError

Floats = NDArray[np.float32]
RENAMED = {"softmax_v2": "softmax"}
"""Functions of TensorFlow's own by the names that some TensorFlow 2.x saved, where they were given as activations."""


class ConversionError(InputError):
    """The model can be read, but not made a .tflite."""

    exit_code = 65


class KerasModel:
    """A model that takes one picture and gives one or more outputs; `library` is the Keras that it belongs to."""

    def __init__(self, path: Path, library: Any, model: Any) -> None:
        self.path, self._library, self._model = path, library, model
        shapes = model.input_shape
        shapes = shapes if isinstance(shapes, list) else list(shapes.values()) if isinstance(shapes, dict) else [shapes]
        shape = tuple(shapes[0])
        if len(shapes) == 1 and len(shape) == 4 and shape[1] in {1, 3} and shape[3] not in {1, 3}:
            raise ConversionError(
                f"{path}: its input is {shape}, channels first, which TensorFlow Lite doesn't compute: build it with "
                "data_format='channels_last', give it the same weights (set_weights), and save that"
            )
        if len(shapes) != 1 or len(shape) != 4 or shape[3] not in {1, 3}:
            raise ConversionError(
                f"{path}: its input is {', '.join(map(str, shapes))}; edgefer gives a model one picture: "
                "(batch, height, width, 1 or 3 channels)"
            )
        self._fixed: int | None = shape[0]
        self.size = shape[1:]
        """Height, width and channels; None where any will do."""
        self.takes_integers = "int" in str(model.inputs[0].dtype)

    def __call__(self, pictures: Floats) -> list[Floats]:
        """The outputs for n x height x width x channels, each n x ..., in the model's order."""
        parts = []
        batch = self._fixed or len(pictures)
        for start in range(0, len(pictures), batch):
            some = pictures[start : start + batch]
            whole = np.pad(some, ((0, batch - len(some)), *[(0, 0)] * 3)) if self._fixed else some
            try:
                with quiet():
                    outputs = self._model(whole, training=False)
            except Exception as error:  # TensorFlow raises what it likes
                raise ConversionError(f"{self.path}: it can't be run on pictures: {_why(error)}") from error
            parts.append([np.asarray(output, np.float32)[: len(some)] for output in _listed(outputs)])
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def check_takes(self, height: int, width: int, channels: int) -> None:
        """ConversionError where the model takes pictures of another size."""
        for wanted, own in zip((height, width, channels), self.size, strict=True):
            if own not in {None, wanted}:
                raise ConversionError(
                    f"{self.path}: it takes pictures of (height, width, channels) {self.size}, and "
                    f"{(height, width, channels)} is asked for: --size, --colour and --card have to fit"
                )

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
            probe = self._library.Model(self._model.inputs[0], layers[0].input)
        except (AttributeError, ValueError):  # a model within a model, or one without a graph
            return None
        mean, variance = (np.asarray(values, np.float32) for values in layers[0].get_weights()[-2:])
        if len(mean) != probe.output.shape[-1]:  # it normalises another axis than the channels'
            return None
        return lambda pictures: np.asarray(probe(pictures, training=False), np.float32), mean, variance

    def to_tflite(self, height: int, width: int, channels: int) -> bytes:
        """The float32 .tflite, with the batch fixed at 1 (a free batch costs LiteRT extra operators)."""
        import tensorflow  # noqa: PLC0415  # takes seconds, and --help shouldn't

        try:
            with quiet():
                fixed = self._library.Input(batch_shape=(1, height, width, channels), name="image")
                # Called through a model of its own: a converter fed with a concrete function leaves tensors behind
                # that the quantizer can't read.
                whole = self._library.Model(fixed, self._model(fixed, training=False))
                return bytes(tensorflow.lite.TFLiteConverter.from_keras_model(whole).convert())
        except Exception as error:  # the converter raises what it likes
            if self._fixed not in {None, 1}:
                raise ConversionError(
                    f"{self.path}: its batch is fixed at {self._fixed}, and edgefer shows one picture at a time: save "
                    "it again with a free batch (None)"
                ) from error
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
    architecture = path
    if path.suffix == ".json":
        weights = weights or weights_beside(path)
    elif start.startswith(b"\x89HDF") and not _has_config(path):
        architecture, weights = path.with_suffix(".json"), path
        if not architecture.is_file():
            raise InputError(
                f"{path}: holds weights only; name its architecture: "
                f"quantize.py architecture.json --weights {path.name}"
            )
    elif not start.startswith((b"\x89HDF", b"PK")):
        raise InputError(
            f"{path}: not a Keras model ({len(start) and path.stat().st_size} bytes); a .keras, an .h5 or .hdf5, "
            "an architecture.json or a SavedModel folder is wanted"
        )
    config, version = _config(architecture)
    if is_keras_1(config, version):
        with quiet():
            return KerasModel(path, keras, rebuild(path, config, weights or path, keras))
    return _first_that_reads(path, config, version, weights, keras)


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


def _has_config(path: Path) -> bool:
    try:
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except OSError as error:
        raise InputError(f"{path}: a damaged HDF5 file: {_why(error)}") from error


def _config(path: Path) -> tuple[dict[str, Any], str | None]:
    """The architecture in a .keras, an .h5 or a .json, and its Keras's version, where that is told."""
    try:
        if path.suffix == ".json":
            config = json.loads(path.read_text(errors="replace"))
            config = json.loads(config) if isinstance(config, str) else config  # to_json() was dumped once more
            version = config.get("keras_version") or ("3" if "module" in config else None)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                version = json.loads(archive.read("metadata.json"))["keras_version"]
        else:
            with h5py.File(path) as file:
                config, version = json.loads(file.attrs["model_config"]), file.attrs.get("keras_version")
        config["class_name"], config["config"]
    except (ValueError, KeyError, AttributeError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: holds no architecture of a Keras model ({_why(error)}): is it damaged?") from error
    return config, version if version is None else os.fsdecode(version)


def weights_beside(path: Path) -> Path:
    """The weights that lie beside an architecture.json: of its name, or the only ones there are."""
    files = [file for file in sorted(path.parent.iterdir()) if file.suffix in {".h5", ".hdf5"}]
    named = [file for file in files if file.name.split(".")[0] == path.stem.split(".")[0]]
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
    except (IndexError, OSError, ValueError, tensorflow.errors.OpError) as error:
        raise InputError(f"{path}: a SavedModel that can't be read ({_why(error)}): is it whole?") from error
    try:
        with quiet():
            (named,) = signatures["serving_default"].structured_input_signature[1].values()
            layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")
            image = keras.Input(batch_shape=tuple(named.shape), dtype=named.dtype.name)
            model = keras.Model(image, list(layer(image).values()))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: no signature 'serving_default' that takes one picture ({_why(error)}); save the model again with "
            "tf.saved_model.save() or Keras's model.export()"
        ) from error
    return KerasModel(path, keras, model)


def _first_that_reads(
    path: Path, config: dict[str, Any], version: str | None, weights: Path | None, keras: Any
) -> KerasModel:
    """The model, by the Keras that wrote it or else by the other one."""
    if _holds_lambda(config):
        # Keras 2 would run what code the file holds.
        raise InputError(_foreign(path, config, keras))
    libraries = [keras] if (version or "").startswith("3") else [*_keras_2(), keras]
    failures = []
    for library in libraries:
        known = {name: getattr(library.activations, now) for name, now in RENAMED.items()}
        try:
            with quiet():
                if weights:
                    model = library.models.model_from_json(json.dumps(config), custom_objects=known)
                    model.load_weights(str(weights))
                else:
                    model = library.models.load_model(str(path), compile=False, custom_objects=known)
                if not model.built:
                    raise ValueError("its input has no shape: it was saved before it was built")  # noqa: TRY301
                model = _in_float32(model, library)
        except Exception as error:  # each Keras raises what it likes, and the next one may read it
            failures.append(f"{library.__name__} {library.__version__}: {_why(error)}")
            continue
        return KerasModel(path, library, model)
    if foreign := _foreign(path, config, libraries[0]):
        raise InputError(foreign)
    told = f"{path}: can't be read as a Keras model: {failures[0]}"
    if libraries == [keras] and not (version or "").startswith("3"):
        told += ". A model of Keras 2 needs tf_keras: pip install '.[train]'"
    raise InputError(told)


def _in_float32(model: Any, library: Any) -> Any:
    """The model, computing in float32 throughout: TensorFlow Lite has no layers that compute in float16."""
    told = model.to_json()
    plain = re.sub(r'"(mixed_)?(b?float16|float64)"', '"float32"', told)
    if plain == told:
        return model
    again = library.models.model_from_json(plain)
    again.set_weights(model.get_weights())
    for layer in again._flatten_layers():  # noqa: SLF001  # Keras has no other way to reach those of models within
        getattr(layer, "finalize_state", lambda: None)()  # Normalization keeps what it computes with beside its weights
    return again


def _foreign(path: Path, config: dict[str, Any], library: Any) -> str:
    """What to do about layers and functions that are Python code; "" where there are none."""
    own = []
    if (whole := config["class_name"].split(">")[-1]) not in {"Sequential", "Functional", "Model"}:
        own.append(f"the model's own class {whole}")
    for kind, settings in _all_layers(config):
        name = settings.get("name", "")
        if _holds_lambda({"class_name": kind, "config": settings}) or not hasattr(library.layers, kind.split(">")[-1]):
            own.append(f"{kind} {name!r}")
        activation = settings.get("activation")
        if isinstance(activation, dict) and activation.get("class_name") == "function":
            own.append(f"the activation {activation['config']!r} of {name!r}")
        if isinstance(activation, str) and not _knows(library, activation):
            own.append(f"the activation {activation!r} of {name!r}")
    if not own:
        return ""
    return (
        f"{path}: {', '.join(own[:5])}{' and others' * (len(own) > 5)}: no model file carries Python code of its own. "
        "Save the model as a SavedModel where that code is (model.export('folder'), before Keras 2.13 "
        "model.save('folder')), and name the folder here"
    )


def _knows(library: Any, activation: str) -> bool:
    try:
        library.activations.get(activation)
    except ValueError:
        return False
    return True


def _holds_lambda(part: Any) -> bool:
    """Whether there is a Lambda anywhere in an architecture, within a TimeDistributed too."""
    if isinstance(part, dict):
        name = part.get("class_name")
        return (isinstance(name, str) and name.split(">")[-1] == "Lambda") or any(map(_holds_lambda, part.values()))
    return isinstance(part, list) and any(map(_holds_lambda, part))


def _all_layers(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and settings of each layer, of models within the model too."""
    inner = config["config"]
    for layer in inner.get("layers", ()) if isinstance(inner, dict) else inner:
        if "layers" in layer["config"] or isinstance(layer["config"], list):
            yield from _all_layers(layer)
        else:
            yield layer["class_name"], layer["config"]


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
    """The first lines of what may be a page, without the colours that Keras gives it."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
