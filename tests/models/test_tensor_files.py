"""Headers of safetensors files: what is read, and what a damaged or hostile one gets."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from drift_jax.models import tensor_files
from drift_jax.models.tensor_files import INDEX, open_folder, read_header

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.arange(8, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(4, 2),
}


def write(file, header, data=b""):
    """A file with any header: an object, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(first, last, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def test_tensors_are_read_in_their_own_dtype_whole_and_in_slices(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = open_folder(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        everything = tuple(slice(None) for _ in tensor.shape)
        np.testing.assert_array_equal(found[name].read(everything), tensor)
    part = (slice(1, 2), slice(0, 2))
    np.testing.assert_array_equal(found["a"].read(part), TENSORS["a"][part])


def test_an_index_says_which_files_are_read(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    save_file({"a": TENSORS["c"]}, tmp_path / "stale.safetensors")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    found = open_folder(tmp_path)
    assert {name: tensor.file.name for name, tensor in found.items()} == places


@pytest.mark.parametrize(
    "places, named",
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "not there: ['three.safetensors']"),
        ({"a": "one.safetensors"}, "disagree about ['b']"),
        ({"a": "one.safetensors", "b": "one.safetensors", "x": "one.safetensors"}, "['x']"),
        ({"a": "../one.safetensors"}, "expected files in the same folder"),
        ({"a": "/etc/passwd"}, "expected files in the same folder"),
        (["a"], "is damaged"),
    ],
)
def test_an_index_that_does_not_fit_the_files_is_refused(tmp_path, places, named):
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=INDEX) as error:
        open_folder(tmp_path)
    assert named in str(error.value)


def test_an_index_beside_a_single_file_is_refused_since_one_is_out_of_date(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "model.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(ValueError, match="has both model.safetensors and"):
        open_folder(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"a": TENSORS["a"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="two.safetensors repeats tensors of one.safetensors"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "header, data, named",
    [
        ({"a": entry(0, 8)}, b"1234", "a ends 4 bytes after the file"),
        ({"a": entry(0, 8, shape=(3,))}, b"12345678", "a has 8 bytes, its shape needs 12"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, "a and b overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, b"x" * 8, "overlap"),
        ({"a": entry(8, 0)}, b"x" * 8, "data_offsets [8, 0]"),
        ({"a": entry(-8, 0)}, b"x" * 8, "data_offsets [-8, 0]"),
        ({"a": entry(0, 8, shape=(-2,))}, b"x" * 8, "shape [-2]"),
        ({"a": entry(0, 8, shape=(2.0,))}, b"x" * 8, "shape [2.0]"),
        ({"a": entry(0, 8, shape=(2**62, 2**62))}, b"x" * 8, "its shape needs"),
        ({"a": entry(0, 8, shape=(1,) * 100)}, b"x" * 8, "shape [1, 1"),
        ({"a": entry(0, 8, dtype="F8_E4M3")}, b"x" * 8, "a is stored as F8_E4M3"),
        ({"a": entry(0, 16, dtype="F64")}, b"x" * 16, "a is stored as F64"),
        ({"a": {"dtype": "F32"}}, b"", "a lacks dtype, shape or data_offsets"),
        ({"a": 3}, b"", "a lacks dtype, shape or data_offsets"),
        (b"[1]", b"", "the header is not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "a name stands twice"),
        (b"{", b"", "header:"),
        (b"\xff\xfe", b"", "header:"),
        (b"[" * 100_000, b"", "header:"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "header:"),
    ],
)
def test_an_impossible_header_is_refused_before_anything_is_allocated(
    tmp_path, header, data, named
):
    file = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(ValueError, match="model.safetensors") as error:
        read_header(file)
    assert named in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01\x00", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 100) + b"{}"],
)
def test_a_header_longer_than_the_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged \\(header of"):
        open_folder(tmp_path)


def test_a_header_longer_than_any_model_needs_is_refused_unread(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", tensor_files.MAX_HEADER_BYTES + 1))
        stream.truncate(tensor_files.MAX_HEADER_BYTES + 100)  # takes no room on the disk
    with pytest.raises(ValueError, match="is damaged \\(header of"):
        read_header(file)


def test_a_link_to_nowhere_is_refused(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be read"):
        open_folder(tmp_path)


@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_gives_tensors_inside_the_file(
    tmp_path_factory, position, byte
):
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_file(TENSORS, file)
    content = bytearray(file.read_bytes())
    content[position % len(content)] = byte
    file.write_bytes(content)
    try:
        found = read_header(file)
    except ValueError as error:
        assert "model.safetensors" in str(error)
        return
    for tensor in found.values():
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        assert tensor.offset >= 0 and tensor.offset + size <= len(content)
