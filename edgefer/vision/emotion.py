"""The emotion on a face, as a probability for each of the model's labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import ModelError
from edgefer.messages import Detection, Image
from edgefer.vision.model import Model
from edgefer.vision.preprocess import crop_face

Probabilities = NDArray[np.float32]
"""One value a label, in the card's order, that sum to 1."""


class EmotionReader:
    """Reads the emotion of faces."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.labels = model.card.labels
        self.min_confidence = model.card.thresholds.get("min_confidence", 0.4)
        if model.output_shapes != [(len(self.labels),)]:
            raise ModelError(
                f"{model.path}: the card names {len(self.labels)} labels, the model gives {model.output_shapes}"
            )

    def __call__(self, image: Image, face: Detection) -> Probabilities:
        """The probabilities for one face of a picture (BGR)."""
        card = self.model.card
        assert card.crop is not None  # read_card saw to it
        return self.read(crop_face(image, face, card.crop, card.input.width, card.input.height))

    def read(self, crop: Image) -> Probabilities:
        """The probabilities for a crop of the model's size (BGR or gray)."""
        (probabilities,) = self.model(crop)
        # The model ends in a softmax; its logarithm is the logits, up to a constant that the next softmax cancels.
        logits = np.log(np.maximum(probabilities, 1e-4)) / self.model.card.temperature
        powers: Probabilities = np.exp(logits - logits.max())
        softened: Probabilities = powers / powers.sum()
        return softened
