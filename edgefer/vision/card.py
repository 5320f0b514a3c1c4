"""A model's card: the JSON beside a .tflite that says what goes in, what comes out and what it is good for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from edgefer.errors import ModelError
from edgefer.files import read_bounded

Task = Literal["detector", "embedding", "emotion"]
Colour = Literal["gray", "rgb", "bgr"]
Decoder = Literal["softmax", "unit-vector", "edgefer-centre", "blazeface", "yunet"]
Precision = Literal["int8", "float16", "dynamic", "float32"]
Shift = Annotated[float, Field(ge=-1, le=1)]
Text = Annotated[str, Field(max_length=64)]
"""Names, which may go into every event."""
Label = Annotated[Text, Field(min_length=1)]
MAX_CARD_BYTES = 2**20
"""Of a card's file; a long one has some kilobytes."""
_strict = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The picture that a model takes: its size in pixels, its colour, and what pixel values 0 and 255 become."""

    __pydantic_config__ = _strict
    width: Annotated[int, Field(gt=0, le=4096)]
    height: Annotated[int, Field(gt=0, le=4096)]
    colour: Colour
    range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Crop:
    """Where around a face the picture is taken.

    `box` takes an upright square around the middle of the detector's box, whose side is the longer side of the box;
    `points` aligns the five landmarks to the 112x112 template. Then the crop is made `scale` times as large, and its
    middle moves right and down by `shift`, in sides of the crop.
    """

    __pydantic_config__ = _strict
    source: Annotated[Literal["box", "points"], Field(alias="from")]
    scale: Annotated[float, Field(gt=0.1, lt=10)] = 1.0
    shift: tuple[Shift, Shift] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure: on which data, and at which precision of the model."""

    dataset: str
    split: str
    metric: str
    value: float
    precision: Precision


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What edgefer has to know to run a .tflite, and what a person has to know to trust it."""

    __pydantic_config__ = _strict
    schema: Literal["edgefer.model/1"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    task: Task
    decoder: Decoder
    input: ModelInput
    version: Text = ""
    crop: Crop | None = None
    labels: Annotated[tuple[Label, ...], Field(max_length=256)] = ()
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = field(default_factory=dict)
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    metrics: tuple[Metric, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    intended_use: str = ""
    limits: str = ""

    def to_json(self) -> str:
        """The card as it is stored, without what its task doesn't need."""
        return _adapter.dump_json(self, indent=2, by_alias=True, exclude_defaults=True).decode() + "\n"


_adapter = TypeAdapter(ModelCard)
_needs: dict[Task, tuple[str, ...]] = {"detector": (), "embedding": ("crop",), "emotion": ("crop", "labels")}
_thresholds: dict[Task, set[str]] = {
    "detector": {"min_score"},
    "embedding": {"match", "track", "margin"},
    "emotion": {"min_confidence"},
}
DECODERS: dict[Task, tuple[Decoder, ...]] = {
    "detector": ("edgefer-centre", "blazeface", "yunet"),
    "embedding": ("unit-vector",),
    "emotion": ("softmax",),
}
"""What each task's models may give; our own first."""


def read_card(path: Path) -> ModelCard:
    """The card in a file; ModelError names each field that is wrong."""
    try:
        text = read_bounded(path, MAX_CARD_BYTES)
    except OSError as error:
        raise ModelError(
            f"{path}: can't read the model's card: {error.strerror}; it lies beside the .tflite (docs/models.md)"
        ) from error
    try:
        card = _adapter.validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ModelError(f"{path}: not a valid model card: {problems}") from error
    check_card(card, path)
    return card


def check_card(card: ModelCard, path: Path) -> None:
    """ModelError where the fields of a card, to be found at a path, don't fit each other."""
    for name in _needs[card.task]:
        if not getattr(card, name):
            raise ModelError(f"{path}: the card of a model for {card.task} needs {name!r}")
    if twice := [label for number, label in enumerate(card.labels) if label in card.labels[:number]]:
        raise ModelError(f"{path}: labels: {twice[0]!r} stands there twice; each is one of the model's outputs")
    if card.input.range[0] == card.input.range[1]:
        raise ModelError(
            f"{path}: input.range: pixels 0 and 255 both become {card.input.range[0]:g}: the model would see nothing"
        )
    if unknown := sorted(set(card.thresholds) - _thresholds[card.task]):
        known = ", ".join(sorted(_thresholds[card.task]))
        raise ModelError(f"{path}: thresholds.{unknown[0]}: a model for {card.task} has {known}")
    if card.decoder not in DECODERS[card.task]:
        known = ", ".join(DECODERS[card.task])
        raise ModelError(f"{path}: decoder {card.decoder!r} doesn't fit task {card.task!r}; it takes {known}")


def card_schema() -> dict[str, Any]:
    """The JSON Schema of a card, as kept in docs/."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_adapter.json_schema(by_alias=True)}
