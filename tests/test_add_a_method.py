"""docs/ADD_A_METHOD.md shows code that is really there."""

import re
from pathlib import Path

import pytest

from drift_jax import assemble, decision, loss_terms, teacher
from drift_jax.config import FIELDS
from drift_jax.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/ADD_A_METHOD.md").read_text()
BLOCKS = re.findall(r"```(?:python|text)\n\s*# (\S+)\n(.*?)```", PAGE, re.DOTALL)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("file, block", BLOCKS, ids=[file for file, _ in BLOCKS])
def test_every_line_shown_stands_in_its_file_in_this_order(file, block):
    there, position = lines((ROOT / file).read_text()), 0
    assert lines(block)
    for line in lines(block):
        position = there.index(line, position) + 1


def test_the_page_shows_the_formula_its_place_its_field_and_its_entry():
    assert [Path(file).stem for file, _ in BLOCKS] == [
        "difficulty",
        "assemble",
        "config",
        "methods",
    ]


def test_the_table_of_places_names_fields_and_tables_that_exist():
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+) \| (`[^|]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    names = {field.name for field in FIELDS}
    for fields, _ in rows:
        for name in re.findall(r"`((?:objective|rhythm|teacher|buffer|difficulty)\.\w+)`", fields):
            assert name in names
    for module, table in re.findall(
        r"`(decision|assemble|teacher|loss_terms)\.(_?[A-Z]\w+)`", PAGE
    ):
        owner = {
            "decision": decision,
            "assemble": assemble,
            "teacher": teacher,
            "loss_terms": loss_terms,
        }[module]
        assert hasattr(owner, table)


def test_the_commands_name_methods_that_exist():
    named = re.findall(r"methods?=([\w,]+)", PAGE)
    assert named
    for name in ",".join(named).split(","):
        assert name == "NAME" or name in METHODS
