"""Batch normalisation as the one operator that PyTorch has for it, instead of the dozen that Keras makes of it.

On a CPU those take longer than the convolutions. Answers, gradients and moving statistics are Keras's own.
"""

from __future__ import annotations

from typing import Any

import backend  # noqa: F401  # before Keras
import keras
from keras import layers, ops


def use_fast_norm() -> None:
    """Let every BatchNormalization over the last axis take PyTorch's operator, where PyTorch is the backend."""
    if keras.backend.backend() == "torch":
        layers.BatchNormalization.call = _call


_slow_call = layers.BatchNormalization.call


def _call(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    plain = mask is None and self.center and self.scale and self.axis in {-1, inputs.ndim - 1}
    lone = inputs.shape[0] == 1 and inputs.ndim == 2  # of one value there is no variance, says PyTorch
    if not plain or lone or self.synchronized or self.renorm:
        return _slow_call(self, inputs, training=training, mask=mask)
    from torch import zeros_like  # noqa: PLC0415  # only where it is the backend
    from torch.nn.functional import batch_norm  # noqa: PLC0415

    mean, variance = self.moving_mean.value, self.moving_variance.value
    learn = bool(training and self.trainable)
    if learn:  # PyTorch writes what it finds into these
        mean, variance = zeros_like(mean), zeros_like(variance)
    x = ops.moveaxis(ops.cast(inputs, self.compute_dtype), -1, 1)
    x = batch_norm(x, mean, variance, self.gamma.value, self.beta.value, learn, 1.0, self.epsilon)
    if learn:
        count = x.numel() / x.shape[1]
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance * ((count - 1) / count))):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
    return ops.moveaxis(x, 1, -1)
