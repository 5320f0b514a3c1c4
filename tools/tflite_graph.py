"""A .tflite to look into and to change: its operators, its constants, and what it computes on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_quantizer.utils import tfl_flatbuffer_utils
from keras_models import Floats, quiet
from numpy.typing import NDArray

from edgefer.vision.preprocess import as_levels

Op = schema.BuiltinOperator
CHANNEL_AXIS = {Op.CONV_2D: 0, Op.DEPTHWISE_CONV_2D: -1, Op.FULLY_CONNECTED: 0}
"""Of operators that take values, a kernel and a bias: the kernel's axis of the channels that they write."""


class Graph:
    """The main graph of a .tflite: its operators, and the tensors that they take and write, by number."""

    def __init__(self, content: bytes) -> None:
        self._model = tfl_flatbuffer_utils.read_model(content)
        graph = self._model.subgraphs[0]
        self.operators, self.tensors = graph.operators, graph.tensors
        self.outputs = [*map(int, graph.outputs)]

    def kind(self, operator: Any) -> int:
        """Which operator it is, as a number of Op."""
        return int(self._model.operatorCodes[operator.opcodeIndex].builtinCode)

    def weighted(self) -> list[Any]:
        """The operators that have a constant kernel."""
        return [
            operator
            for operator in self.operators
            if self.kind(operator) in CHANNEL_AXIS and self.constant(operator.inputs[1]) is not None
        ]

    def weights(self, operator: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Such an operator's kernel, and its bias, which is 0 where it has none."""
        kernel = self.constant(operator.inputs[1])
        bias = self.constant(operator.inputs[2]) if len(operator.inputs) > 2 else None
        assert kernel is not None
        return kernel, np.zeros(self.tensors[operator.outputs[0]].shape[-1], np.float32) if bias is None else bias

    def constant(self, index: int) -> NDArray[Any] | None:
        """A constant's values; None where it is computed, or left out (-1)."""
        if index < 0:
            return None
        values: NDArray[Any] | None = tfl_flatbuffer_utils.get_tensor_data(self.tensors[index], self._model.buffers)
        return values

    def give(self, operator: Any, place: int, values: NDArray[Any]) -> None:
        """Give an operator other values of a constant, or a bias; others that have the constant too keep theirs."""
        operator.inputs = [*map(int, operator.inputs)]
        if operator.inputs[place:] in ([], [-1]):
            kernel = self.tensors[operator.inputs[1]]
            operator.inputs[place:] = [self.add(kernel.name, kernel.type, values)]
            return
        index = operator.inputs[place]
        former = self.tensors[index]
        users = sum(index in one.inputs for one in self.operators)
        if users == sum(tensor.buffer == former.buffer for tensor in self.tensors) == 1:
            self._model.buffers[former.buffer].data = _as_bytes(values)
            return
        operator.inputs[place] = self.add(former.name, former.type, values)
        self.tensors[operator.inputs[place]].quantization = former.quantization

    def add(self, name: bytes, kind: int, values: NDArray[Any]) -> int:
        """The number of a new constant, whose name begins with a given one."""
        tensor = schema.TensorT()
        tensor.name, tensor.type = name + b"/%d" % len(self.tensors), kind
        self.tensors.append(tensor)
        self.hold(len(self.tensors) - 1, values)
        return len(self.tensors) - 1

    def hold(self, index: int, values: NDArray[Any]) -> None:
        """Make a tensor a constant: one that nothing writes must be, or the quantizer stumbles."""
        buffer = schema.BufferT()
        buffer.data = _as_bytes(values)
        self._model.buffers.append(buffer)
        tensor = self.tensors[index]
        tensor.buffer, tensor.shape, tensor.shapeSignature = len(self._model.buffers) - 1, [*values.shape], None

    def change(self, operator: Any, kind: int, options: Any) -> None:
        """Make an operator another one; `options` are those of its kind (`AddOptionsT()`)."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        self._model.operatorCodes.append(code)
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        name = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, name), options

    def until(self, operator: Any) -> bytes:
        """The .tflite cut off after an operator, whose first output it gives."""
        (graph,), signatures = self._model.subgraphs, self._model.signatureDefs
        outputs = graph.outputs
        graph.operators = self.operators[: self.operators.index(operator) + 1]
        graph.outputs, self._model.signatureDefs = [operator.outputs[0]], None
        try:
            return self.content()
        finally:
            graph.operators, graph.outputs, self._model.signatureDefs = self.operators, outputs, signatures

    def content(self) -> bytes:
        """The .tflite."""
        return bytes(tfl_flatbuffer_utils.flatbuffer_utils.convert_object_to_bytearray(self._model))


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


class Runner:
    """Runs a .tflite on floats, of whatever type it takes and gives.

    `highest` is the largest value that its input has in use: a quantised one takes floats as the daemon rounds them.
    With `every_tensor` it tells what was computed on the way, too: more slowly, for XNNPACK keeps that to itself.
    """

    def __init__(self, content: bytes, *, highest: float = 0.0, every_tensor: bool = False) -> None:
        self._highest = highest
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if every_tensor else OpResolverType.AUTO
        with quiet():
            self.interpreter: Any = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_op_resolver_type=kernels,
                experimental_preserve_all_tensors=every_tensor,
            )
            self.interpreter.allocate_tensors()
        (self._taken,), self._given = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self._steps = {one["index"]: one["quantization"] for one in self.interpreter.get_tensor_details()}
        self.numbers = {one["name"]: one["index"] for one in self.interpreter.get_tensor_details()}
        """The tensors' numbers by their names."""

    def __call__(self, sample: Floats) -> list[Floats]:
        """The outputs for a sample, which has no axis for the batch, and neither have they."""
        (scale, zero), kind = self._taken["quantization"], self._taken["dtype"]
        if scale:
            sample = as_levels(sample, np.dtype(kind), scale, zero, self._highest)
        self.interpreter.set_tensor(self._taken["index"], sample[None].astype(kind))
        self.interpreter.invoke()
        return [self.value(output["index"])[0] for output in self._given]

    def value(self, number: int) -> Floats:
        """What a tensor held in the last run."""
        scale, zero = self._steps[number]
        values = self.interpreter.get_tensor(number)
        return np.asarray((values.astype(np.float32) - zero) * scale if scale else values, np.float32)


def run(content: bytes, samples: list[Floats], highest: float = 0.0) -> list[Floats]:
    """The outputs of a .tflite for samples, each n x ..."""
    runner = Runner(content, highest=highest)
    return [np.stack(values) for values in zip(*map(runner, samples), strict=True)]
