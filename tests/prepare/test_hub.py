"""The hub path, against a server of the test's own. The real hub is never asked."""

import http.server
import json
import os
import subprocess
import sys
import threading
from urllib.parse import unquote, urlparse

import pytest

from drift_jax.data.source import load_task
from drift_jax.prepare import published, science, sources, tooluse
from tests.prepare.upstream import (
    call,
    original_questions,
    question,
    read_rows,
    write_lines,
)

COMMIT = "c" * 40
ROOT = sources.__file__.partition("/drift_jax/")[0]


class Hub(http.server.ThreadingHTTPServer):
    """Files by repository, as `datasets/owner/name` or `owner/name`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.asked = []  # paths of files whose content was sent
        self.broken = set()  # names that are answered with an error

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, *, with_content):
        path = unquote(urlparse(self.path).path).strip("/")
        if path.startswith("api/models/"):
            return self.describe(path.removeprefix("api/models/"))
        repository, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        content = self.server.repositories.get(repository, {}).get(name)
        if content is None or name in self.server.broken:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if with_content:
            self.server.asked.append(name)
        headers = {"ETag": f'"{abs(hash(content))}"', "X-Repo-Commit": COMMIT}
        self.send(200, content, headers, with_content=with_content)

    def describe(self, path):
        """A repository's commit and files, in the two forms that clients ask for."""
        repository, kind, rest = next(
            (path.partition(f"/{kind}/")[0], kind, path.partition(f"/{kind}/")[2])
            for kind in ("revision", "tree")
            if f"/{kind}/" in path
        )
        files = self.server.repositories.get(repository)
        if files is None:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        assert rest in ("main", COMMIT), f"asked for {path}"
        content = {
            "revision": {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            },
            "tree": [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ],
        }[kind]
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, code, content, headers, *, with_content=True):
        self.send_response(code)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, form, *values):
        """Says nothing."""


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(hub, tmp_path):
    """Runs the command in a process that takes the test's server for the hub."""

    def run(*arguments, publish=None):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        # Made-up files can count as published in that process.
        code = "from drift_jax.prepare import __main__, published\n"
        for key, value in (publish or {}).items():
            code += f"published.FILES[{key!r}] = published.{value!r}\n"
        code += f"__main__.main({[str(argument) for argument in arguments]!r})"
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def checksums(task, contents):
    kinds = {split: published.FILES[task, split].checksum.split()[0] for split in contents}
    return {
        (task, split): published.measure(data, kinds[split]) for split, data in contents.items()
    }


def serve_questions(hub, tmp_path, rows):
    file = write_lines(tmp_path / "served.jsonl", rows)
    hub.repositories[f"datasets/{sources.SCIKNOWEVAL}"] = {
        sources.SCIKNOWEVAL_FILE: file.read_bytes()
    }


def one_line(result):
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


# ---- data sets ---------------------------------------------------------------------------------


def test_science_comes_from_the_hub(hub, run, tmp_path):
    rows = [question(number, domain="Chemistry") for number in range(30)]
    serve_questions(hub, tmp_path, [question(0), *rows])
    built = science.build(rows)
    out = tmp_path / "data"
    result = run("--task=chemistry", f"--out={out}", publish=checksums("chemistry", built))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the published split") == 2
    for split, data in built.items():
        assert (out / "chemistry" / f"{split}.json").read_bytes() == data
    assert hub.asked == [sources.SCIKNOWEVAL_FILE]


def test_another_data_set_on_the_hub_is_refused(hub, run, tmp_path):
    serve_questions(hub, tmp_path, [question(number) for number in range(30)])
    error = one_line(run("--task=physics", f"--out={tmp_path / 'data'}"))
    assert "27 rows, sha256 " in error
    assert f"has 720 rows, {published.FILES['physics', 'train'].checksum}" in error
    assert not (tmp_path / "data").exists()


def test_a_file_that_the_hub_lacks_is_refused_with_a_way_around(run, tmp_path):
    error = one_line(run("--task=physics", f"--out={tmp_path / 'data'}"))
    assert f"cannot download {sources.SCIKNOWEVAL_FILE}" in error
    assert "name a local copy with --source" in error
    assert not (tmp_path / "data").exists()


def test_the_real_questions_come_to_the_byte_through_the_hub(hub, run, tmp_path, data_dir):
    serve_questions(hub, tmp_path, original_questions(data_dir, "biology"))
    result = run("--task=biology", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "biology" / "train.json").read_bytes() == (
        data_dir / "biology" / "train.json"
    ).read_bytes()


def test_tool_use_comes_from_the_hub(hub, run, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install -e .[parquet]")
    from pyarrow import Table, parquet

    names = {}
    for split, size in (("train", 3), ("test", 2)):
        rows = [{"prompt": f"{split} {i}", "golden_answer": [call()]} for i in range(size)]
        file = tmp_path / f"{split}.parquet"
        parquet.write_table(Table.from_pylist(rows), file)
        names[sources.TOOLALPACA_FILE.format(split=split)] = file.read_bytes()
    hub.repositories[f"datasets/{sources.TOOLALPACA}"] = names
    test = tooluse.build_from_table(tmp_path / "test.parquet", first_idx=4046)
    result = run(
        "--task=tooluse", f"--out={tmp_path}", publish=checksums("tooluse", {"test": test})
    )
    assert result.returncode == 0, result.stderr
    assert "test.json: the published split, 2 rows" in result.stdout
    assert "train.json: NOT the published split: 3 rows" in result.stdout
    assert [row["idx"] for row in read_rows(tmp_path / "tooluse" / "test.json")] == [4046, 4047]
    assert len(load_task("tooluse", "train", path=tmp_path)) == 3


# ---- models ------------------------------------------------------------------------------------

CHECKPOINT = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"import os",
    "original/params.pth": b"pickle",
    "original/model.safetensors": b"twice",
    "README.md": b"#",
}


def test_a_checkpoint_comes_without_pickles_and_code(hub, run, tmp_path):
    hub.repositories["Qwen/Qwen3-8B"] = CHECKPOINT | UNWANTED
    out = tmp_path / "models" / "mine"
    result = run("--model=qwen3-8b", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert f"Qwen/Qwen3-8B at {COMMIT}" in result.stdout
    assert {file.name for file in out.iterdir()} == {*CHECKPOINT, "prepared.json"}
    assert all((out / name).read_bytes() == content for name, content in CHECKPOINT.items())
    assert set(hub.asked) == set(CHECKPOINT)
    record = json.loads((out / "prepared.json").read_text())
    assert record["origin"] == {"model": "Qwen/Qwen3-8B", "revision": "main", "commit": COMMIT}
    hub.asked.clear()
    again = run("--model=Qwen/Qwen3-8B", f"--out={out}")
    assert again.returncode == 0 and "was there already" in again.stdout
    assert hub.asked == []


def test_an_interrupted_download_goes_on_where_it_stopped(hub, run, tmp_path):
    hub.repositories["some/model"] = CHECKPOINT
    hub.broken.add("model-00002-of-00002.safetensors")
    out = tmp_path / "mine"
    error = one_line(run("--model=some/model", f"--out={out}"))
    assert "type the same command again to go on" in error
    assert not out.exists()
    assert [file.name for file in tmp_path.glob("mine*")] == [f"mine.{COMMIT[:12]}.partial"]
    came = set(hub.asked)
    hub.broken.clear()
    hub.asked.clear()
    result = run("--model=some/model", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert (out / "model-00002-of-00002.safetensors").read_bytes() == b"two"
    assert not came & set(hub.asked)
    assert [file.name for file in tmp_path.glob("mine*")] == ["mine"]


def test_a_model_that_the_hub_lacks_is_refused_in_one_line(run, tmp_path):
    error = one_line(run("--model=no/such-model", f"--out={tmp_path / 'mine'}"))
    assert "cannot find revision main of the model no/such-model" in error
    assert not list(tmp_path.glob("mine*"))


def test_a_model_without_safetensors_is_refused(hub, run, tmp_path):
    hub.repositories["old/model"] = UNWANTED | {"config.json": b"{}"}
    error = one_line(run("--model=old/model", f"--out={tmp_path / 'mine'}"))
    assert "no safetensors" in error
    assert "pytorch_model.bin" not in hub.asked
    assert not list(tmp_path.glob("mine*"))
