"""Former networks to go on from: a model.keras, or several, or the .tflite of one: what ships is a checkpoint too.

A .tflite holds each batch normalisation folded into the convolution before it. Unfolded, by what pictures make of it,
it answers the same and learns as it did, up to what int8 has lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
ALIKE = "strides", "padding", "dilation_rate", "groups", "activation"
"""What two convolutions have in common of which one is to write a part of what the other does."""
PICTURES = 64
"""So many tell what there is to unfold, and along what to part."""


def go_on_from(paths: Sequence[Path], model: keras.Model, pictures: Floats) -> None:
    """Give a network the weights of a former one, or the mean of several: of runs that began alike often the better.

    The former may have fewer channels or layers: those that the network has more of keep their random weights, but
    nothing listens to them yet, or, in the scope ADDED, they change nothing. Of a model.keras whose answers have
    another name the network takes what it has of all but the last layer: what knows faces. Where it has two
    convolutions by way of fewer channels, they begin as the one that a model.keras has in their place, as far as they
    go. Several are to be of one network. `pictures` are n x height x width x channels, as the network takes them.
    InputError where the former is no such network.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"--start: {path} isn't there; a model.keras of an earlier run is wanted, or the .tflite that it became"
            )
    if len(paths) > 1 and any(path.suffix == ".tflite" for path in paths):
        raise InputError("--start: a .tflite stands alone, for its kernels are scaled otherwise; name its model.keras")
    pictures = pictures[:PICTURES]
    if paths[0].suffix == ".tflite":
        with _readable(paths[0]):
            fits = _unfold(paths[0], model, pictures)
    else:
        former = _mean(paths)
        with _readable(paths[0]):  # for a stranger's network
            fits = _take_over(former, model, pictures)
    if not fits:
        raise InputError(f"--start: {paths[0]} is another network than the one to train")


def size_taken(path: Path) -> tuple[int, int] | None:
    """The height and width of the pictures that a .tflite takes; None where it tells none, or is another file."""
    try:
        _, height, width, _ = Interpreter(str(path)).get_input_details()[0]["shape"].tolist()
    except (ValueError, RuntimeError, IndexError):
        return None
    return height, width


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """InputError where the file is none of those that are wanted."""
    try:
        yield
    except Exception as error:  # Keras and flatbuffers raise what they like
        raise InputError(f"--start: {path}: can't be read as a model.keras or an int8 or float32 .tflite") from error


def _mean(paths: Sequence[Path]) -> keras.Model:
    """The network of a model.keras, with the mean of the weights of several."""
    networks = []
    for path in paths:
        with _readable(path):
            networks.append(keras.models.load_model(path, compile=False))
    runs = [network.get_weights() for network in networks]
    for path, run in zip(paths, runs, strict=True):
        if [weights.shape for weights in run] != [weights.shape for weights in runs[0]]:
            raise InputError(f"--start: {path} is another network than {paths[0]}: these have no mean")
    networks[0].set_weights([np.mean(weights, 0) for weights in zip(*runs, strict=True)])
    return networks[0]


def _take_over(former: keras.Model, model: keras.Model, pictures: Floats) -> bool:
    """The weights of a former network, all of them or what the network has of it; False where it is another."""
    if getattr(former, "output_names", None) != model.output_names:  # a Sequential has none
        return _take_body(former, model)
    if [output.shape[-1] for output in former.outputs] != [output.shape[-1] for output in model.outputs]:
        return False
    return _take_into(former, model) or _take_parted(former, model, pictures)


def _take_into(former: keras.Model, model: keras.Model) -> bool:
    """The weights of a network that is alike, has fewer channels, or lacks layers of the scope ADDED."""
    given, variables = former.get_weights(), model.weights
    if len(given) < len(variables):
        variables = [variable for variable in variables if not _is_added(variable)]
    if len(given) != len(variables) or any(
        len(one.shape) != len(variable.shape) or any(np.greater(one.shape, variable.shape))
        for one, variable in zip(given, variables, strict=True)
    ):
        return False
    for variable, one in zip(variables, given, strict=True):
        weights = keras.ops.convert_to_numpy(variable)
        variable.assign(_within(weights, one, mixes="depthwise" not in variable.path))
    return True


def _take_body(former: keras.Model, model: keras.Model) -> bool:
    """The layers that networks for different things share: all but the last; False where these aren't alike.

    A stage of the former one may have more of them: those after the first ones of a shape are passed over.
    """
    theirs, own = _weighted(former), _weighted(model)
    given = [layer.get_weights() for layer in theirs]
    if _sees_half_as_large(theirs, own):
        given[:2] = _seeing_half_as_large(*given[:2])
    wanted = own[:-1]
    taken: list[list[Floats]] = []
    for weights in given:
        shapes = [one.shape for one in weights]
        if len(taken) < len(wanted) and shapes == _shapes(wanted[len(taken)]):
            taken.append(weights)
        elif shapes not in [[one.shape for one in kept] for kept in taken]:
            break
    if not taken or len(taken) < len(wanted):
        return False
    for layer, weights in zip(wanted, taken, strict=True):
        layer.set_weights(weights)
    return True


def _sees_half_as_large(theirs: Sequence[Any], own: Sequence[Any]) -> bool:
    """Whether a network of colour faces begins with steps of 2, and one of gray faces, alike but for that, of 1."""
    firsts = [*theirs[:1], *own[:1]]
    if [type(layer) for layer in firsts] != [layers.Conv2D] * 2 or _norm_after(theirs[0]) not in theirs[1:2]:
        return False
    asked = [(*layer.strides, *layer.kernel.shape[:3]) for layer in firsts]
    return asked == [(2, 2, 3, 3, 3), (1, 1, 3, 3, 1)] and len(theirs[1].weights) == 4


def _seeing_half_as_large(convolution: list[Floats], norm: list[Floats]) -> list[list[Floats]]:
    """The first layers of a network of faces (BGR, -1..1) with steps of 2, for gray ones half as large (0..1), of 1.

    They give what those make of a face that is enlarged bilinearly, but at the edge.
    """
    (kernel,), (gamma, beta, mean, variance) = convolution, norm
    kernel = kernel.sum(2)
    # Of three enlarged pixels (columns), how much is of the pixel before, of the same, and of the one after (rows).
    shares = np.array([[0.25, 0, 0], [0.75, 0.75, 0.25], [0, 0.25, 0.75]], np.float32)
    gray = 2 * np.einsum("ai,bj,ijo->abo", shares, shares, kernel)
    return [[gray[:, :, None]], [gamma, beta, mean + kernel.sum((0, 1)), variance]]


def _take_parted(former: keras.Model, model: keras.Model, pictures: Floats) -> bool:
    """The weights of a network that has one convolution where this one has two by way of fewer channels."""
    own = iter(_weighted(model))
    alike: list[tuple[Any, Any]] = []
    parted: list[tuple[Any, Any, Any]] = []
    for layer in _weighted(former):
        first = next(own, None)
        if first is not None and _shapes(first) == _shapes(layer):
            alike.append((layer, first))
            continue
        norm, second = next(own, None), next(own, None)
        if not _is_by_way(first, norm, second, layer):
            return False
        parted.append((layer, first, second))
    if next(own, None) is not None:
        return False
    for layer, same in alike:
        same.set_weights(layer.get_weights())
    for steps, values in zip(parted, _written(former, [layer for layer, _, _ in parted], pictures), strict=True):
        _part_in_two(*steps, values.reshape(-1, values.shape[-1]))
    _part_from_norms(model, [(layer, layer.filters) for _, *steps in parted for layer in steps], pictures)
    return True


def _weighted(network: keras.Model) -> list[Any]:
    return [layer for layer in network.layers if layer.weights]


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(weights.shape) for weights in layer.weights]


def _is_by_way(first: Any, norm: Any, second: Any, one: Any) -> bool:
    """Whether two convolutions, each with its normalisation, may stand for one."""
    if any(type(layer) is not layers.Conv2D or _norm_after(layer) is None for layer in (first, second, one)):
        return False
    narrow, wide = first.filters, one.filters
    return (
        norm is _norm_after(first)
        and narrow < wide
        and all(getattr(first, name) == getattr(one, name) for name in ALIKE)
        and _shapes(first) == [(*one.kernel.shape[:-1], narrow)]
        and _shapes(second) == [(1, 1, narrow, wide)]
    )


def _part_in_two(one: Any, first: Any, second: Any, written: Floats) -> None:
    """A convolution as two by way of fewer channels; their normalisation does nothing yet but to add.

    These are the directions along which what it has written (values x channels) varies most, as normalised.
    """
    (kernel,), norm = one.get_weights(), _norm_after(one)
    gamma, beta, mean, variance = norm.get_weights()
    factor = gamma / np.sqrt(variance + norm.epsilon)
    written = written * factor
    directions = np.linalg.eigh(np.cov(written.T))[1][:, -first.filters :]
    middle = written.mean(0)
    lost = middle - directions @ (directions.T @ middle)
    first.set_weights([kernel * factor @ directions])
    _only_add(_norm_after(first), np.zeros(first.filters, np.float32))
    second.set_weights([directions.T[None, None]])
    _only_add(_norm_after(second), beta - mean * factor + lost)


def _only_add(norm: Any, bias: Floats) -> None:
    norm.set_weights([np.ones_like(bias), bias, np.zeros_like(bias), np.full_like(bias, 1 - norm.epsilon)])


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
        if norm is not None:
            _only_add(norm, _within(np.zeros(norm.beta.shape, np.float32), one.bias, mixes=False))
    if not _alike(path, model, pictures) >= LEAST_ALIKE:  # nor where it is no number
        return False
    _part_from_norms(model, [(layer, len(one.bias)) for layer, one, norm in parts if norm is not None], pictures)
    return True


def _part_from_norms(model: keras.Model, folded: Sequence[tuple[Any, int]], pictures: Floats) -> None:
    """Part layers, each with so many old channels, from the normalisation after it, which does nothing but to add."""
    for (layer, old), values in zip(folded, _written(model, [layer for layer, _ in folded], pictures), strict=True):
        _part(layer, _norm_after(layer), old, values)


def _written(network: keras.Model, of: Sequence[Any], pictures: Floats) -> list[Floats]:
    """What layers make of pictures, each n x ..."""
    values = keras.Model(network.inputs, [layer.output for layer in of]).predict(pictures, verbose=0)
    return values if isinstance(values, list) else [values]


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
