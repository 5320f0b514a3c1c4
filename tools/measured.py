"""What a figure is of, as a card keeps it."""

from __future__ import annotations

from typing import cast, get_args

from edgefer.errors import InputError
from edgefer.vision.card import ModelCard, Precision


def precision_of(card: ModelCard) -> Precision:
    """The precision of a card's model; InputError where the card doesn't tell it, or tells another."""
    told = card.training.get("precision")
    if told not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise InputError(f"{card.name}: its card has {told!r} in training.precision, where one of {known} is wanted")
    return cast("Precision", told)
