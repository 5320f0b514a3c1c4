"""People as JSON: what `edgefer people export` writes, and what `import` reads of other systems.

    {"Ada": [0.01, -0.09, ...], "Grace": [[...], [...]]}

is the common form, a name and an embedding or several; `--model-id` then says which model made them. Ours says that
itself, and keeps quality and time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeGuard

import numpy as np

from edgefer.errors import InputError, UsageError
from edgefer.gallery import Gallery, Newcomer, Template, check_name, model_id, tidy_name
from edgefer.vision.card import ModelCard
from edgefer.vision.embedder import Embedding

log = logging.getLogger(__name__)

SCHEMA = "edgefer.people/1"


def export_people(gallery: Gallery) -> str:
    """Everybody whom the model in use knows, as JSON; pictures stay where they are."""
    people = {
        person.name: {
            "ignored": person.ignored,
            "templates": [
                {"embedding": _numbers(t.embedding), "quality": t.quality, "enrolled": t.enrolled}
                for t in gallery.templates(person.name)
            ],
        }
        for person in gallery.people()
        if person.templates
    }
    return json.dumps({"schema": SCHEMA, "model": gallery.model, "people": people}, ensure_ascii=False) + "\n"


def read_people(text: str, card: ModelCard, size: int, made_by: str | None) -> list[Newcomer]:
    """The people of an export or of the common form, for the model with this card, which gives `size` values.

    `made_by` is what --model-id said: the model's name, or its name and digest. An export says itself what made it, and
    that holds. InputError says what is wrong.
    """
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError('not people: {"Ada": [numbers], "Grace": [[numbers], [numbers]]} is what is read')
    if isinstance(schema := data.get("schema"), str):
        if schema != SCHEMA:
            raise InputError(f"{schema}: only {SCHEMA} can be read; was it exported by a newer edgefer?")
        made_by, data = data.get("model") or made_by, data.get("people")
    model = model_id(card)
    if made_by is None:
        raise UsageError(f"which model made these? Say --model-id {model!r} if it was the one in use")
    if made_by not in (model, card.name):
        raise InputError(
            f"these were made by the model {made_by}, and the one in use is {model}: their numbers can't be compared. "
            "Name that model with EDGEFER_IDENTITY__MODEL, or enrol from pictures"
        )
    if made_by != model:
        log.warning("taken for embeddings by %s: what another version of it made can't be compared", model)
    if not isinstance(data, dict):
        raise InputError(f"{SCHEMA} without its people")
    if not data:
        raise InputError("there is nobody in it")
    try:
        people = {check_name(name): value for name, value in data.items()}
    except UsageError as error:  # it isn't what was typed
        raise InputError(str(error)) from error
    return [_newcomer(name, value, size) for name, value in people.items()]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which nothing is said twice: one of two would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if (name := tidy_name(key)) in found:
            raise InputError(f"{name!r} stands there twice: put all of their embeddings into one list")
        found[name] = value
    return found


def _newcomer(name: str, value: Any, size: int) -> Newcomer:
    if isinstance(value, dict):
        templates = value.get("templates")
        if (
            not isinstance(templates, list)
            or not templates
            or not all(isinstance(template, dict) for template in templates)
        ):
            raise InputError(f"{name}: no templates")
        if not isinstance(ignored := value.get("ignored", False), bool):
            raise InputError(f"{name}: ignored is true or false, not {ignored!r}")
        return Newcomer(name, [_template(name, template, size) for template in templates], ignored)
    if not isinstance(value, list) or not value:
        raise InputError(f"{name}: a list of numbers, or a list of such lists, was expected")
    vectors = value if isinstance(value[0], list) else [value]
    return Newcomer(name, [Template(_embedding(name, vector, size), 1.0) for vector in vectors])


def _template(name: str, template: dict[str, Any], size: int) -> Template:
    quality, enrolled = template.get("quality"), template.get("enrolled")
    if not isinstance(quality, int | float) or not 0 <= quality <= 1 or not _is_time(enrolled):
        raise InputError(
            f"{name}: a template has embedding, quality (0 to 1) and enrolled (when: 2026-11-20T14:30:12+00:00)"
        )
    return Template(_embedding(name, template.get("embedding"), size), float(quality), enrolled)


def _embedding(name: str, values: Any, size: int) -> Embedding:
    """A unit vector; what has length 1 already stays as it is, to the last bit."""
    if not _are_numbers(values):
        raise InputError(f"{name}: an embedding is a list of numbers")
    if len(values) != size:
        raise InputError(f"{name}: an embedding of {len(values)} values; the model in use gives {size}")
    try:
        length = math.hypot(*values)
    except OverflowError:
        length = math.inf
    if not math.isfinite(length):
        raise InputError(f"{name}: an embedding holds values that aren't finite numbers")
    if length < 1e-6:
        raise InputError(f"{name}: an embedding is zero, and so points nowhere")
    exact = np.array(values, np.float64)
    return (exact if abs(length - 1) < 1e-5 else exact / length).astype(np.float32)


def _is_time(value: Any) -> TypeGuard[str]:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _numbers(embedding: Sequence[float] | Embedding) -> list[float]:
    # Nine digits bring back every float32.
    return [float(f"{value:.9g}") for value in embedding]
