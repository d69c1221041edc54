"""Writes the tables that are generated from the code into the documentation.

    python docs/generate.py

docs/CONFIG.md, docs/METHODS.md, the metrics table between its two markers in README.md, and the
table of docs/COMPARE.md from the records in docs/results/compare_example.
`tests/test_docs.py` fails where they differ from the code.
"""

import json
import pathlib

from drift_jax import config, methods, metrics, record
from drift_jax.comparison import table

ROOT = pathlib.Path(__file__).resolve().parent.parent
START, END = "<!-- metrics -->", "<!-- end of metrics -->"
TABLE_START, TABLE_END = "<!-- table -->", "<!-- end of table -->"
EXAMPLE = ROOT / "docs" / "results" / "compare_example"


def pages() -> dict[pathlib.Path, str]:
    """Each generated file with its text."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(START)
    after = rest.partition(END)[2]
    fields = (
        "# Configuration\n\nEvery field of `drift_jax/config.py`. `--config.section.field=value` "
        "overrides one; precedence is default < method < experiment file < command line.\n\n"
    )
    made = (
        "# Methods\n\nWhat each method sets, as `python -m drift_jax.methods` prints it "
        "(value, and the default in brackets); `:method=NAME` in the config argument applies "
        "it.\n\n"
    )
    return {
        ROOT / "README.md": f"{before}{START}\n\n{metrics.table()}\n\n{END}{after}",
        ROOT / "docs" / "CONFIG.md": f"{fields}{config.describe()}\n",
        ROOT / "docs" / "COMPARE.md": compare_page(),
        ROOT / "docs" / "METHODS.md": f"{made}```\n{methods.table().rstrip()}\n```\n",
    }


def compare_page() -> str:
    """docs/COMPARE.md with the table that the records of the example make."""
    page = (ROOT / "docs" / "COMPARE.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(TABLE_START)
    after = rest.partition(TABLE_END)[2]
    settings = json.loads((EXAMPLE / "table.json").read_text(encoding="utf-8"))
    records = [record.read(file) for file in sorted((EXAMPLE / "raw").glob("*.json"))]
    made = table.make(records, level=settings["level"], order=settings["methods"])
    return f"{before}{TABLE_START}\n\n{made.markdown}\n\n{TABLE_END}{after}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
