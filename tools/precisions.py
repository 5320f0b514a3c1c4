"""A float .tflite at other precisions: int8, float16 weights, or dynamic range (int8 weights, float activations)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe, recipe_manager
from ai_edge_quantizer.utils import tfl_flatbuffer_utils
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from float_rewrites import Ranges, holding_biases
from keras_models import ConversionError, Floats, quiet
from tflite_graph import Graph, Op, Runner, run

Io = Literal["int8", "uint8", "float32"]
ALL = qtyping.TFLOperationName.ALL_SUPPORTED
LIGHT = frozenset(
    {"ELU", "LEAKY_RELU", "PRELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TILE", "L2_NORMALIZATION", "SQUARE", "EXP"}
    | {"LOG", "NEG", "MINIMUM", "REDUCE_MAX", "CAST"}
)
"""Operators that ai-edge-quantizer has no int8 for, and that cost little in float: they have no weights."""
PASSING = frozenset({"RESHAPE", "MAX_POOL_2D", "PAD", "TRANSPOSE", "STRIDED_SLICE", "QUANTIZE", "DEQUANTIZE"})
"""Operators that hand values on as they are: in float they would mend nothing."""
SHARES = np.linspace(0.3, 1, 29).tolist()
"""Of a tensor's smallest and largest value: where its range may end."""
TURNS = 3
"""So often each end is chosen anew beside the other."""
_ERRORS = (ValueError, RuntimeError, KeyError)
"""What the quantizer raises where it can't go on."""
MEANS = 64
"""Samples that biases are corrected by: each costs a run for each layer."""
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
    names = {code: name for name, code in vars(qtyping.BuiltinOperator).items() if isinstance(code, int)}
    plan = recipe_manager.RecipeManager()
    plan.load_quantization_recipe(recipe.static_wi8_ai8())
    layers = []
    graph = Graph(floats)
    for operator in graph.operators:
        if graph.tensors[operator.outputs[0]].type != qtyping.TensorType.FLOAT32:
            continue
        code = graph.kind(operator)
        scope = tfl_flatbuffer_utils.get_op_scope(operator, graph.tensors)
        known = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(code)
        planned = known and plan.get_quantization_configs(known, scope)[0]
        has_int8 = planned not in {None, algorithm_manager.AlgorithmName.NO_QUANTIZE}
        layers.append(Layer(names[code], scope, has_int8))
    return layers


def loops(floats: bytes) -> list[str]:
    """The operators that run other graphs, as a recurrent layer does: the quantizer doesn't follow them."""
    graph = Graph(floats)
    names = {Op.WHILE: "WHILE", Op.IF: "IF"}
    return [names[graph.kind(operator)] for operator in graph.operators if graph.kind(operator) in names]


class Int8:
    """Writes a float .tflite as int8, per channel: its input takes the range given, its activations what samples reach.

    `samples` are what the model takes, each height x width x channels. Rare extremes are clipped where that costs less
    than the coarser steps that they ask for, and biases make up for what rounding adds on average; each where the whole
    model gains by it. `noise` is what is left: the squared error of `expected` outputs, as a share of their squares.
    """

    def __init__(
        self, floats: bytes, samples: list[Floats], input_range: tuple[float, float], expected: list[Floats]
    ) -> None:
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
        self._floats = holding_biases(floats, self._ranges)
        self._samples, self._expected, self._highest = samples, expected, max(input_range)
        whole, clipped = self._ranges, clip(self._floats, self._ranges, samples, {tensor})
        noises = []
        for self._ranges in (whole, clipped):
            noises.append(self._noise(self._quantised(self._work("int8"))))
        self._ranges = clipped if noises[1] < noises[0] else whole
        self._all_int8 = self._corrected("int8")
        self.noise = self._noise(self._all_int8)

    def write(self, io: Io, floating: tuple[Layer, ...] = ()) -> bytes:
        """The int8 .tflite, with some layers left in float."""
        content = self._corrected(io, floating) if floating or io != "int8" else self._all_int8
        if io != "uint8":
            return content
        try:
            return _with_uint8(content)
        except ValueError as error:
            raise ConversionError(
                "nothing is left in int8 that could take or give uint8: fewer --float-layers, or --io float32"
            ) from error

    def _corrected(self, io: Io, floating: tuple[Layer, ...] = ()) -> bytes:
        content = self._quantised(self._work(io, floating))
        return min(content, unbiased(content, self._floats, self._samples[:MEANS], self._highest), key=self._noise)

    def _work(self, io: Io, floating: tuple[Layer, ...] = ()) -> Any:
        work = quantizer.Quantizer(self._floats, recipe.static_wi8_ai8())
        for layer in floating:
            work.update_quantization_recipe(_only(layer), ALL, algorithm_key="no_quantize")
        if io != "int8":
            for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        return work

    def _noise(self, content: bytes) -> float:
        return max(
            float(((a - b) ** 2).mean() / max((a**2).mean(), 1e-12))
            for a, b in zip(self._expected, run(content, self._samples, self._highest), strict=True)
        )

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
    runner = Runner(floats, every_tensor=True)
    names = [name for name in ranges if name in runner.numbers.keys() - fixed and np.size(ranges[name].get("min")) == 1]
    seen: dict[str, list[Floats]] = {name: [] for name in names if ranges[name]["min"] is not None}
    scores = _softmax_inputs(floats)
    rng = np.random.default_rng(0)
    for sample in samples:
        runner(sample)
        for name, parts in seen.items():
            values = runner.value(runner.numbers[name])
            # Scores stay together: a softmax compares each with the others of its row.
            some = values.reshape(-1, values.shape[-1] if name in scores else 1)
            if name not in scores or some.size > SEEN:
                some = rng.choice(some, min(max(1, SEEN // some.shape[1]), len(some)), replace=False)
            parts.append(some)
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
    graph = Graph(floats)
    scores = [operator.inputs[0] for operator in graph.operators if graph.kind(operator) == Op.SOFTMAX]
    return {graph.tensors[index].name.decode() for index in scores}


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


def unbiased(content: bytes, floats: bytes, samples: list[Floats], highest: float) -> bytes:
    """An int8 .tflite, its biases less what rounding adds to each channel on average ("bias correction": Nagel et al.).

    From the first layer to the last, so that each makes up for what those before it have left, too. `highest` is the
    largest value that samples may have.
    """
    graph, original = Graph(content), Graph(floats)
    pairs = [
        (operator, int(like.outputs[0]))
        for operator, like in zip(graph.weighted(), original.weighted(), strict=True)
        if graph.weights(operator)[1].dtype == np.int32  # neither left in float nor without a bias
    ]
    # What is clipped was found to cost less than it gains; moving all else to make up for it would cost more.
    ends = {like: _ends(graph.tensors[operator.outputs[0]]) for operator, like in pairs}
    expected = _means(Runner(floats, every_tensor=True), samples, ends)
    for operator, like in pairs:
        runner = Runner(graph.until(operator), highest=highest)
        (mean,) = _means(runner, samples, {int(operator.outputs[0]): (-np.inf, np.inf)}).values()
        _, bias = graph.weights(operator)
        step = graph.tensors[operator.inputs[2]].quantization.scale
        moved = bias + np.round((expected[like] - mean) / step)
        graph.give(operator, 2, np.clip(moved, -(2**30), 2**30).astype(np.int32))
    return graph.content()


def _ends(tensor: Any) -> tuple[float, float]:
    """The least and the largest value that an int8 tensor can hold."""
    (step,), (zero,) = tensor.quantization.scale, tensor.quantization.zeroPoint
    return (-128 - zero) * step, (127 - zero) * step


def _means(runner: Runner, samples: list[Floats], ends: dict[int, tuple[float, float]]) -> dict[int, Floats]:
    """The mean of each channel of some tensors over all samples, with each value within the tensor's ends."""
    means: dict[int, list[Floats]] = {tensor: [] for tensor in ends}
    for sample in samples:
        runner(sample)
        for tensor, (low, high) in ends.items():
            values = runner.value(tensor)
            means[tensor].append(values.clip(low, high).reshape(-1, values.shape[-1]).mean(0))
    return {tensor: np.mean(each, 0) for tensor, each in means.items()}


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
    interpreter = Runner(floats).interpreter
    ((key, signature),) = interpreter.get_signature_list().items()
    return key, signature["inputs"][0], interpreter.get_input_details()[0]["name"]


def _with_uint8(content: bytes) -> bytes:
    """An int8 model that takes and gives floats, made to take and give uint8."""
    import tensorflow  # noqa: PLC0415  # takes seconds
    from tensorflow.lite.python.util import modify_model_io_type  # noqa: PLC0415  # the same

    with quiet():
        return bytes(modify_model_io_type(content, tensorflow.uint8, tensorflow.uint8))
