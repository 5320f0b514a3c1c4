"""The optimiser of the convolutional networks that get only a few thousand steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
from keras import ops

FEWEST_INPUTS, FEWEST_OUTPUTS = 4, 16
"""A first convolution sees 3 channels, a depthwise one has one output for each, and a head few: Adam is for those."""


def is_for_muon(shape: Sequence[int]) -> bool:
    """Whether Muon is for a kernel of this shape; Adam is for all else."""
    return len(shape) == 4 and shape[2] >= FEWEST_INPUTS and shape[3] >= FEWEST_OUTPUTS


@keras.saving.register_keras_serializable("edgefer")
class Muon(keras.optimizers.Muon):  # type: ignore[misc]  # Keras has no types
    """Muon for convolutions too, Adam for what is left; Keras's own turns to Adam for all but matrices.

    A step is the momentum's nearest orthogonal matrix (Jordan and others, 2024), here of a kernel laid out as inputs x
    outputs: with so few steps to spend, it learns about half as much again in each as AdamW does.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return not is_for_muon(variable.shape)

    def _muon_update_step(self, gradient: Any, variable: Any, rate: Any, momentum: Any) -> None:
        self.assign_add(momentum, gradient + momentum * (self.momentum - 1))
        ahead = ops.reshape(gradient + self.momentum * momentum, (-1, variable.shape[-1]))
        step = self.lr_adjust(rate * self.zeropower_via_newtonschulz5(ahead, self.ns_steps))
        self.assign_sub(variable, ops.reshape(step, variable.shape))
