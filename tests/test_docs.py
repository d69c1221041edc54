"""The documentation says what the code does."""

import importlib
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def index_rows() -> list[list[str]]:
    """Cells of the equation index."""
    section = README.partition("## Equation index")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_generated_tables_are_those_of_the_code():
    for path, text in generator().pages().items():
        message = f"{path.name} is out of date; run `python docs/generate.py`"
        assert path.read_text(encoding="utf-8") == text, message


def test_the_equation_index_has_every_equation_of_the_paper():
    numbers: set[int] = set()
    for name, _, _ in index_rows():
        if not name.startswith("§"):
            numbers |= {int(number) for number in re.findall(r"\b\d+\b", name.split(" ")[0])}
            numbers |= {int(n) for n in re.findall(r"(?<=, )\d+\b|^\d+\b", name)}
    assert numbers == set(range(1, 23))


@pytest.mark.parametrize("row", index_rows(), ids=lambda row: row[0])
def test_every_function_and_test_of_the_index_exists(row):
    for dotted in re.findall(r"`([\w.]+)`", row[1]):
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(f"drift_jax.{module}"), name), dotted
    for file in re.findall(r"`([\w/.]+\.py)`", row[2]):
        assert (ROOT / file).is_file(), file


def test_files_named_in_the_readme_exist():
    for link in re.findall(r"\]\((?!http)([\w./]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in ("main", "warm_start", "methods", "evaluate", "compare", "train", "assemble"):
        assert (ROOT / "drift_jax" / f"{name}.py").is_file(), name


def test_every_reading_of_the_configuration_is_in_the_readme():
    from drift_jax.config import FIELDS

    known = set(re.findall(r"\b[A-Z]\d+\b", README))
    for field in FIELDS:
        named = set(re.findall(r"\b[TLDRBS]\d+\b", field.source))
        assert named <= known, f"{field.name}: {sorted(named - known)}"
