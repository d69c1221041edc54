"""Writes the tables that are generated from the code into the documentation.

    python docs/generate.py

docs/CONFIG.md, docs/METHODS.md, and the metrics table between its two markers in README.md.
`tests/test_docs.py` fails where they differ from the code.
"""

import pathlib

from drift_jax import config, methods, metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
START, END = "<!-- metrics -->", "<!-- end of metrics -->"


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
        ROOT / "docs" / "METHODS.md": f"{made}```\n{methods.table().rstrip()}\n```\n",
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
