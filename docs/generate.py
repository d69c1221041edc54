"""Writes the tables that are generated from the code into the documentation.

    python docs/generate.py

docs/CONFIG.md, docs/METHODS.md, the metrics table between its two markers in README.md, the
table of docs/COMPARE.md from the records in docs/results/compare_example, and the plans of
docs/PLAN.md.
`tests/test_docs.py` fails where they differ from the code.
"""

import json
import pathlib

from drift_jax import config, methods, metrics, record
from drift_jax.comparison import table
from drift_jax.planning import advice, estimate, sizes, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
START, END = "<!-- metrics -->", "<!-- end of metrics -->"
TABLE_START, TABLE_END = "<!-- table -->", "<!-- end of table -->"
PLANS_START, PLANS_END = "<!-- plans -->", "<!-- end of plans -->"
MACHINES = (("h200", 8), ("h100", 8), ("h200", 1))
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
        ROOT / "docs" / "PLAN.md": plan_page(),
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


def plan_page() -> str:
    """docs/PLAN.md with a table and what the command prints of Qwen3-8B on three machines."""
    page = (ROOT / "docs" / "PLAN.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(PLANS_START)
    after = rest.partition(PLANS_END)[2]
    experiment = config.load(str(ROOT / "configs" / "qwen3_8b.py"))
    model = sizes.PUBLISHED["qwen3-8b"]
    rows, printed, flops = [], [], None
    for device, devices in MACHINES:
        for attention in ("unfused", "fused"):
            where = {"device": device, "devices": devices, "attention": attention}
            plan = estimate.make(experiment, model, **where)
            step = estimate.step(experiment, model, **where, flops=flops)
            flops = step.flops  # the same work everywhere
            rows.append(text.summary(plan, step))
            if attention == "unfused":
                found = advice.proposals(experiment, model, plan, device)
                counts = estimate.executables(experiment)
                printed.append(text.render("qwen3_8b", plan, step, None, found, counts))
    lines = ["| " + " | ".join(cells) + " |" for cells in (text.SUMMARY, ["---"] * 9, *rows)]
    blocks = "\n\n".join(f"```\n{block}\n```" for block in printed)
    made = "\n".join(lines) + "\n\nAs the command prints it:\n\n" + blocks
    return f"{before}{PLANS_START}\n\n{made}\n\n{PLANS_END}{after}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
