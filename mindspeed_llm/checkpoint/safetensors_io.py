"""safetensors files, read by memory map and written as a stream.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header that gives dtype,
shape and byte range of each tensor, then the tensors' bytes without gaps. The library's numpy reader knows no bfloat16
and its writer wants all tensors in memory, so both are here; dtypes are the format's own names ("BF16"), data are raw
bytes.
"""

import contextlib
import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.ahead import Flusher, ahead, drop_cached
from mindspeed_llm.config.errors import UserError, writing

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
          "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "u1"}
_MAX_HEADER = 100_000_000
_CHUNK = 1 << 23  # bytes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: dtype in the format's name, shape, absolute byte range."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A safetensors file open for reading; tensors are views of the memory map, nothing is read until touched.

    `tensors` maps names to entries in the order of their bytes; `metadata` is the header's string dictionary (or None).
    Raises FileNotFoundError or UserError naming the file when it is missing, empty, truncated or malformed.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing")
        self.size = self.path.stat().st_size
        if self.size == 0:
            raise UserError(f"{self.path} is empty (0 bytes): copy or download it again")
        with open(self.path, "rb") as file:
            self._inode = os.fstat(file.fileno()).st_ino
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata: dict | None = None
        self.tensors: dict[str, TensorEntry] = {}
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; arrays that were handed out keep it mapped until they go."""
        try:
            self._map.close()
        except BufferError:
            return  # an array still refers to the map: the map goes with the last of them

    def flat(self, name: str) -> np.ndarray:
        """All elements of `name` as a read-only 1-D view (uint16 for BF16)."""
        entry = self.tensors[name]
        dtype = np.dtype(_NUMPY.get(entry.dtype, "u1"))
        if entry.start == entry.stop:
            return np.empty(0, dtype)
        return np.frombuffer(self._map, dtype, (entry.stop - entry.start) // dtype.itemsize, entry.start)

    def read(self, name: str, offset: int, out: np.ndarray) -> None:
        """Copy elements of `name` from number `offset` on into the flat array `out`, which has their dtype.

        Their pages are not mapped: for much of a file that is twice as fast as a copy out of `flat`. Several threads may
        read. Raises UserError when the file is no longer what it was.
        """
        data, place = memoryview(out).cast("B"), self.tensors[name].start + offset * out.itemsize
        # opened for each call: a checkpoint of many ranks has more files than a process may have open twice
        with open(self.path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise UserError(f"{self.path} was replaced while it was read: start again")
            while data:
                count = os.preadv(file.fileno(), [data[:_CHUNK]], place)
                if not count:
                    raise UserError(f"{self.path} has become shorter while it was read: copy or download it again")
                data, place = data[count:], place + count

    def release(self, name: str) -> None:
        """Drop the pages of `name` from this process (the file's pages stay in the system's cache): keeps RSS small."""
        entry = self.tensors[name]
        first = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.stop > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, entry.stop - first)

    def forget(self, name: str) -> None:
        """Drop the pages of `name` from the system's cache too: nobody will read it again soon."""
        self.release(name)
        entry = self.tensors[name]
        if entry.stop > entry.start:    # for a count of 0 the system takes the rest of the file
            with open(self.path, "rb", buffering=0) as file:
                drop_cached(file.fileno(), entry.start, entry.stop - entry.start)

    def crc32(self, name: str) -> int:
        """CRC-32 of the bytes of `name`."""
        entry, value = self.tensors[name], 0
        for start in range(entry.start, entry.stop, _CHUNK):
            value = zlib.crc32(self._map[start:min(start + _CHUNK, entry.stop)], value)
        self.release(name)
        return value

    def _read_header(self) -> None:
        bad = f"{self.path} is not a whole safetensors file: "
        remedy = ": copy or download it again"
        if self.size < 8:
            raise UserError(f"{bad}it has {self.size} bytes, at least 8 expected{remedy}")
        length = struct.unpack("<Q", self._map[:8])[0]
        if length > _MAX_HEADER:
            raise UserError(f"{bad}its first 8 bytes give a header of {length} bytes{remedy}")
        if 8 + length > self.size:
            raise UserError(f"{bad}its header takes {length} bytes, but the file has {self.size}{remedy}")
        try:
            header = json.loads(self._map[8:8 + length].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{bad}its header is not JSON ({error}){remedy}") from None
        if not isinstance(header, dict):
            raise UserError(f"{bad}its header is not a JSON object{remedy}")
        self.metadata = header.pop("__metadata__", None)
        entries = [(name, self._entry(name, values, 8 + length)) for name, values in header.items()]
        entries.sort(key=lambda item: (item[1].start, item[1].stop))
        position = 8 + length
        for name, entry in entries:
            if entry.start != position:
                raise UserError(f"{bad}tensor {name} starts at byte {entry.start}, {position} expected{remedy}")
            position = entry.stop
        if position != self.size:
            raise UserError(f"{bad}it has {self.size} bytes, its header asks for {position}{remedy}")
        self.tensors = dict(entries)

    def _entry(self, name: str, values: object, base: int) -> TensorEntry:
        try:
            dtype, shape = str(values["dtype"]), tuple(values["shape"])
            start, stop = values["data_offsets"]
            if not all(type(size) is int and abs(size) < 1 << 62 for size in (*shape, start, stop)) or len(shape) > 16:
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{self.path}: header entry of tensor {name[:80]} is malformed: "
                            f"{str(values)[:200]}") from None
        if dtype not in _BYTES:
            raise UserError(f"{self.path}: tensor {name} has unknown dtype {dtype}: known are {', '.join(_BYTES)}")
        if min(shape, default=0) < 0 or start < 0 or stop - start != math.prod(shape) * _BYTES[dtype]:
            raise UserError(f"{self.path}: tensor {name} of shape {list(shape)} and dtype {dtype} cannot fill its byte "
                            f"range {start}..{stop}")
        return TensorEntry(dtype, shape, base + start, base + stop)


class SafetensorsWriter:
    """Write a safetensors file tensor by tensor, in the order of `entries` (name, dtype in the format's name, shape).

    Use as a context manager: leaving it normally fsyncs and renames the temporary file to `path`; an exception removes
    it. `size` is the file's length in bytes.
    """

    def __init__(self, path: str | os.PathLike, entries: Sequence[tuple[str, str, tuple[int, ...]]],
                 metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        self._entries = list(entries)
        self._next = 0
        if len({name for name, _, _ in self._entries}) != len(self._entries):
            raise ValueError(f"{self.path}: a tensor name occurs twice")
        header = header_bytes(self._entries, metadata)
        self.size = len(header) + sum(_nbytes(dtype, shape) for _, dtype, shape in self._entries)
        with writing(self.path):
            self._file = open(self._temporary, "wb")
        self._flusher = Flusher(self._file.fileno())
        try:
            with writing(self.path):
                self._file.write(header)
        except BaseException:
            self._discard()
            raise

    def write(self, array: np.ndarray) -> int:
        """Append the next tensor's elements (any shape with the right bytes, C order); returns their CRC-32."""
        checksums: list[int] = []
        for data in self._checked(((array,),), checksums):
            self._append(data)
        return checksums[0]

    def write_all(self, tensors: Iterable[Iterable[np.ndarray]]) -> list[int]:
        """The next tensors, the elements of each in one or more arrays; returns their CRC-32s.

        A thread makes the arrays (a few of them are in memory at a time) and their checksums.
        """
        checksums: list[int] = []
        with contextlib.closing(ahead(self._checked(tensors, checksums))) as parts:
            for data in parts:
                self._append(data)
        return checksums

    def _checked(self, tensors: Iterable[Iterable[np.ndarray]], checksums: list[int]) -> Iterator[memoryview]:
        """Bytes to write; the checksum of every tensor that is complete goes into `checksums`."""
        for arrays in tensors:
            name, dtype, shape = self._entries[self._next]
            checksum, missing = 0, _nbytes(dtype, shape)
            for array in arrays:
                missing -= array.nbytes
                if missing < 0 or array.dtype.itemsize != _BYTES[dtype]:
                    raise ValueError(f"{self.path}: tensor {name} should be {dtype} {list(shape)}, got {array.dtype} "
                                     f"{list(array.shape)}")
                data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                for start in range(0, len(data), _CHUNK):
                    part = data[start:start + _CHUNK]
                    checksum = zlib.crc32(part, checksum)
                    yield part
            if missing:
                raise ValueError(f"{self.path}: tensor {name} should be {dtype} {list(shape)}, {missing} bytes are "
                                 "missing")
            self._next += 1
            checksums.append(checksum)

    def _append(self, data: memoryview) -> None:
        with writing(self.path):
            self._file.write(data)
        self._flusher.wrote(len(data))

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            if self._next != len(self._entries):
                raise ValueError(f"{self.path}: {len(self._entries) - self._next} tensors were not written")
            with writing(self.path):
                self._file.flush()
                if error := self._flusher.close():
                    raise error
                os.fsync(self._file.fileno())
                self._flusher.forget(self.size)
                self._file.close()
                os.replace(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        self._flusher.close()
        try:
            with contextlib.suppress(OSError):  # a full disk has no room for what is still buffered either
                self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)


def header_bytes(entries: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None) -> bytes:
    """Length field and header of a file with these tensors in this order, as the safetensors library writes them."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, dtype, shape in entries:
        stop = offset + _nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES[dtype]
