"""A float .tflite at other precisions: int8, float16 weights, or dynamic range (int8 weights, float activations)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe, recipe_manager
from ai_edge_quantizer.utils import tfl_flatbuffer_utils
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from keras_models import ConversionError, Floats, quiet

Io = Literal["int8", "uint8", "float32"]
Ranges = dict[str, Any]
"""The quantizer's smallest and largest value of each tensor."""
ALL = qtyping.TFLOperationName.ALL_SUPPORTED
LIGHT = frozenset(
    {"ELU", "LEAKY_RELU", "PRELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TILE", "L2_NORMALIZATION", "SQUARE", "EXP"}
    | {"LOG", "NEG", "MINIMUM", "CAST"}
)
"""Operators that ai-edge-quantizer has no int8 for, and that cost little in float: they have no weights."""
PASSING = frozenset({"RESHAPE", "MAX_POOL_2D", "PAD", "TRANSPOSE", "STRIDED_SLICE", "QUANTIZE", "DEQUANTIZE"})
"""Operators that hand values on as they are: in float they would mend nothing."""
SHARES = np.linspace(0.3, 1, 29).tolist()
"""Of a tensor's smallest and largest value: where its range may end."""
TURNS = 3
"""So often each end is chosen anew beside the other."""
CHANNEL_AXIS = {
    schema.BuiltinOperator.CONV_2D: 0,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: -1,
    schema.BuiltinOperator.FULLY_CONNECTED: 0,
}
"""Along which axis of its kernel an operator's channels lie."""
MOST_STEPS = 2**28
"""What a bias may count in steps of its input times its weights: an eighth of 32 bits, for ranges are narrowed yet."""
_ERRORS = (ValueError, RuntimeError, KeyError)
"""What the quantizer raises where it can't go on."""
SEEN = 2000
"""Values of a tensor that each sample is judged by, at most."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator of a float .tflite. Its scope is the names of what it writes: how the quantizer calls it."""

    operator: str
    scope: str
    has_int8: bool

    @property
    def name(self) -> str:
        """The end of its first name, which is what its author called it."""
        return "/".join(self.scope.split(";")[0].split("/")[-3:])


def layers_of(floats: bytes) -> list[Layer]:
    """The operators that compute with floats, in order."""
    model = tfl_flatbuffer_utils.read_model(floats)
    names = {code: name for name, code in vars(qtyping.BuiltinOperator).items() if isinstance(code, int)}
    plan = recipe_manager.RecipeManager()
    plan.load_quantization_recipe(recipe.static_wi8_ai8())
    layers = []
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if graph.tensors[operator.outputs[0]].type != qtyping.TensorType.FLOAT32:
            continue
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        scope = tfl_flatbuffer_utils.get_op_scope(operator, graph.tensors)
        known = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(code)
        planned = known and plan.get_quantization_configs(known, scope)[0]
        has_int8 = planned not in {None, algorithm_manager.AlgorithmName.NO_QUANTIZE}
        layers.append(Layer(names[code], scope, has_int8))
    return layers


def loops(floats: bytes) -> list[str]:
    """The operators that run other graphs, as a recurrent layer does: the quantizer doesn't follow them."""
    model = tfl_flatbuffer_utils.read_model(floats)
    names = {schema.BuiltinOperator.WHILE: "WHILE", schema.BuiltinOperator.IF: "IF"}
    codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in model.subgraphs[0].operators]
    return [names[code] for code in codes if code in names]


def without_tiles(floats: bytes) -> bytes:
    """The same model, its tensors repeated along one axis, as upsampling does, joined to themselves instead.

    TILE has no int8 in the quantizer, nor a place in XNNPACK, and would cut the model in pieces with floats between
    them; CONCATENATION gives the same values, and has both.
    """
    model = tfl_flatbuffer_utils.read_model(floats)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode != schema.BuiltinOperator.TILE:
                continue
            tensor, times = operator.inputs
            counts = tfl_flatbuffer_utils.get_tensor_data(graph.tensors[times], model.buffers)
            if counts is None or (counts != 1).sum() != 1:  # found out as it runs, or along several axes
                continue
            axis = int((counts != 1).argmax())
            options = schema.ConcatenationOptionsT()
            options.axis = axis
            operator.opcodeIndex = _code(model, schema.BuiltinOperator.CONCATENATION)
            operator.inputs = [tensor] * int(counts[axis])
            operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.ConcatenationOptions, options
    return bytes(tfl_flatbuffer_utils.flatbuffer_utils.convert_object_to_bytearray(model))


def normalised_at_once(floats: bytes) -> bytes:
    """The same model, its batch normalisations that follow an activation one operator each instead of two.

    What can't be folded into a convolution is MUL and ADD, each rounded to a range that all channels share, and the
    offset as well. A depthwise convolution of 1x1 has a scale for each channel, and is rounded once.
    """
    model = tfl_flatbuffer_utils.read_model(floats)
    for graph in model.subgraphs:
        codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in graph.operators]
        scaling, adding = (
            [operator for operator, code in zip(graph.operators, codes, strict=True) if code == wanted]
            for wanted in (schema.BuiltinOperator.MUL, schema.BuiltinOperator.ADD)
        )
        users = [index for operator in graph.operators for index in operator.inputs] + list(graph.outputs)
        for operator in scaling:
            (written,) = operator.outputs
            after = [add for add in adding if written in add.inputs]
            if len(after) != 1 or users.count(written) != 1 or operator.builtinOptions.fusedActivationFunction:
                continue
            scales, offsets = (_for_each_channel(model, graph, one) for one in (operator, after[0]))
            if scales and offsets:
                _scale_and_offset(model, graph, operator, after[0], scales, offsets[1])
                graph.operators.remove(after[0])
    return bytes(tfl_flatbuffer_utils.flatbuffer_utils.convert_object_to_bytearray(model))


def _for_each_channel(model: Any, graph: Any, operator: Any) -> tuple[int, Floats] | None:
    """Which tensor an operator takes, and a constant of its for each of its channels; None where that isn't so."""
    for taken, told in (operator.inputs, operator.inputs[::-1]):
        values = tfl_flatbuffer_utils.get_tensor_data(graph.tensors[told], model.buffers)
        shape = graph.tensors[taken].shape
        if values is not None and len(shape) == 4 and values.size == values.shape[-1] == shape[-1]:
            return taken, values.reshape(-1)
    return None


def _scale_and_offset(
    model: Any, graph: Any, scaling: Any, adding: Any, scales: tuple[int, Floats], offsets: Floats
) -> None:
    """Make a MUL a depthwise convolution that writes what the ADD after it wrote."""
    kernel, bias = graph.tensors[scaling.outputs[0]], schema.TensorT()  # what is multiplied isn't computed any more
    bias.name, bias.type = kernel.name + b"/offsets", kernel.type
    graph.tensors.append(bias)
    for tensor, values in ((kernel, scales[1].reshape(1, 1, 1, -1)), (bias, offsets)):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer, tensor.shape, tensor.shapeSignature = len(model.buffers) - 1, list(values.shape), None
    options = schema.DepthwiseConv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideW = options.strideH = options.depthMultiplier = 1
    options.dilationWFactor = options.dilationHFactor = 1
    options.fusedActivationFunction = adding.builtinOptions.fusedActivationFunction
    scaling.opcodeIndex = _code(model, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
    scaling.builtinOptionsType, scaling.builtinOptions = schema.BuiltinOptions.DepthwiseConv2DOptions, options
    scaling.inputs, scaling.outputs = [scales[0], scaling.outputs[0], len(graph.tensors) - 1], adding.outputs


def _code(model: Any, builtin: int) -> int:
    """The number of a new operator code."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def holding_biases(floats: bytes, ranges: Ranges) -> bytes:
    """The same model, but for channels whose weights have died away: one is raised, until int8 can hold their bias.

    A bias is counted in steps of its input times those of its channel's weights. Beside weights of 1e-11, as training
    leaves them where nothing varies, 32 bits don't reach it, and the quantizer writes 0. Within the input's range
    the raised weight adds at most an eight-thousandth of the bias.
    """
    model = tfl_flatbuffer_utils.read_model(floats)
    graph = model.subgraphs[0]
    for operator in graph.operators:
        axis = CHANNEL_AXIS.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        if axis is None or len(operator.inputs) < 3 or operator.inputs[2] < 0:
            continue
        taken, kept, added = (graph.tensors[index] for index in operator.inputs)
        kernel, bias = (tfl_flatbuffer_utils.get_tensor_data(tensor, model.buffers) for tensor in (kept, added))
        reach = ranges.get(taken.name.decode(), {"min": None})
        if kernel is None or bias is None or reach["min"] is None:
            continue
        step = (max(float(reach["max"].max()), 0.0) - min(float(reach["min"].min()), 0.0)) / 255
        if not step:  # nothing ever comes in
            continue
        least = np.abs(bias) / MOST_STEPS / step * 127
        raised = kernel.copy()
        channels = np.moveaxis(raised, axis, 0)  # a view
        dead = np.abs(channels).reshape(len(bias), -1).max(1) < least
        channels[(dead, *[0] * (kernel.ndim - 1))] = least[dead]
        model.buffers[kept.buffer].data = np.frombuffer(raised.tobytes(), np.uint8)
    return bytes(tfl_flatbuffer_utils.flatbuffer_utils.convert_object_to_bytearray(model))


class Int8:
    """Writes a float .tflite as int8, per channel: its input takes the range given, its activations what samples reach.

    `samples` are what the model takes, each height x width x channels. Rare extremes are clipped where that costs less
    than the coarser steps that they ask for, and the whole model gains by it.
    """

    def __init__(self, floats: bytes, samples: list[Floats], input_range: tuple[float, float]) -> None:
        key, name, tensor = _input_names(floats)
        plan = recipe_manager.RecipeManager()
        plan.load_quantization_recipe(recipe.static_wi8_ai8())
        try:
            with quiet():
                # Its default averages each picture's extremes: on the emotion model that clipped what is rare, and
                # lost 25 dB.
                calibration = calibrator.Calibrator(floats, num_threads=1, qsv_update_func=min_max_update)
                calibration.calibrate({key: [{name: sample[None]} for sample in samples]}, plan)
        except _ERRORS as error:
            raise _refused(error) from error
        self._ranges = calibration.get_model_qsvs()
        for end, value in (("min", min(input_range)), ("max", max(input_range))):
            self._ranges[tensor][end] = np.full_like(self._ranges[tensor][end], value)
        self._floats = floats = holding_biases(floats, self._ranges)
        whole, clipped = self._ranges, clip(floats, self._ranges, samples, {tensor})
        expected = run(floats, samples)
        noises = []
        for ranges in (whole, clipped):
            self._ranges = ranges
            given = run(self.write("float32"), samples)
            noises.append(
                max(float(((a - b) ** 2).mean() / (a**2).mean()) for a, b in zip(expected, given, strict=True))
            )
        self._ranges = clipped if noises[1] < noises[0] else whole

    def write(self, io: Io, floating: tuple[Layer, ...] = ()) -> bytes:
        """The int8 .tflite, with some layers left in float."""
        work = quantizer.Quantizer(self._floats, recipe.static_wi8_ai8())
        for layer in floating:
            work.update_quantization_recipe(_only(layer), ALL, algorithm_key="no_quantize")
        if io == "int8":
            return self._quantised(work)
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        content = self._quantised(work)
        if io == "float32":
            return content
        try:
            return _with_uint8(content)
        except ValueError as error:
            raise ConversionError(
                "its first or last layer stays in float: --io int8 and --io float32 leave that end as it is"
            ) from error

    def write_alone(self, layer: Layer) -> bytes:
        """The model with this layer in int8 and all else in float: what it loses shows."""
        work = quantizer.Quantizer(self._floats)
        work.add_static_config(_only(layer), ALL, activation_num_bits=8, weight_num_bits=8)
        return self._quantised(work)

    def _quantised(self, work: Any) -> bytes:
        try:
            with quiet():
                return bytes(work.quantize(self._ranges).quantized_model)
        except _ERRORS as error:
            raise _refused(error) from error


def _refused(error: Exception) -> ConversionError:
    return ConversionError(f"the model can't be written as int8: {error}; --precision float16 or dynamic may do")


def clip(floats: bytes, ranges: Ranges, samples: list[Floats], fixed: set[str]) -> Ranges:
    """The ranges of activations, narrowed to where clipping and rounding together cost least; `fixed` ones stay.

    The cost is the mean squared error; of what a softmax takes, that of its probabilities: a score far below the best
    says nothing, and needn't be told from one that is still lower.
    """
    interpreter = _interpreter(floats, every_tensor=True)
    details = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
    names = [name for name in ranges if name in details.keys() - fixed and np.size(ranges[name].get("min")) == 1]
    seen: dict[str, list[Floats]] = {name: [] for name in names if ranges[name]["min"] is not None}
    scores = _softmax_inputs(floats)
    rng = np.random.default_rng(0)
    for sample in samples:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        for name in list(seen):
            try:
                values = interpreter.get_tensor(details[name])
            except ValueError:  # what a delegate keeps to itself
                del seen[name]
                continue
            # Scores stay together: a softmax compares each with the others of its row.
            some = values.reshape(-1, values.shape[-1] if name in scores else 1)
            if name not in scores or some.size > SEEN:
                some = rng.choice(some, min(max(1, SEEN // some.shape[1]), len(some)), replace=False)
            seen[name].append(some)
    narrowed = dict(ranges)
    for name, parts in seen.items():
        values = np.concatenate(parts)
        low, high = (float(np.asarray(ranges[name][end]).item()) for end in ("min", "max"))
        best = best_range(values, low, high, softmax=name in scores)
        narrowed[name] = ranges[name] | {
            end: np.full_like(ranges[name][end], value) for end, value in zip(("min", "max"), best, strict=True)
        }
    return narrowed


def _softmax_inputs(floats: bytes) -> set[str]:
    """The names of the scores that a softmax turns into probabilities."""
    model = tfl_flatbuffer_utils.read_model(floats)
    graph = model.subgraphs[0]
    return {
        graph.tensors[operator.inputs[0]].name.decode()
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.SOFTMAX
    }


def best_range(values: Floats, low: float, high: float, *, softmax: bool) -> tuple[float, float]:
    """The ends at which values, or the probabilities that a softmax makes of them, have the least squared error."""
    told = _softmax if softmax else np.asarray
    expected, low, high = told(values), min(low, 0.0), max(high, 0.0)

    def lost(below: float, above: float) -> float:
        return float(((told(_rounded(values, below * low, above * high)) - expected) ** 2).mean())

    below = above = min(SHARES, key=lambda share: lost(share, share))
    for _ in range(TURNS):
        below = min(SHARES, key=lambda share: lost(share, above))
        above = min(SHARES, key=lambda share: lost(below, share))
    return below * low, above * high


def _rounded(values: Floats, low: float, high: float) -> Floats:
    step = max((high - low) / 255, 1e-12)
    return (np.clip(np.round((values - low) / step), 0, 255) * step + low).astype(np.float32)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def run(content: bytes, samples: list[Floats]) -> list[Floats]:
    """The outputs of a .tflite that takes and gives floats, each n x ..."""
    interpreter = _interpreter(content)
    (image,), outputs = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for sample in samples:
        interpreter.set_tensor(image["index"], sample[None])
        interpreter.invoke()
        results.append([interpreter.get_tensor(output["index"])[0] for output in outputs])
    return [np.stack(values) for values in zip(*results, strict=True)]


def _interpreter(content: bytes, *, every_tensor: bool = False) -> Any:
    with quiet():
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=every_tensor)
        interpreter.allocate_tensors()
    return interpreter


def float16(floats: bytes) -> bytes:
    """Weights of 16 bits, computed with in float32: half the size."""
    work = quantizer.Quantizer(floats)
    for operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED"):
        name = qtyping.TFLOperationName(operator)
        work.add_weight_only_config(".*", name, num_bits=16, algorithm_key="float_casting")
    with quiet():
        return bytes(work.quantize().quantized_model)


def dynamic(floats: bytes) -> bytes:
    """Convolutions' weights of 8 bits, a scale a channel; all else in float: near a quarter of the size.

    Dense layers stay as they are: tflite-runtime 2.14 takes such ones of 8 bits, and computes nonsense.
    """
    work = quantizer.Quantizer(floats)
    for operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE"):
        work.add_dynamic_config(".*", qtyping.TFLOperationName(operator), num_bits=8)
    with quiet():
        return bytes(work.quantize().quantized_model)


def _only(layer: Layer) -> str:
    return f"^{re.escape(layer.scope)}$"


def _input_names(floats: bytes) -> tuple[str, str, str]:
    """The signature, and what its input is called there and in the graph."""
    interpreter = _interpreter(floats)
    ((key, signature),) = interpreter.get_signature_list().items()
    return key, signature["inputs"][0], interpreter.get_input_details()[0]["name"]


def _with_uint8(content: bytes) -> bytes:
    """An int8 model that takes and gives floats, made to take and give uint8."""
    import tensorflow  # noqa: PLC0415  # takes seconds
    from tensorflow.lite.python.util import modify_model_io_type  # noqa: PLC0415  # the same

    with quiet():
        return bytes(modify_model_io_type(content, tensorflow.uint8, tensorflow.uint8))
