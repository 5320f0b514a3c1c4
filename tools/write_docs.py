"""Write what is generated in docs/: the settings, the models' figures, the JSON Schema of payloads and cards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from command_line import Parser, run

from edgefer.payload import SCHEMAS, json_schema
from edgefer.problems import KINDS
from edgefer.settings import Variable, variables
from edgefer.vision.card import Metric, card_schema
from edgefer.vision.model import find_card

SETTINGS_HEAD = """# Settings

edgefer is configured by environment variables. They are read from the environment, then from systemd credentials of the
same names, then, unless it is the service that runs, from a `.env` file in the current folder; an empty one counts as
not set. [install.md](install.md) tells where the service has them. They are checked at start: every problem is listed
at once, and an unknown `EDGEFER_` name is an error. `edgefer settings` prints them with their values here; secrets are
masked.

<!-- Generated from edgefer/settings.py by `make docs`. -->
"""

PROBLEMS_HEAD = """# Problems

What `problems` in [health](mqtt.md#health) can hold: match on `part` and `code`, and show people the `message`. The
`status` of `health` is the worst of them. `edgefer doctor` looks for most of them here and
now, and `edgefer doctor --explain` prints this page.

<!-- Generated from edgefer/problems.py by `make docs`. -->

| Part | Code | Status | What it means | What to do |
| --- | --- | --- | --- | --- |
"""

TABLE_HEAD = "| Variable | Values | Default | Meaning |\n| --- | --- | --- | --- |\n"


MODELS_PAGE = Path(__file__).parent.parent / "docs" / "models.md"
FIGURES_BEGIN, FIGURES_END = "<!-- The figures: generated from the cards by `make docs`. -->\n", "<!-- End. -->\n"
SHIPPED = ("far", "near", "identity-112", "emotion-48")


def main() -> None:
    """Write every generated page into the folder that is named."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="where to: docs")
    folder: Path = parser.parse_args().folder
    for name, text in pages().items():
        (folder / name).write_text(text)
        print(folder / name)


def pages() -> dict[str, str]:
    """Every generated page: its file name and its text."""
    schemas = {name: json_schema(kind) for name, kind in SCHEMAS.items()} | {"model-card": card_schema()}
    return {"settings.md": settings_page(), "models.md": models_page(), "problems.md": problems_page()} | {
        f"{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()
    }


def settings_page() -> str:
    """docs/settings.md."""
    parts = [SETTINGS_HEAD]
    for group, members in groupby(variables(), key=lambda variable: variable.group):
        parts.append(f"\n## {group.rstrip('.') or 'General'}\n\n{TABLE_HEAD}")
        parts += [_row(variable) for variable in members]
    return "".join(parts)


def models_page() -> str:
    """docs/models.md, with the figures that stand in the cards now."""
    before, _, rest = MODELS_PAGE.read_text().partition(FIGURES_BEGIN)
    after = rest.partition(FIGURES_END)[2]
    head = "| Model | Data | Figure | int8 | float |\n| --- | --- | --- | --- | --- |\n"
    rows = [row for name in SHIPPED for row in _figures(name, find_card(name).metrics)]
    return "".join([before, FIGURES_BEGIN, head, *rows, FIGURES_END, after])


def _figures(name: str, metrics: Sequence[Metric]) -> Iterator[str]:
    floats = {(m.dataset, m.split, m.metric): f"{m.value:.4f}" for m in metrics if m.precision == "float32"}
    for metric in metrics:
        if metric.precision == "int8":
            places = 5 if 0 < metric.value < 1e-3 else 4
            unquantised = floats.get((metric.dataset, metric.split, metric.metric), "")
            yield (
                f"| `{name}` | {metric.dataset}, {metric.split} | {metric.metric} | {metric.value:.{places}f} | "
                f"{unquantised} |\n"
            )


def problems_page() -> str:
    """docs/problems.md."""
    rows = [f"| `{kind.part}` | `{kind.code}` | {kind.status} | {kind.meaning} | {kind.fix} |\n" for kind in KINDS]
    return PROBLEMS_HEAD + "".join(rows)


def _row(variable: Variable) -> str:
    default = f"`{variable.default}`" if variable.default else ""
    meaning = " ".join(variable.meaning.split()).replace("|", "\\|")
    return (
        f"| `{variable.name}` | {variable.values} | {default} | {meaning}{' A secret.' if variable.secret else ''} |\n"
    )


if __name__ == "__main__":
    sys.exit(run(main))
