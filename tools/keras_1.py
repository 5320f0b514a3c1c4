"""A network of Keras 1, built anew: no later Keras reads its layers' settings.

What people built for faces is known: convolutions (dilated and separable ones too), pooling, dense layers, batch
normalisation, activations, and branches that are added, multiplied, averaged or concatenated. A network with channels
first, as Theano had them, is built with channels last, which is what a .tflite takes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError

Config = dict[str, Any]
OLD_SETTINGS = frozenset({"nb_filter", "output_dim", "border_mode", "dim_ordering", "p", "init", "input_dtype"})
"""What later versions call otherwise."""
ACTIVATIONS = frozenset({"linear", "relu", "elu", "softmax", "softplus", "softsign", "sigmoid", "tanh"})
"""Those that still are what they were; hard_sigmoid isn't."""
MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate"}
TRAINING_ONLY = frozenset({"Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "ActivityRegularization"})
LAST = {0: 0, 1: 3, 2: 1, 3: 2, -1: 2, -2: 1, -3: 3}
"""Where an axis of (picture, channel, row, column) is once the channels are last."""


class _UnknownError(Exception):
    """A layer without a counterpart; its text tells why."""


def is_keras_1(config: Config, version: str | None) -> bool:
    """Whether Keras 1 wrote this architecture; not all of its files tell a version."""
    if version:
        return version.startswith("1.")
    return any(OLD_SETTINGS & layer["config"].keys() for layer in _layers(config) if isinstance(layer["config"], dict))


def rebuild(path: Path, config: Config, weights: Path, keras: Any) -> Any:
    """The network of an architecture by Keras 1, with its weights (.h5); InputError names what has no counterpart."""
    inner, layers = config["config"], _layers(config)
    first = any(layer["config"].get("dim_ordering") == "th" for layer in layers if isinstance(layer["config"], dict))
    ends = inner["output_layers"] if isinstance(inner, dict) else [[_name(layers[-1])]]
    tensors: dict[str, Any] = {}
    built = []
    previous = ""
    for layer in layers:
        name, kind = _name(layer), layer["class_name"]
        try:
            settings = _settings(layer)
            nodes = layer.get("inbound_nodes", [[[previous]]] if tensors else [])
            if not nodes:
                tensors["input of " + name] = _input(settings, first, keras)
                nodes = [[["input of " + name]]]
            sources = [tensors[source] for source, *_ in _only(nodes)]
            steps = _steps(kind, settings, first, len(sources[0].shape), keras.layers)
        except _UnknownError as error:
            raise InputError(
                f"{path}: Keras 1's {kind} layer {name!r} {error}: build the network anew in today's Keras, load these "
                "weights into it layer by layer, and save that"
            ) from error
        tensors[name] = sources[0] if len(sources) == 1 else sources
        for step in steps:
            tensors[name] = step(tensors[name])
        built += [step for step in steps if step.weights]
        previous = name
    images = [tensor for name, tensor in tensors.items() if name.startswith("input of ")]
    model = keras.Model(images, [tensors[name] for name, *_ in ends])
    _fill(built, _stored(weights), weights, first)
    return model


def _layers(config: Config) -> list[Config]:
    inner = config["config"]
    return list(inner["layers"] if isinstance(inner, dict) else inner)


def _name(layer: Config) -> str:
    config = layer["config"]
    return str(layer.get("name") or (config["name"] if isinstance(config, dict) else "of no name"))


def _settings(layer: Config) -> Config:
    settings: Config = layer["config"]
    if not isinstance(settings, dict):
        raise _UnknownError("is a network of its own")
    return settings


def _only(nodes: list[list[Any]]) -> list[Any]:
    if len(nodes) != 1:
        raise _UnknownError("is used more than once")
    return nodes[0]


def _input(settings: Config, first: bool, keras: Any) -> Any:
    if "batch_input_shape" not in settings:
        raise _UnknownError("comes first, and tells no shape of the input")
    shape = settings["batch_input_shape"][1:]
    return keras.Input([*shape[1:], shape[0]] if first and len(shape) == 3 else shape)


def _steps(kind: str, settings: Config, first: bool, rank: int, layers: Any) -> list[Any]:
    """The layers, applied one after another, that do what one of Keras 1 did to a tensor of `rank` dimensions."""
    padding = settings.get("border_mode", "valid")
    strides = settings.get("subsample") or settings.get("strides") or settings.get("pool_size")
    kernel = settings.get("nb_row"), settings.get("nb_col")
    activation = settings.get("activation", "linear")
    if activation not in ACTIVATIONS:
        raise _UnknownError(f"has the activation {activation!r}, which is unknown or has changed")
    if first and padding == "same" and (strides not in (None, [1, 1]) or 0 in {size % 2 for size in kernel if size}):
        raise _UnknownError("pads as only Theano did")
    dense = {"activation": activation, "use_bias": settings.get("bias", True)}
    convolution = dense | {"padding": padding, "strides": strides}
    axis = LAST if first and rank == 4 else {number: number for number in range(-rank, rank)}
    match kind:
        case "InputLayer":
            return []
        case "Convolution2D" | "AtrousConvolution2D":
            rate = settings.get("atrous_rate", [1, 1])
            return [layers.Conv2D(settings["nb_filter"], kernel, dilation_rate=rate, **convolution)]
        case "SeparableConvolution2D" if not first:
            multiplier = settings.get("depth_multiplier", 1)
            return [layers.SeparableConv2D(settings["nb_filter"], kernel, depth_multiplier=multiplier, **convolution)]
        case "MaxPooling2D" | "AveragePooling2D":
            return [getattr(layers, kind)(settings["pool_size"], strides, padding)]
        case "GlobalMaxPooling2D" | "GlobalAveragePooling2D":
            return [getattr(layers, kind)()]
        case "Dense":
            return [layers.Dense(settings["output_dim"], **dense)]
        case "BatchNormalization" if settings.get("mode", 0) == 0:
            return [layers.BatchNormalization(axis[settings.get("axis", -1)], epsilon=settings["epsilon"])]
        case "BatchNormalization":
            raise _UnknownError(f"has the mode {settings['mode']}, which normalises by the batch that it meets")
        case "Activation":
            return [layers.Activation(activation)]
        case "ELU":
            return [layers.ELU(settings["alpha"])]
        case "LeakyReLU":
            return [layers.LeakyReLU(settings["alpha"])]
        case "PReLU" if not first:
            return [layers.PReLU(shared_axes=settings.get("shared_axes"))]
        case "ZeroPadding2D" if len(pads := settings["padding"]) == 2:
            return [layers.ZeroPadding2D(pads)]
        case "UpSampling2D":
            return [layers.UpSampling2D(settings["size"])]
        case "Flatten":
            return [layers.Permute((3, 1, 2))] * (first and rank == 4) + [layers.Flatten()]
        case "Reshape" if not first:
            return [layers.Reshape(settings["target_shape"])]
        case "Permute" if not first:
            return [layers.Permute(settings["dims"])]
        case "Merge" if str(settings.get("mode")) in MERGES and not settings.get("layers"):
            place = {"axis": axis[settings["concat_axis"]]} if settings["mode"] == "concat" else {}
            return [getattr(layers, MERGES[settings["mode"]])(**place)]
    if kind in TRAINING_ONLY:
        return []
    raise _UnknownError("has no counterpart that edgefer knows")


def _stored(path: Path) -> list[tuple[str, list[NDArray[np.float32]]]]:
    """The layers that have weights, in order."""
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise InputError(f"{path}: holds no weights as Keras 1 kept them")
        groups = [(os.fsdecode(name), root[name]) for name in root.attrs["layer_names"]]
        return [
            (name, [np.asarray(group[weight]) for weight in group.attrs["weight_names"]])
            for name, group in groups
            if len(group.attrs["weight_names"])
        ]


def _fill(built: list[Any], stored: list[tuple[str, list[NDArray[np.float32]]]], path: Path, first: bool) -> None:
    """Give each layer its weights, by order as Keras 1 did."""
    if len(built) != len(stored):
        raise InputError(f"{path}: holds weights of {len(stored)} layers, and the architecture has {len(built)}")
    for layer, (name, values) in zip(built, stored, strict=True):
        if first and values[0].ndim == 4:
            # Theano kept (filters, channels, rows, columns), and convolved where others correlate.
            values[0] = values[0].transpose(2, 3, 1, 0)[::-1, ::-1]
        wanted, given = ([tuple(array.shape) for array in arrays] for arrays in (layer.weights, values))
        if wanted != given:
            raise InputError(f"{path}: the weights of {name!r} are {given}, and the architecture asks for {wanted}")
        layer.set_weights(values)
