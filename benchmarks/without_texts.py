"""Copies the result of an evaluation without any text: what may lie in the repository.

    python -m benchmarks.without_texts runs/base/evaluate/test_model.jsonl docs/results/base.jsonl

Kept are settings, ids, rewards, lengths and flags. Responses and predictions repeat prompts, and
the sub-task is a benchmark's word, so they go. Prints the SHA-256 of both files.
"""

import hashlib
import json
import pathlib
import sys

KEPT = ("settings", "id", "rewards", "lengths", "finished", "well_formed")


def stripped(text: str) -> str:
    """The lines of a result file with the kept fields only."""
    rows = [json.loads(line) for line in text.split("\n") if line]
    kept = ({name: row[name] for name in KEPT if name in row} for row in rows)
    return "".join(json.dumps(row) + "\n" for row in kept)


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(stripped(source.read_text(encoding="utf-8")), encoding="utf-8")
    for path in (source, target):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("error: expected two files; python -m benchmarks.without_texts IN OUT")
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
