"""Former networks to go on from: a model.keras, or several, or the .tflite of one: what ships is a checkpoint too.

A .tflite holds each batch normalisation folded into the convolution before it. Unfolded, by what pictures make of it,
it answers the same and learns as it did: gammas and betas are what they were, up to what int8 has lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from muon import is_for_muon
from numpy.typing import NDArray

from edgefer.errors import InputError

Floats = NDArray[np.float32]

ADDED = "added"
"""The name scope of layers that change nothing at first, and which a former network may lack."""
KINDS: dict[int, Any] = {
    schema.BuiltinOperator.CONV_2D: layers.Conv2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: layers.DepthwiseConv2D,
    schema.BuiltinOperator.FULLY_CONNECTED: layers.Dense,
}
TYPES = {schema.TensorType.INT8: "<i1", schema.TensorType.INT32: "<i4", schema.TensorType.FLOAT32: "<f4"}
LEAST_ALIKE = 0.98
"""Correlation of the answers; int8 alone costs a hundredth at most."""
MUONS_SIZE, ADAMS_SIZE = 0.34, 0.16
"""Root mean square of trained kernels of either optimiser, in all three of our networks. Muon's steps don't scale with
the kernel: one a tenth as large, as kernels begin, they would turn ten times as far, and forget what it knew."""
PICTURES = 64
"""So many tell what there is to unfold."""


def go_on_from(path: Path, model: keras.Model, pictures: Floats) -> None:
    """Give a network the weights of a former one, or of one with fewer channels or layers, which it answers alike.

    Of a model.keras whose answers have another name, it takes all but the last layer: what knows faces. The channels
    that it has more of keep their random weights, but nothing listens to them yet; its layers in the scope ADDED keep
    theirs. `pictures` are n x height x width x channels, as the network takes them. InputError where the former is no
    such network.
    """
    if not path.is_file():
        raise InputError(
            f"--start: {path} isn't there; a model.keras of an earlier run is wanted, or the .tflite that it became"
        )
    try:
        fits = _unfold(path, model, pictures[:PICTURES]) if path.suffix == ".tflite" else _take_over(path, model)
    except Exception as error:  # Keras and flatbuffers raise what they like
        raise InputError(f"--start: {path}: can't be read as a model.keras or an int8 or float32 .tflite") from error
    if not fits:
        raise InputError(f"--start: {path} is another network than the one to train")


def size_taken(path: Path) -> tuple[int, int] | None:
    """The height and width of the pictures that a .tflite takes; None where it tells none, or is another file."""
    try:
        _, height, width, _ = Interpreter(str(path)).get_input_details()[0]["shape"].tolist()
    except (ValueError, RuntimeError, IndexError):
        return None
    return height, width


def go_on_from_mean(paths: Sequence[Path], model: keras.Model, pictures: Floats) -> None:
    """Give a network the mean of the weights of former ones: of runs that began alike it is often better than each."""
    if len(paths) > 1 and any(path.suffix == ".tflite" for path in paths):
        raise InputError("--start: a .tflite stands alone, for its kernels are scaled otherwise; name its model.keras")
    begun, runs = model.get_weights(), []
    for path in paths:
        model.set_weights(begun)  # a narrower model, or one with fewer layers, doesn't set them all
        go_on_from(path, model, pictures)
        runs.append(model.get_weights())
    model.set_weights([np.mean(weights, 0) for weights in zip(*runs, strict=True)])


def _take_over(path: Path, model: keras.Model) -> bool:
    """The weights of a model.keras; False where it is another network."""
    whole = keras.models.load_model(path, compile=False)
    former, variables = whole.get_weights(), model.weights
    if whole.output_names != model.output_names:
        last = len(model.layers[-1].weights)
        return bool(last) and _take_body(former, variables[:-last])
    if len(former) < len(variables):
        variables = [variable for variable in variables if not _is_added(variable)]
    sizes = [variable.shape for variable in variables]
    answers = [[output.shape[-1] for output in network.outputs] for network in (whole, model)]
    if answers[0] != answers[1] or len(former) != len(sizes):
        return False
    if any(
        len(given.shape) != len(size) or any(np.greater(given.shape, size))
        for given, size in zip(former, sizes, strict=True)
    ):
        return False
    for variable, given in zip(variables, former, strict=True):
        weights = keras.ops.convert_to_numpy(variable)
        variable.assign(_within(weights, given, mixes="depthwise" not in variable.path))
    return True


def _take_body(former: list[Floats], variables: list[Any]) -> bool:
    """The weights that networks for different things share; False where these aren't alike."""
    for body in (variables, [variable for variable in variables if not _is_added(variable)]):
        pairs = list(zip(body, former, strict=False))
        if len(pairs) == len(body) and all(variable.shape == given.shape for variable, given in pairs):
            for variable, given in pairs:
                variable.assign(given)
            return True
    return False


def _is_added(variable: Any) -> bool:
    return ADDED in variable.path.split("/")


def _within(weights: Floats, given: Floats, *, mixes: bool) -> Floats:
    """Weights, as many or more, that begin with the given ones; to none of these the other channels add anything.

    `mixes` tells whether channels mix: those of a depthwise kernel don't.
    """
    weights = weights.copy()  # JAX's can't be written to
    if weights.ndim > 1 and mixes:
        weights[..., given.shape[-2] :, : given.shape[-1]] = 0
    weights[tuple(slice(length) for length in given.shape)] = given
    return weights


# What a .tflite holds.


@dataclass(frozen=True, slots=True)
class Folded:
    """A layer of a .tflite: its kernel as Keras has it, its bias, and the height and width that it writes."""

    kind: type
    kernel: Floats
    bias: Floats
    size: tuple[int, ...]


def _unfold(path: Path, model: keras.Model, pictures: Floats) -> bool:
    """The weights of a .tflite; False where it is another network's."""
    given = _read(path)
    weighted: list[Any] = [layer for layer in model.layers if isinstance(layer, tuple(KINDS.values()))]
    if len(given) < len(weighted):
        weighted = [layer for layer in weighted if not _is_added(layer.kernel)]
    folded = _in_order(given, weighted)
    norms = {layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)}
    if folded is None or norms - {_norm_after(layer) for layer in model.layers}:
        return False
    parts = list(zip(weighted, folded, map(_norm_after, weighted), strict=True))
    for layer, one, norm in parts:
        kernel, *bias = layer.get_weights()
        kernel = _within(kernel, one.kernel, mixes=one.kind is not layers.DepthwiseConv2D)
        layer.set_weights([kernel, *(_within(own, one.bias, mixes=False) for own in bias)])
        if norm is not None:  # it does nothing yet but to add the bias
            beta = _within(np.zeros(norm.beta.shape, np.float32), one.bias, mixes=False)
            norm.set_weights([np.ones_like(beta), beta, np.zeros_like(beta), np.full_like(beta, 1 - norm.epsilon)])
    if not _alike(path, model, pictures) >= LEAST_ALIKE:  # nor where it is no number
        return False
    normed = [(layer, norm, len(one.bias)) for layer, one, norm in parts if norm is not None]
    written = keras.Model(model.inputs, [layer.output for layer, _, _ in normed]).predict(pictures, verbose=0)
    for (layer, norm, old), values in zip(normed, written, strict=True):
        _part(layer, norm, old, values)
    return True


def _part(layer: Any, norm: Any, old: int, values: Floats) -> None:
    """Part a kernel and the normalisation after it, in its old channels: the one as large as training leaves it."""
    kernel, gamma, beta = (np.array(weights) for weights in (*layer.get_weights(), *norm.get_weights()[:2]))
    mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    by_channel = np.moveaxis(kernel, 2 if depthwise else 3, -1)
    size = MUONS_SIZE if is_for_muon(kernel.shape) else ADAMS_SIZE
    scale = np.ones_like(mean)
    scale[:old] = size / np.sqrt(np.maximum(np.square(by_channel[..., :old]).mean((0, 1, 2)), 1e-12))
    by_channel *= scale
    beta[:old] += mean[:old]
    gamma[:old] = np.sqrt(variance[:old] + norm.epsilon / np.square(scale[:old]))
    layer.set_weights([kernel])
    norm.set_weights([gamma, beta, mean * scale, variance * np.square(scale)])


def _norm_after(layer: Any) -> Any:
    """The batch normalisation that is folded into a layer: its output, without a bias, goes there; or None."""
    if type(layer) not in KINDS.values() or layer.use_bias:
        return None
    nodes = layer._outbound_nodes  # noqa: SLF001  # Keras has no other way to ask
    norm = nodes[0].operation if nodes else None
    return norm if isinstance(norm, layers.BatchNormalization) else None


def _read(path: Path) -> list[Folded]:
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]

    def values(index: int) -> Floats:
        tensor = graph.tensors[index]
        buffer = model.buffers[tensor.buffer]
        held = content[buffer.offset : buffer.offset + buffer.size] if buffer.data is None else bytes(buffer.data)
        kept = np.frombuffer(held, TYPES[tensor.type]).reshape(tensor.shape)
        scale = np.ones(1) if tensor.type == schema.TensorType.FLOAT32 else np.array(tensor.quantization.scale)
        across = [1] * kept.ndim
        across[tensor.quantization.quantizedDimension if len(scale) > 1 else 0] = len(scale)
        return np.asarray(kept * scale.reshape(across), np.float32)

    folded = []
    for operator in graph.operators:
        kind = KINDS.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        if kind is not None:
            # TFLite's order: out x height x width x in, 1 x height x width x channels, out x in.
            kernel = np.moveaxis(values(operator.inputs[1]), 0, -1)
            channels = kernel.shape[2 if kind is layers.DepthwiseConv2D else -1]
            bias = np.zeros(channels, np.float32) if operator.inputs[2] < 0 else values(operator.inputs[2])
            shape = graph.tensors[operator.outputs[0]].shape
            folded.append(Folded(kind, kernel, bias, tuple(map(int, shape[1:-1]))))
    return folded


def _in_order(given: Sequence[Folded], weighted: Sequence[Any]) -> list[Folded] | None:
    """The .tflite's layers in the network's order; None where they don't match.

    The converter keeps the order of what follows each other only. Side by side, layers are told apart by their shapes
    and by the size of what they write; among more channels, by their kernels' height and width instead.
    """
    shapes = [(one.kind.__name__, one.size, one.kernel.shape) for one in given]
    wanted = [(type(layer).__name__, layer.output.shape[1:-1], tuple(layer.kernel.shape)) for layer in weighted]
    if sorted(shapes) != sorted(wanted):
        shapes, wanted = ([(kind, size, shape[:-2]) for kind, size, shape in keys] for keys in (shapes, wanted))
    if sorted(shapes) != sorted(wanted):
        return None
    alike = defaultdict(list)
    for key, one in zip(shapes, given, strict=True):
        alike[key].append(one)
    found = [alike[key].pop(0) for key in wanted]
    fits = (
        np.less_equal(one.kernel.shape, layer.kernel.shape).all() for one, layer in zip(found, weighted, strict=True)
    )
    return found if all(fits) else None


def _alike(path: Path, model: keras.Model, pictures: Floats) -> float:
    """The correlation of a .tflite's and a network's answers, of the output that has the least."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (taken,), outputs = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), kind = taken["quantization"], taken["dtype"]
    told = []
    for picture in pictures:
        x = np.clip(np.round(picture / scale + zero), np.iinfo(kind).min, np.iinfo(kind).max) if scale else picture
        interpreter.set_tensor(taken["index"], x[None].astype(kind))
        interpreter.invoke()
        told.append([interpreter.get_tensor(output["index"]).ravel().astype(np.float32) for output in outputs])
    answers = model.predict(pictures, verbose=0)
    by_size = {answer[0].size: answer.ravel() for answer in (answers if isinstance(answers, list) else [answers])}
    each = [np.stack(values) for values in zip(*told, strict=True)]
    if {one.shape[1] for one in each} != {*by_size}:
        return 0.0
    return min(float(np.corrcoef(by_size[one.shape[1]], one.ravel())[0, 1]) for one in each)
