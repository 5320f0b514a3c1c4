"""A .tflite with its card beside it, written; and a .tflite that isn't a file yet, loaded as the daemon loads it."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefer.errors import ModelError
from edgefer.vision.card import ModelCard, read_card
from edgefer.vision.model import Model


def write_model(path: Path, content: bytes, card: ModelCard) -> None:
    """Write a .tflite and, beside it, its card with the file's digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    write_card(path.with_suffix(".json"), card)


def write_card(path: Path, card: ModelCard) -> None:
    """Write a card, whole or not at all; ModelError where it couldn't be read again, and what was there stays."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.write_text(card.to_json(), encoding="utf-8")
        read_card(aside)
        aside.replace(path)
    except ModelError as error:
        raise ModelError(str(error).replace(str(aside), f"{path} would be, and so was left as it is")) from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def loaded(content: bytes, card: ModelCard) -> Iterator[Model]:
    """The model of a .tflite's bytes, by the daemon's own loader; ModelError says what doesn't match the card."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{card.name}.tflite"
        write_model(path, content, card)
        try:
            yield Model(path, card.task)
        except ModelError as error:
            raise ModelError(str(error).replace(str(path), path.name)) from error
