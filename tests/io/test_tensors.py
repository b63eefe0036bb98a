"""Safetensors files are checked to the last number before anything is allocated."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from fromfew.errors import FromfewError
from fromfew.io.tensors import read_header, read_tensors, write_tensors

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


def file_of(path: Path, header: object, data: bytes = b"", raw: bytes | None = None) -> Path:
    text = raw if raw is not None else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def spec(shape: list, start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_read_back_and_by_safetensors_too(tmp_path, dtype):
    made = {"a.b": torch.arange(6).reshape(2, 3).to(dtype), "scalar": torch.ones((), dtype=dtype),
            "none": torch.zeros(0, 4, dtype=dtype)}  # fmt: skip
    write_tensors(tmp_path / "x.safetensors", made, {"note": "hej"})
    for found in (read_tensors(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")):
        assert found.keys() == made.keys()
        for name, tensor in made.items():
            assert found[name].dtype == dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    assert read_header(tmp_path / "x.safetensors").metadata == {"note": "hej"}


def test_equal_tensors_give_equal_bytes_whatever_their_order(tmp_path):
    a, b = torch.ones(3), torch.zeros(2)
    write_tensors(tmp_path / "1.safetensors", {"a": a, "b": b}, {"k": "v"})
    write_tensors(tmp_path / "2.safetensors", {"b": b, "a": a}, {"k": "v"})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_a_tensor_of_a_petabyte_is_refused_without_allocating_it(tmp_path):
    path = file_of(tmp_path / "x.safetensors", {"a": spec([2**24, 2**24], 0, 2**50)}, b"\0" * 16)
    with pytest.raises(FromfewError, match="the tensors need"):
        read_tensors(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_never_breaks(tmp_path, data):
    good = bytearray(save({"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bool)}, {"m": "n"}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    path = tmp_path / "x.safetensors"
    path.write_bytes(good[: cut if data.draw(st.booleans()) else len(good)])
    found, fault = {}, str(path)
    try:
        found = read_tensors(path)
    except FromfewError as error:
        fault = str(error)
    assert str(path) in fault
    assert sum(t.numel() for t in found.values()) <= len(good)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=8), json_values, max_size=3), size=st.integers(0, 16))
def test_any_json_for_a_header_is_read_or_refused_but_never_breaks(tmp_path, header, size):
    path = file_of(tmp_path / "x.safetensors", header, b"\0" * size)
    fault = "is no proper safetensors file"
    try:
        read_header(path)
    except FromfewError as error:
        fault = str(error)
    assert "is no proper safetensors file" in fault
