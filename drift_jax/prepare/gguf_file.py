"""Reading GGUF files: a header of settings and tensor places, then the tensors' bytes.

The file may be damaged or hostile, so every count, length and offset is held against the size of
the file before it is believed. Values are dequantised by the `gguf` package.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32  # bytes
# Far above what models have, and small enough to read in a moment.
MAX_ENTRIES = 1 << 16
MAX_ITEMS = 1 << 22  # of an array; vocabularies have 50,000 to 300,000
MAX_DIMENSIONS = 4

# Types of values in the header, by number, as struct spells them.
_NUMBERS = dict(enumerate("BbHhIif", start=0)) | {7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor stands in the file.

    Attributes:
      shape: outermost dimension first, as numpy has it.
      kind: number of its number format.
      start: first byte.
      row_bytes: bytes of one innermost row.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    row_bytes: int

    @property
    def byte_length(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """An open GGUF file.

    Attributes:
      settings: the header's values by key.
      tensors: the places of the tensors by name.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header; no tensor is read.

        Raises:
          ValueError: in one line, if it is no GGUF file of a known version, or damaged, or the
            `gguf` package is not installed.
        """
        self._sizes = _block_sizes(path)
        self.path = path
        try:
            with path.open("rb") as stream:
                # Pages are read when they are touched, so a header costs what it is long.
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ValueError(f"{path} cannot be read: {error}") from None
        if self._bytes[:4] != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with {MAGIC.decode()}")
        try:
            self.settings, self.tensors = self._read_header()
        except ValueError as error:
            raise ValueError(f"{path} is a damaged GGUF file: {error}") from None

    def read(self, name: str) -> np.ndarray:
        """A tensor's values, float32.

        Raises:
          ValueError: if the format of its numbers is not supported.
        """
        import gguf

        place = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, place.byte_length, place.start)
        kind = gguf.GGMLQuantizationType(place.kind)
        try:
            values = gguf.dequantize(raw.reshape(-1, place.row_bytes), kind)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {name} has the number format {kind.name}, which gguf does not read"
            ) from None
        return np.ascontiguousarray(values, np.float32).reshape(place.shape)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
        cursor = _Cursor(self._bytes, len(MAGIC))
        version = cursor.number("I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, expected one of {VERSIONS}, little-endian")
        tensor_count, setting_count = (cursor.count("Q", MAX_ENTRIES) for _ in range(2))
        settings = {cursor.text(): cursor.value() for _ in range(setting_count)}
        headers = [self._read_tensor_header(cursor) for _ in range(tensor_count)]
        alignment = settings.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ENTRIES:
            raise ValueError(f"an alignment of {alignment!r} bytes")
        data_start = math.ceil(cursor.position / alignment) * alignment
        tensors = {
            name: TensorPlace(shape, kind, data_start + offset, row_bytes)
            for name, shape, kind, offset, row_bytes in headers
        }
        if len(tensors) < tensor_count:
            raise ValueError("two tensors have the same name")
        for name, place in tensors.items():
            if place.start + place.byte_length > len(self._bytes):
                raise ValueError(
                    f"{name} ends at byte {place.start + place.byte_length} and the file at "
                    f"{len(self._bytes)}; download it again"
                )
        return settings, tensors

    def _read_tensor_header(self, cursor: "_Cursor") -> tuple[str, tuple[int, ...], int, int, int]:
        """Name, shape, number format, offset and bytes of a row of the next tensor."""
        name = cursor.text()
        dimensions = cursor.count("I", MAX_DIMENSIONS)
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if not shape or 0 in shape:
            raise ValueError(f"{name} has the shape {shape}")
        if kind not in self._sizes:
            raise ValueError(f"{name} has the unknown number format {kind}")
        block, block_bytes = self._sizes[kind]
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} numbers, which are not whole blocks")
        return name, shape, kind, offset, shape[-1] // block * block_bytes


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data = data
        self.position = position

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, inside its header")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> Any:
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, form: str, limit: int) -> int:
        """A number of things to read."""
        number: int = self.number(form)
        if number > limit:
            raise ValueError(
                f"a count of {number} at byte {self.position}, expected {limit} at most"
            )
        return number

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self) -> Any:
        """A value, after the number of its type."""
        kind = self.number("I")
        if kind != _ARRAY:
            return self._scalar(kind)
        kind, count = self.number("I"), self.count("Q", MAX_ITEMS)
        return [self._scalar(kind) for _ in range(count)]

    def _scalar(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _NUMBERS:
            raise ValueError(f"a value of unknown type {kind} at byte {self.position}")
        return self.number(_NUMBERS[kind])


def _block_sizes(path: Path) -> Mapping[int, tuple[int, int]]:
    """Numbers and bytes of a block, by the number of the format."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise ValueError(
            f"{path} is a GGUF file and the gguf package is not installed; type `pip install gguf`"
        ) from None
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
