"""Messages as JSON, and the JSON Schema of each, both made from the annotations in messages.py."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from edgefer.messages import FaceEvent, Health, Message, PictureReading, Presence

_adapters: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (FaceEvent, Presence, Health, PictureReading)
}

SCHEMAS: dict[str, type] = {"face": FaceEvent, "presence": Presence, "health": Health, "analyze": PictureReading}
"""What each schema in docs/ is called, and the message that it describes."""


def to_json(message: Message | PictureReading) -> bytes:
    """One message as JSON, on one line."""
    return _adapters[type(message)].dump_json(message)


def face_event_from_json(payload: bytes) -> FaceEvent:
    """The face event that `to_json` made it from; ValueError when it is none."""
    event: FaceEvent = _adapters[FaceEvent].validate_json(payload)
    return event


def as_replayed(payload: bytes) -> bytes:
    """The same face event, marked as one that was sent late."""
    # A quote inside of a string is escaped, so the key as it stands here can be nothing else.
    return payload.replace(b'"replayed":false', b'"replayed":true', 1)


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one kind of message: every key is required, no other is allowed."""
    schema = _adapters[kind].json_schema(mode="serialization")
    for part in (schema, *schema.get("$defs", {}).values()):
        part["additionalProperties"] = False
        part["required"] = list(part["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
