"""A face as a unit vector: faces of one person point the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import ModelError
from edgefer.messages import Detection, Image
from edgefer.vision.model import Model
from edgefer.vision.preprocess import crop_face

Embedding = NDArray[np.float32]
"""A vector of length 1; the cosine of two is their product."""


class Embedder:
    """Turns faces into embeddings."""

    def __init__(self, model: Model) -> None:
        shapes = model.output_shapes
        if len(shapes) != 1 or len(shapes[0]) != 1:
            raise ModelError(f"{model.path}: an embedding model has one output of n values, this one has {shapes}")
        self.model = model
        self.size = shapes[0][0]

    def __call__(self, image: Image, face: Detection) -> Embedding:
        """The embedding of one face of a picture (BGR)."""
        return self.embed(self._aligned(image, face))

    def template(self, image: Image, face: Detection) -> Embedding:
        """What somebody is enrolled by from one face of a picture (BGR)."""
        return self.template_of(self._aligned(image, face))

    def embed(self, aligned: Image) -> Embedding:
        """The embedding of a face that is aligned and of the model's size already."""
        (vector,) = self.model(aligned)
        return units(vector)

    def template_of(self, aligned: Image) -> Embedding:
        """The mean of an aligned face's embedding and its mirror's: other pictures of a person are nearer to it."""
        return units(self.embed(aligned) + self.embed(np.ascontiguousarray(aligned[:, ::-1])))

    def _aligned(self, image: Image, face: Detection) -> Image:
        card = self.model.card
        assert card.crop is not None  # read_card saw to it
        return crop_face(image, face, card.crop, card.input.width, card.input.height)


def units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (... x size) of the same directions, of length 1."""
    found: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-9))
    return found
