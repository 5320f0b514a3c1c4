"""A float .tflite that answers the same, from operators, channels and weights that int8 loses less of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from keras_models import Floats
from tflite_graph import CHANNEL_AXIS, Graph, Op, Runner

Ranges = dict[str, Any]
"""The quantizer's smallest and largest value of each tensor."""
MOST_STEPS = 2**28
"""What a bias may count in steps of its input times its weights: an eighth of 32 bits, for ranges are narrowed yet."""
MOVING = frozenset({Op.MAX_POOL_2D, Op.AVERAGE_POOL_2D, Op.MEAN, Op.RESHAPE})
"""Operators that leave channels apart, and give one that was scaled, or moved, scaled or moved by as much."""
SCALING = MOVING | {Op.RELU, Op.LEAKY_RELU, Op.PRELU, Op.PAD}
"""Those that do so for what was scaled, by more than nothing."""
AVERAGING = frozenset({Op.AVERAGE_POOL_2D, Op.MEAN})
"""Rounding before these counts for little."""
NONE = schema.ActivationFunctionType.NONE
STRAIGHT = frozenset({NONE, schema.ActivationFunctionType.RELU})
POWERS = (0, 0.25, 0.5, 0.75, 1)
"""Of what channels are scaled by."""
LEAST = 0.01
"""Of the widest channel, and of the largest weight: as what smaller ones are scaled."""


def without_tiles(floats: bytes) -> bytes:
    """The same model, its tensors repeated along one axis, as upsampling does, joined to themselves instead.

    TILE has no int8 in the quantizer, nor a place in XNNPACK, and would cut the model in pieces with floats between
    them; CONCATENATION gives the same values, and has both (the latter up to five times).
    """
    graph = Graph(floats)
    for operator in graph.operators:
        if graph.kind(operator) != Op.TILE:
            continue
        tensor, times = operator.inputs
        counts = graph.constant(times)
        if counts is None or (counts != 1).sum() != 1:  # found out as it runs, or along several axes
            continue
        axis = int((counts != 1).argmax())
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        graph.change(operator, Op.CONCATENATION, options)
        operator.inputs = [tensor] * int(counts[axis])
    return graph.content()


def normalised_at_once(floats: bytes) -> bytes:
    """The same model, its batch normalisations that follow an activation one operator each instead of two.

    What can't be folded into a convolution is MUL and ADD, each rounded to a range that all channels share, and the
    offset as well. A depthwise convolution of 1x1 has a scale for each channel, and is rounded once.
    """
    graph = Graph(floats)
    adding = [operator for operator in graph.operators if graph.kind(operator) == Op.ADD]
    uses = _uses(graph)
    for operator in [operator for operator in graph.operators if graph.kind(operator) == Op.MUL]:
        (written,) = operator.outputs
        after = [add for add in adding if written in add.inputs]
        if len(after) != 1 or uses[written] != 1 or operator.builtinOptions.fusedActivationFunction:
            continue
        scales, offsets = (_for_each_channel(graph, one) for one in (operator, after[0]))
        if not scales or not offsets:
            continue
        former = graph.tensors[written]
        graph.hold(int(written), scales[1].reshape(1, 1, 1, -1))  # the kernel
        options = schema.DepthwiseConv2DOptionsT()
        options.padding = schema.Padding.VALID
        options.strideW = options.strideH = options.depthMultiplier = 1
        options.dilationWFactor = options.dilationHFactor = 1
        options.fusedActivationFunction = after[0].builtinOptions.fusedActivationFunction
        graph.change(operator, Op.DEPTHWISE_CONV_2D, options)
        operator.inputs = [scales[0], written, graph.add(former.name, former.type, offsets[1])]
        operator.outputs = after[0].outputs
        graph.operators.remove(after[0])
    return graph.content()


def _uses(graph: Graph) -> Counter[int]:
    """How often each tensor is taken, by an operator or as an output."""
    return Counter([*(int(index) for operator in graph.operators for index in operator.inputs), *graph.outputs])


def _for_each_channel(graph: Graph, operator: Any) -> tuple[int, Floats] | None:
    """Which tensor an operator takes, and a constant of its for each of its channels; None where that isn't so."""
    for taken, told in (operator.inputs, operator.inputs[::-1]):
        values, shape = graph.constant(told), graph.tensors[taken].shape
        if values is not None and len(shape) == 4 and values.shape[-1:] == (values.size,) == (shape[-1],):
            return taken, values.reshape(-1)
    return None


def holding_biases(floats: bytes, ranges: Ranges) -> bytes:
    """The same model, but for channels whose weights have died away: one is raised, until int8 can hold their bias.

    A bias is counted in steps of its input times those of its channel's weights. Beside weights of 1e-11, as training
    leaves them where nothing varies, 32 bits don't reach it, and the quantizer writes 0. Within the input's range
    the raised weight adds at most an eight-thousandth of the bias.
    """
    graph = Graph(floats)
    for operator in graph.weighted():
        reach = ranges.get(graph.tensors[operator.inputs[0]].name.decode(), {"min": None})
        if reach["min"] is None:
            continue
        step = (max(float(reach["max"].max()), 0.0) - min(float(reach["min"].min()), 0.0)) / 255
        if not step:  # nothing ever comes in
            continue
        kernel, bias = graph.weights(operator)
        least = np.abs(bias) / MOST_STEPS / step * 127
        raised = kernel.copy()
        channels = np.moveaxis(raised, CHANNEL_AXIS[graph.kind(operator)], 0)  # a view
        dead = np.abs(channels).reshape(len(bias), -1).max(1) < least
        if dead.any():
            channels[(dead, *[0] * (kernel.ndim - 1))] = least[dead]
            graph.give(operator, 1, raised)
    return graph.content()


# Channels made alike


@dataclass(frozen=True, slots=True)
class Link:
    """Two layers with nothing between them but what leaves channels apart.

    `tensors` are what lies between and is rounded there, from the last average on; `moves` tells whether a channel may
    be moved, and not only scaled.
    """

    giving: Any
    taking: Any
    channels: int
    tensors: tuple[int, ...]
    moves: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """What each channel of a tensor reaches: its least, largest and mean value, and the mean of its squares."""

    low: Floats
    high: Floats
    mean: Floats
    square: Floats

    def moved(self, by: Floats) -> Reach:
        """The same channels, less something each."""
        square = np.maximum(self.square - by * (2 * self.mean - by), 0)
        return Reach(self.low - by, self.high - by, self.mean - by, square)


def equalised(floats: bytes, samples: Sequence[Floats]) -> bytes:
    """The same model, its channels scaled and moved from layer to layer to where int8 is to lose least.

    All channels of an activation share one step: beside a wide one a narrow one is lost. The next layer's weights can
    take up how wide a channel is, and its bias where the channel's middle lies ("cross-layer equalisation" and "bias
    absorption": Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
    `samples` are what the model takes, each height x width x channels.
    """
    graph = Graph(floats)
    links = _links(graph)
    reaches = _reaches(floats, samples, {tensor: link.channels for link in links for tensor in link.tensors})
    for link in links:
        _equalise(graph, link, [reaches[tensor] for tensor in link.tensors])
    return graph.content()


def _links(graph: Graph) -> list[Link]:
    uses = _uses(graph)
    takers = {int(tensor): operator for operator in graph.operators for tensor in operator.inputs}
    weighted = graph.weighted()
    links = []
    for giving in weighted:
        tensor = int(giving.outputs[0])
        channels = int(graph.tensors[tensor].shape[-1])
        tensors: tuple[int, ...] = (tensor,)
        bends = giving.builtinOptions.fusedActivationFunction
        moves = bends == NONE
        while bends in STRAIGHT and uses[tensor] == 1 and tensor in takers:
            operator = takers[tensor]
            if any(operator is one for one in weighted):
                if _takes(graph, operator, tensor, channels):
                    links.append(Link(giving, operator, channels, tensors, moves and _sees_no_edge(graph, operator)))
                break
            if graph.kind(operator) not in SCALING or not _leaves_apart(graph, operator, channels):
                break
            bends = getattr(operator.builtinOptions, "fusedActivationFunction", NONE)
            moves = moves and graph.kind(operator) in MOVING and bends == NONE
            tensor = int(operator.outputs[0])
            tensors = (tensor,) if graph.kind(operator) in AVERAGING else (*tensors, tensor)
    return links


def _takes(graph: Graph, operator: Any, tensor: int, channels: int) -> bool:
    """Whether an operator's kernel has all channels: no grouped one's, nor that of each of channels put together."""
    if graph.kind(operator) == Op.DEPTHWISE_CONV_2D:
        return bool(graph.tensors[tensor].shape[-1] == channels)
    return bool(graph.tensors[operator.inputs[1]].shape[-1] % channels == 0)


def _leaves_apart(graph: Graph, operator: Any, channels: int) -> bool:
    """Whether what an operator writes has the same channels, once or for each place, the place counted first."""
    taken, written = (graph.tensors[index].shape for index in (operator.inputs[0], operator.outputs[0]))
    if graph.kind(operator) == Op.RESHAPE:
        return bool(written[-1] % channels == 0)
    if graph.kind(operator) == Op.MEAN:
        axes = graph.constant(operator.inputs[1])
        return axes is not None and not np.isin(len(taken) - 1, axes % len(taken))
    return bool(written[-1] == taken[-1])


def _sees_no_edge(graph: Graph, operator: Any) -> bool:
    """Whether an operator takes its input alone: the zeros beyond an edge don't move with it."""
    return bool(
        graph.kind(operator) == Op.FULLY_CONNECTED
        or operator.builtinOptions.padding == schema.Padding.VALID
        or max(graph.tensors[operator.inputs[1]].shape[1:3]) == 1
    )


def _reaches(floats: bytes, samples: Sequence[Floats], channels: dict[int, int]) -> dict[int, Reach]:
    """What tensors reach over all samples; `channels` tells how many each has."""
    runner = Runner(floats, every_tensor=True)
    seen: dict[int, list[Reach]] = {tensor: [] for tensor in channels}
    for sample in samples:
        runner(sample)
        for tensor, number in channels.items():
            values = runner.value(tensor).reshape(-1, number)
            seen[tensor].append(Reach(values.min(0), values.max(0), values.mean(0), np.square(values).mean(0)))
    return {
        tensor: Reach(
            np.min([one.low for one in each], 0),
            np.max([one.high for one in each], 0),
            np.mean([one.mean for one in each], 0),
            np.mean([one.square for one in each], 0),
        )
        for tensor, each in seen.items()
    }


def _equalise(graph: Graph, link: Link, reaches: Sequence[Reach]) -> None:
    """Divide each channel between two layers by what rounding costs least with, after its middle is taken off."""
    middle = np.asarray((reaches[-1].low + reaches[-1].high) / 2 * link.moves, np.float32)
    kernel, bias = graph.weights(link.taking)
    times, depthwise = kernel.shape[-1] // link.channels, graph.kind(link.taking) == Op.DEPTHWISE_CONV_2D
    weights = kernel.reshape(-1, link.channels, times).swapaxes(1, 2) if depthwise else kernel
    weights = np.abs(weights.reshape(len(weights), -1, link.channels))
    scales = _scales(weights, [reach.moved(middle) for reach in reaches], shared=not depthwise)

    each = np.repeat if depthwise else np.tile
    axis = CHANNEL_AXIS[graph.kind(link.taking)]
    graph.give(link.taking, 1, kernel * each(scales, times))
    graph.give(link.taking, 2, bias + np.moveaxis(kernel * each(middle, times), axis, 0).reshape(len(bias), -1).sum(1))
    kernel, bias = graph.weights(link.giving)
    axis = CHANNEL_AXIS[graph.kind(link.giving)]
    graph.give(link.giving, 1, np.moveaxis(np.moveaxis(kernel, axis, -1) / scales, -1, axis))
    graph.give(link.giving, 2, (bias - middle) / scales)


def _scales(weights: Floats, reaches: Sequence[Reach], *, shared: bool) -> Floats:
    """What to divide each channel by, for the least noise from what is rounded between two layers.

    `weights` are the next layer's, without signs, outputs x places x channels (a depthwise one's places x outputs x
    channels); `shared` tells whether the channels share a step there, so that weights that are scaled cost something
    too. A channel's largest value and one over the largest weight that it meets are tried, each to each of POWERS.
    """
    widest = np.max([np.maximum(-one.low, one.high) for one in reaches], 0)
    heaviest = weights.max((0, 1))
    heaviest = np.maximum(heaviest, heaviest.max() * LEAST or 1)
    # What none of the samples wakes may still be woken, and reach as far as others do.
    widest = np.where(widest > 0, np.maximum(widest, widest.max() * LEAST), widest.max() or 1)

    def noise(scales: Floats) -> float:
        step = max(max((one.high / scales).max(), 0) - min((one.low / scales).min(), 0) for one in reaches) / 255
        scaled = weights * scales
        lost = step**2 * np.square(scaled).sum()
        if shared:
            steps = scaled.max((1, 2)) / 127
            lost += np.square(steps).sum() * weights.shape[1] * (reaches[-1].square / scales**2).sum()
        return float(lost)

    tried: list[Floats] = [widest**wide / heaviest**heavy for wide in POWERS for heavy in POWERS]
    scales = min(tried, key=noise)
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)
