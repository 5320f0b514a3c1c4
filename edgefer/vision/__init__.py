"""From pictures to detections, embeddings and emotions, through int8 TFLite models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgefer.errors import ModelError
from edgefer.messages import ModelNames
from edgefer.settings import Settings
from edgefer.vision.card import ModelCard
from edgefer.vision.detector import Detector
from edgefer.vision.embedder import Embedder
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import Model, find_model


@dataclass(frozen=True, slots=True)
class Vision:
    """The models, loaded; identity and emotion are None where they are off."""

    detector: Detector
    embedder: Embedder | None
    emotion: EmotionReader | None

    @property
    def names(self) -> ModelNames:
        """Name and version of each model."""
        return ModelNames(
            detector=_name(self.detector.model.card),
            embedding=_name(self.embedder.model.card) if self.embedder else None,
            emotion=_name(self.emotion.model.card) if self.emotion else None,
        )


def _name(card: ModelCard) -> str:
    return f"{card.name} {card.version}".strip()


def load_vision(settings: Settings, default_detector: str) -> Vision:
    """Load the models that the settings name; ModelError says what is wrong with one."""
    wanted, identity, emotion, threads = settings.detector, settings.identity, settings.emotion, settings.threads
    with _named("EDGEFER_DETECTOR__MODEL"):
        model = Model(find_model(wanted.model or default_detector), "detector", threads)
        detector = Detector(model, wanted.min_score, wanted.min_face_px)
    embedder = load_embedder(settings) if identity.enabled else None
    with _named("EDGEFER_EMOTION__MODEL"):
        reader = EmotionReader(Model(find_model(emotion.model), "emotion", threads)) if emotion.enabled else None
    return Vision(detector, embedder, reader)


def load_embedder(settings: Settings) -> Embedder:
    """Load the embedding model that the settings name; ModelError says what is wrong with it."""
    with _named("EDGEFER_IDENTITY__MODEL"):
        return Embedder(Model(find_model(settings.identity.model), "embedding", settings.threads))


@contextmanager
def _named(variable: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{variable}: {error}") from error
