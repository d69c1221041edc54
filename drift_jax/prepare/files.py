"""Reading upstream's files, and writing ours: whole or not at all, and never over other content."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line, one at a time; the file may be larger than memory.

    Raises:
      ValueError: naming the file, and the line where one is not JSON.
    """
    number = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, json.loads(line.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(f"{file}, line {number}: {reason}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a huge number, deep nesting
        raise ValueError(f"{file}, line {number}: not readable: {error}") from error


def read(file: Path) -> bytes:
    """The content of a file; ValueError with the reason if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
      ValueError: naming the file, and the line where it stops being JSON.
    """
    data = read(file)
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(f"{file}, line {error.lineno}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable: {error}") from error


def find(source: Path, *places: str) -> Path | None:
    """The first of these relative paths that exists below a folder.

    A source that is a file stands for a folder with nothing else in it.
    """
    if source.is_file():
        names = {Path(place).name for place in places}
        return source if source.name in names else None
    return next((source / place for place in places if (source / place).exists()), None)


def encode_rows(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines in upstream's spelling: ASCII, no spaces, and a backslash before `/`."""
    lines = (json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    return "".join(line.replace("/", "\\/") + "\n" for line in lines).encode("ascii")


def write_all(contents: Mapping[Path, bytes]) -> dict[Path, bool]:
    """Writes files to temporary names first and renames them when all are written.

    Returns:
      Whether each file was written; False where it was there with that content already.

    Raises:
      ValueError: if a file exists with other content, or cannot be written. Nothing is overwritten.
    """
    new = {file: not _holds(file, data) for file, data in contents.items()}
    partial = {file: file.with_name(f".{file.name}.partial") for file in contents if new[file]}
    try:
        for file, temporary in partial.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(contents[file])
                stream.flush()
                os.fsync(stream.fileno())
        for file, temporary in partial.items():
            temporary.rename(file)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written: {error.strerror}") from error
    finally:
        for temporary in partial.values():
            if temporary.is_file():
                temporary.unlink()
    return new


def _holds(file: Path, data: bytes) -> bool:
    """Whether the file is there with this content.

    Raises:
      ValueError: if something else is there.
    """
    if not file.exists():
        return False
    if not file.is_file() or file.read_bytes() != data:
        raise ValueError(
            f"{file} exists with other content; move it away or name another --out, "
            "nothing is overwritten"
        )
    return True
