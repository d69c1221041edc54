"""Results for the repository: numbers by problem, and no text of a benchmark or a model."""

import json

from benchmarks import without_texts


def test_only_numbers_flags_ids_and_settings_are_kept(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    row = {
        "id": "tooluse/test/4046",
        "level": "Axolotl",
        "rewards": [0.0, 1.0],
        "predictions": ["Actions: ['getX']", ""],
        "responses": ["Question: secret", "a\u2028b"],
        "lengths": [3, 4],
        "finished": [True, False],
        "well_formed": [True, False],
    }
    lines = [{"settings": {"seed": 0, "samples": 2}}, row]
    source.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    without_texts.main(source, target)
    settings, kept = map(json.loads, target.read_text(encoding="utf-8").splitlines())
    assert settings == lines[0]
    gone = ("level", "predictions", "responses")
    assert kept == {name: value for name, value in row.items() if name not in gone}
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == [
        str(source),
        str(target),
    ]
