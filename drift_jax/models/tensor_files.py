"""Safetensors files: their headers, checked before anything is allocated, and slices of tensors.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, and the
first and last byte of the data), and the data. A header may come from anywhere, so nothing in it is
believed: its length is bounded, every tensor must lie inside the file, take the bytes that its
dtype and shape need, and share none with another one. Nothing in such a file can run code.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# The dtypes in which the weights of these models are published.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_HEADER_BYTES = 2**24  # a 70B model needs 2**17
MAX_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
      file: the safetensors file.
      dtype: of the stored numbers.
      shape: of the tensor.
      offset: its first byte, from the start of the file.
    """

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A slice, in the stored dtype; only the pages that hold it are read from disk."""
        stored = np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        return np.asarray(stored[index])


def open_folder(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder, by name.

    With `model.safetensors.index.json` the files are those that it names, and each tensor must lie
    in the file that it says; else they are all `*.safetensors`.

    Raises:
      ValueError: one line naming the file and what is wrong with it.
    """
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"no *.safetensors in {folder}; other weight formats are not read")
        return _merge(files)
    if (folder / SINGLE).is_file():
        raise ValueError(
            f"{folder} has both {SINGLE} and {INDEX}; remove the one that is out of date"
        )
    places = _read_index(index)
    absent = [name for name in sorted(set(places.values())) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{index} names files that are not there: {absent}; download them")
    tensors = _merge(folder / name for name in sorted(set(places.values())))
    misplaced = sorted(
        name
        for name in places.keys() | tensors.keys()
        if name not in tensors or tensors[name].file.name != places.get(name)
    )
    if misplaced:
        raise ValueError(
            f"{index} and the files beside it disagree about {misplaced[:10]}; download them again"
        )
    return tensors


def _merge(files: Iterable[pathlib.Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        found = read_header(file)
        if repeated := sorted(found.keys() & tensors.keys()):
            raise ValueError(
                f"{file} repeats tensors of {tensors[repeated[0]].file.name}: {repeated[:10]}; "
                "keep the files of one checkpoint in the folder"
            )
        tensors |= found
    return tensors


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """Tensor name -> file name, of files in the same folder."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} is damaged ({type(error).__name__}: {error}); download it again"
        ) from None
    outside = sorted({file for file in names.values() if pathlib.Path(file).name != file})
    if outside:
        raise ValueError(f"{index} names {outside}; expected files in the same folder")
    return names


def read_header(file: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name; reads nothing but the header.

    Raises:
      ValueError: one line naming the file and the first thing that cannot be.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(file, f"header of {length} bytes in a file of {size}")
            text = stream.read(length)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); download it again") from None
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"header: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(file, "the header is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    spans: list[tuple[int, int, str]] = []
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (first, last) = _entry(file, name, entry)
        if last > size - start:
            raise _damaged(file, f"{name} ends {last - size + start} bytes after the file")
        spans.append((first, last, name))
        tensors[name] = StoredTensor(file, dtype, shape, start + first)
    for (_, last, name), (first, _, other) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        if first < last:
            raise _damaged(file, f"{name} and {other} overlap")
    return tensors


def _entry(
    file: pathlib.Path, name: str, entry: Any
) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """dtype, shape and byte span of a header's entry, consistent with each other."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(file, f"{name} lacks dtype, shape or data_offsets")
    shape, span = entry["shape"], entry["data_offsets"]
    possible = _are_sizes(shape) and _are_sizes(span) and len(shape) <= MAX_DIMENSIONS
    if not possible or len(span) != 2 or span[0] > span[1]:
        raise _damaged(file, f"{name} has shape {str(shape)[:50]}, data_offsets {str(span)[:50]}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{file}: {name} is stored as {str(entry['dtype'])[:20]}; expected one of "
            f"{', '.join(DTYPES)}: convert the checkpoint"
        )
    dtype = DTYPES[entry["dtype"]]
    needed = math.prod(shape) * dtype.itemsize  # exact: these are Python's integers
    if span[1] - span[0] != needed:
        raise _damaged(file, f"{name} has {span[1] - span[0]} bytes, its shape needs {needed}")
    return dtype, tuple(shape), (span[0], span[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands twice")
    return names


def _damaged(file: pathlib.Path, what: str) -> ValueError:
    return ValueError(f"{file} is damaged ({what}); download it again")
