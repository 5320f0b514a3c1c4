"""The generated pages say what the code says, and the README's map names what is there."""

import re
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import write_docs  # noqa: E402  # a script beside the package

PAGES = write_docs.pages()


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == PAGES[name], "run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.schema.json")), ids=lambda path: path.name)
def test_schemas_are_json_schemas(path):
    import json

    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_the_event_in_the_readme_is_one():
    import json

    (event,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    schema = json.loads((ROOT / "docs" / "face.schema.json").read_text())
    jsonschema.validate(json.loads(event), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_map_in_the_readme_names_every_module():
    _, _, after = (ROOT / "README.md").read_text().partition("## The map")
    the_map = after.partition("\n## ")[0]
    modules = [p for p in (ROOT / "edgefer").rglob("*.py") if not p.name.startswith("_")] + [
        ROOT / "edgefer" / "__main__.py"
    ]
    assert modules
    assert [str(p) for p in modules if not re.search(rf"\b{p.stem}\b", the_map)] == []


def test_every_setting_in_the_docs_exists():
    from edgefer.logs import FIELDS
    from edgefer.settings import variables

    known = {variable.name for variable in variables()} | set(FIELDS)
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "deploy" / "edgefer.env"]:
        named = set(re.findall(r"EDGEFER_[A-Z_]*[A-Z]", page.read_text()))
        assert {
            name for name in named if name not in known and not any(k.startswith(name + "__") for k in known)
        } == set(), page
