"""The safetensors reader and writer: interchange with the library, and damaged files."""

import errno
import json
import os
import struct
import threading
import zlib
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspeed_llm.checkpoint import ahead, safetensors_io
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile, SafetensorsWriter
from mindspeed_llm.config.errors import UserError


def write(path, tensors: dict[str, np.ndarray], metadata: dict | None = None) -> list[int]:
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    heads = [(name, names[str(array.dtype)], array.shape) for name, array in tensors.items()]
    with SafetensorsWriter(path, heads, metadata) as writer:
        return [writer.write(array) for array in tensors.values()]


def test_the_library_reads_what_we_write_and_its_bytes_are_ours(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal((3, 5), dtype=np.float32), "b": rng.standard_normal(7, dtype=np.float32),
               "empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.0, np.float32)}
    write(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, array in load_file(tmp_path / "ours").items():
        assert np.array_equal(array, tensors[name])


def test_bf16_views_checksums_and_metadata(tmp_path) -> None:
    data = np.arange(10000, dtype=np.uint16).reshape(100, 100)
    [checksum] = write(tmp_path / "f", {"x": data}, {"format": "np"})
    with SafetensorsFile(tmp_path / "f") as file:
        assert file.metadata == {"format": "np"} and file.tensors["x"].dtype == "BF16"
        assert np.array_equal(file.flat("x").reshape(100, 100), data) and not file.flat("x").flags.writeable
        assert file.crc32("x") == checksum == zlib.crc32(data.tobytes())


def test_elements_are_read_without_the_map(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(safetensors_io, "_CHUNK", 100)
    data, out = np.arange(10000, dtype=np.uint16), np.zeros(500, np.uint16)
    write(tmp_path / "f", {"before": data, "x": data})
    with SafetensorsFile(tmp_path / "f") as file:
        file.read("x", 77, out)
        assert np.array_equal(out, data[77:577])
        with open(tmp_path / "f", "r+b") as damaged:
            damaged.truncate(file.tensors["x"].start + 200)
        with pytest.raises(UserError, match="f has become shorter while it was read"):
            file.read("x", 0, out)
        write(tmp_path / "f", {"before": data, "x": data})
        with pytest.raises(UserError, match="f was replaced while it was read"):
            file.read("x", 0, out)


def test_an_error_while_writing_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match="should be F32"):
        with SafetensorsWriter(tmp_path / "f", [("x", "F32", (4,))]) as writer:
            writer.write(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="1 tensors were not written"):
        with SafetensorsWriter(tmp_path / "f", [("x", "F32", (4,))]):
            assert (tmp_path / "f.tmp").exists()
    assert list(tmp_path.iterdir()) == []


def damage(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("content, message", [
    (b"", r"is empty \(0 bytes\)"),
    (b"abc", "it has 3 bytes, at least 8"),
    (struct.pack("<Q", 1 << 60) + b"{}", "header of 1152921504606846976 bytes"),
    (struct.pack("<Q", 100) + b"{}", "header takes 100 bytes, but the file has 10"),
    (struct.pack("<Q", 2) + b"{x", "not JSON"),
    (damage([1]), "not a JSON object"),
    (damage({"x": {"dtype": "F32", "shape": [2]}}), "tensor x is malformed"),
    (damage({"x": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "unknown dtype F33"),
    (damage({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "cannot fill its byte range"),
    (damage({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)), "starts at byte"),
    (damage({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)), "its header asks for"),
    (damage({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9)), "its header asks for"),
])
def test_damaged_files_are_named(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        SafetensorsFile(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="none.safetensors is missing"):
        SafetensorsFile(tmp_path / "none.safetensors")


def test_tensors_in_parts_are_made_ahead(tmp_path) -> None:
    rng = np.random.default_rng(1)
    tensors = {f"t{number}": rng.integers(0, 1 << 16, size, np.uint16) for number, size in enumerate((7, 0, 5000, 1))}
    heads = [(name, "BF16", array.shape) for name, array in tensors.items()]
    with SafetensorsWriter(tmp_path / "parts", heads) as writer:
        found = writer.write_all(np.array_split(array, 3) for array in tensors.values())
    assert found == write(tmp_path / "whole", tensors) == [zlib.crc32(array.tobytes()) for array in tensors.values()]
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()

    def broken():
        yield np.zeros(4, np.float32)
        raise UserError("the source ends here")
    for parts, message in ((broken(), "the source ends"), ([np.zeros(9, np.float32)], "should be F32")):
        with pytest.raises((UserError, ValueError), match=message):
            with SafetensorsWriter(tmp_path / "f", [("x", "F32", (8,))]) as writer:
                writer.write_all([parts])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_what_is_on_the_disk_leaves_the_cache(tmp_path, monkeypatch) -> None:
    """A large file's bytes, each after a sync that covered it; nothing of a small file; a tensor of one that was read."""
    calls: list[tuple] = []
    monkeypatch.setattr(ahead, "SYNC_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *rest: calls.append(rest))
    data = np.arange(500, dtype=np.float32)
    write(tmp_path / "small", {"x": data[:100]})
    assert calls == []
    write(tmp_path / "f", {"before": data, "x": data})
    size = (tmp_path / "f").stat().st_size
    assert calls[-1] == (0, size, os.POSIX_FADV_DONTNEED) and len(calls) > 1
    assert all(start == 0 and 1000 <= count <= size for start, count, _ in calls)
    with SafetensorsFile(tmp_path / "f") as file:
        file.forget("x")
        assert calls[-1] == (size - data.nbytes, data.nbytes, os.POSIX_FADV_DONTNEED)


def test_a_file_system_that_takes_no_advice(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(ahead, "SYNC_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    data = np.arange(500, dtype=np.float32)
    write(tmp_path / "f", {"x": data})
    with SafetensorsFile(tmp_path / "f") as file:
        file.forget("x")
        assert np.array_equal(file.flat("x"), data)


@pytest.mark.parametrize("refused", ["write", "fdatasync", "fsync"])
def test_a_full_disk_is_told_once_and_leaves_nothing(tmp_path, monkeypatch, refused: str) -> None:
    """Whoever finds out: the write itself, the thread that hurries the data to the disk, or the last fsync."""
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    threads = threading.active_count()
    monkeypatch.setattr(ahead, "SYNC_BYTES", 1)
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'f'}: No space left on device"):
        with SafetensorsWriter(tmp_path / "f", [("x", "F32", (8,))]) as writer:
            if refused == "write":
                writer._file.close()
                writer._file = mock.Mock(write=full, close=full)   # closing writes what is buffered
            else:
                monkeypatch.setattr(os, refused, full)
            writer.write_all(np.zeros((8, 1), np.float32) for _ in range(1))
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == threads
