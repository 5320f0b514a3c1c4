"""Write the generated pages of docs/: the settings, and the JSON Schema of every payload and of a model's card."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from edgefer.payload import SCHEMAS, json_schema
from edgefer.settings import Variable, variables
from edgefer.vision.card import card_schema

SETTINGS_HEAD = """# Settings

edgefer is configured by environment variables. They are read from the environment, then from systemd credentials of the
same names (`LoadCredential=EDGEFER_MQTT__PASSWORD:/etc/edgefer/mqtt-password`), then from a `.env` file in the current
folder; an empty one counts as not set. They are checked at start: every problem is listed at once, and an unknown
`EDGEFER_` name is an error. `edgefer settings` prints them with their values here; secrets are masked.

<!-- Generated from edgefer/settings.py by `make docs`. -->
"""

TABLE_HEAD = "| Variable | Values | Default | Meaning |\n| --- | --- | --- | --- |\n"


def main() -> None:
    """Write every generated page into the folder that is named."""
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        (folder / name).write_text(text)
        print(folder / name)


def pages() -> dict[str, str]:
    """Every generated page: its file name and its text."""
    schemas = {name: json_schema(kind) for name, kind in SCHEMAS.items()} | {"model-card": card_schema()}
    return {"settings.md": settings_page()} | {
        f"{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()
    }


def settings_page() -> str:
    """docs/settings.md."""
    parts = [SETTINGS_HEAD]
    for group, members in groupby(variables(), key=lambda variable: variable.group):
        parts.append(f"\n## {group.rstrip('.') or 'General'}\n\n{TABLE_HEAD}")
        parts += [_row(variable) for variable in members]
    return "".join(parts)


def _row(variable: Variable) -> str:
    default = f"`{variable.default}`" if variable.default else ""
    meaning = " ".join(variable.meaning.split()).replace("|", "\\|")
    return (
        f"| `{variable.name}` | {variable.values} | {default} | {meaning}{' A secret.' if variable.secret else ''} |\n"
    )


if __name__ == "__main__":
    main()
