"""Megatron's indexed data set: `<prefix>.bin` holds the tokens of all sequences, `<prefix>.idx` where each one lies.

Layout of the index, little-endian: magic `MMIDIDX\\0\\0`; u64 version 1; u8 dtype code; u64 number of sequences N; u64
number of document indices D; i32[N] sizes in tokens; i64[N] byte offsets in the .bin; i64[D] document indices
(document d spans the sequences from indices[d] to indices[d + 1]).
"""

import contextlib
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.config.errors import UserError, writing

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def best_dtype(vocab_size: int) -> np.dtype:
    """uint16 for small vocabularies, else int32 (Megatron's rule, with its margin below 65536)."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


class IndexedDatasetBuilder:
    """Writes a data set under temporary names and gives it its name when it is complete.

    Use it as a context manager: an exception removes what was written. `finalize` makes the files appear.

    Args:
        prefix: path without `.bin` / `.idx`; the folder is made.
        dtype: one of `DTYPES`. Labels need int32 for their -100.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype | type = np.int32):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        if self.dtype not in CODES:
            raise ValueError(f"dtype {self.dtype} cannot be stored: use one of {', '.join(map(str, CODES))}")
        self._temporary = {end: f"{self.prefix}.{end}.tmp-{os.getpid()}" for end in ("bin", "idx")}
        with writing(f"{self.prefix}.bin"):
            Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self._temporary["bin"], "wb")
        self._sizes: list[np.ndarray] = []
        self._pending: list[int] = []
        self._documents: list[np.ndarray] = [np.zeros(1, np.int64)]
        self.sequences = 0
        self.tokens = 0

    def __enter__(self) -> "IndexedDatasetBuilder":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: object) -> None:
        self.abort()

    def add_item(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append one sequence to the current document."""
        array = self._convert(tokens)
        self._write(array)
        self._pending.append(array.size)
        self.sequences += 1
        self.tokens += array.size

    def end_document(self) -> None:
        """The sequences since the last call make one document."""
        self._flush()
        self._documents.append(np.array([self.sequences], np.int64))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append many documents of one sequence each: all tokens in one array, and the length of each."""
        array = self._convert(tokens)
        lengths = np.asarray(lengths, np.int32)
        if int(lengths.sum()) != array.size:
            raise ValueError(f"lengths sum to {int(lengths.sum())}, but there are {array.size} tokens")
        self._flush()
        self._write(array)
        self._sizes.append(lengths)
        self._documents.append(self.sequences + np.arange(1, lengths.size + 1, dtype=np.int64))
        self.sequences += lengths.size
        self.tokens += array.size

    def add_dataset(self, prefix: str | Path) -> None:
        """Append all documents of another data set of the same dtype."""
        part = IndexedDataset(prefix)
        if part.dtype != self.dtype:
            raise UserError(f"{prefix} stores {part.dtype}, {self.prefix} stores {self.dtype}: they cannot be merged")
        self._flush()
        with open(f"{prefix}.bin", "rb") as source, writing(f"{self.prefix}.bin"):
            shutil.copyfileobj(source, self._stream, 16 << 20)
        self._sizes.append(np.array(part.sizes))
        self._documents.append(self.sequences + part.document_indices[1:])
        self.sequences += len(part)
        self.tokens += int(part.sizes.sum(dtype=np.int64))

    def finalize(self) -> None:
        """Make the files appear under their names: `seal` and `publish`."""
        self.seal()
        self.publish()

    def seal(self) -> None:
        """Write and sync all that is to be written, still under temporary names.

        Raises:
            UserError: nothing was added.
        """
        if self.sequences == 0:
            self.abort()
            raise UserError(f"{self.prefix}: nothing to write, there is not a single sequence")
        with writing(f"{self.prefix}.bin"):
            self._sync(self._stream)
        sizes = self.sizes
        documents = np.concatenate(self._documents)
        pointers = np.zeros(sizes.size, np.int64)
        np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
        pointers *= self.dtype.itemsize
        with writing(f"{self.prefix}.idx"), open(self._temporary["idx"], "wb") as index:
            index.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], sizes.size, documents.size))
            for array in (sizes.astype("<i4"), pointers.astype("<i8"), documents.astype("<i8")):
                index.write(array.data)
            self._sync(index)

    def publish(self) -> None:
        """Rename the sealed files. Several data sets that belong together: seal all, then publish all."""
        # an old index must not describe the new tokens for even a moment
        Path(f"{self.prefix}.idx").unlink(missing_ok=True)
        for end in ("bin", "idx"):
            os.replace(self._temporary[end], f"{self.prefix}.{end}")

    @property
    def sizes(self) -> np.ndarray:
        """int32[N]: tokens of every sequence added so far."""
        self._flush()
        return np.concatenate(self._sizes) if self._sizes else np.zeros(0, np.int32)

    def abort(self) -> None:
        """Remove the temporary files. Harmless after `finalize`."""
        with contextlib.suppress(OSError):  # a full disk has no room for what is still buffered either
            self._stream.close()
        for path in self._temporary.values():
            Path(path).unlink(missing_ok=True)

    def _write(self, array: np.ndarray) -> None:
        with writing(f"{self.prefix}.bin"):
            self._stream.write(array.data)

    def _convert(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.ascontiguousarray(tokens)
        if array.dtype != self.dtype:
            if array.size and self.dtype.kind in "iu":
                limits = np.iinfo(self.dtype)
                if array.min() < limits.min or array.max() > limits.max:
                    raise ValueError(f"{self.prefix}: tokens {array.min()}..{array.max()} do not fit {self.dtype}")
            array = array.astype(self.dtype)
        return array

    def _flush(self) -> None:
        if self._pending:
            self._sizes.append(np.array(self._pending, np.int32))
            self._pending = []

    @staticmethod
    def _sync(stream) -> None:
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()


def merge_datasets(parts: Sequence[str | Path], output: str | Path) -> None:
    """Concatenate data sets (prefixes, all of one dtype) into a new one."""
    if not parts:
        raise ValueError("no data sets to merge")
    with IndexedDatasetBuilder(output, IndexedDataset(parts[0]).dtype) as builder:
        for part in parts:
            builder.add_dataset(part)
        builder.finalize()


class IndexedDataset:
    """Memory-mapped reader.

    Attributes:
        dtype: of the stored tokens.
        sizes: int32[N], tokens per sequence.
        pointers: int64[N], byte offsets.
        document_indices: int64[D].

    Raises:
        FileNotFoundError: one of the two files is missing.
        UserError: a file is empty, cut short, of another format, or the two do not belong together.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        index_path, data_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index_path, data_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist.{_suggest(self.prefix)}")
        index_bytes = index_path.stat().st_size
        if index_bytes < HEADER.size:
            state = "is empty" if index_bytes == 0 else f"has only {index_bytes} bytes"
            raise UserError(f"{index_path} {state}: make the data again with preprocess_data.py")
        with open(index_path, "rb") as stream:
            magic, version, code, count, documents = HEADER.unpack(stream.read(HEADER.size))
        if magic != MAGIC:
            raise UserError(f"{index_path} is not an index of Megatron's format (it begins with {magic!r})")
        if version != VERSION or code not in DTYPES:
            raise UserError(f"{index_path}: version {version}, dtype code {code}; known: version {VERSION}, "
                            f"dtype codes {min(DTYPES)}..{max(DTYPES)}")
        expected = HEADER.size + count * 12 + documents * 8
        if index_bytes != expected:
            raise UserError(f"{index_path} has {index_bytes} bytes, {expected} are wanted for its {count} sequences: "
                            "it is cut short or damaged, make the data again with preprocess_data.py")
        if count == 0:
            raise UserError(f"{index_path} holds no sequences")
        self.dtype = np.dtype(DTYPES[code])
        table = np.memmap(index_path, mode="r", dtype=np.uint8)
        self.sizes = np.frombuffer(table, "<i4", count, HEADER.size)
        self.pointers = np.frombuffer(table, "<i8", count, HEADER.size + count * 4)
        self.document_indices = np.frombuffer(table, "<i8", documents, HEADER.size + count * 12)
        self._check_tables(index_path)
        needed = int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize
        present = data_path.stat().st_size
        if present != needed:
            raise UserError(f"{data_path} has {present} bytes, its index speaks of {needed}: it is cut short or "
                            "belongs to another index, make the data again with preprocess_data.py")
        self._data = np.memmap(data_path, mode="r", dtype=self.dtype) if needed else np.zeros(0, self.dtype)

    def _check_tables(self, index_path: Path) -> None:
        """Sequences lie one behind the other from byte 0 on, documents are runs of them, in order."""
        sizes, pointers, documents = self.sizes, self.pointers, self.document_indices
        sound = (sizes.min() >= 0 and pointers[0] == 0
                 and np.array_equal(pointers[1:] - pointers[:-1], sizes[:-1].astype(np.int64) * self.dtype.itemsize)
                 and documents.size > 0 and documents[0] == 0 and documents[-1] <= sizes.size
                 and bool((documents[1:] >= documents[:-1]).all()))
        if not sound:
            raise UserError(f"{index_path}: the places of its sequences do not follow from their sizes, it is damaged: "
                            "make the data again with preprocess_data.py")

    def __len__(self) -> int:
        return self.sizes.size

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of one sequence, a read-only view [size] of the file."""
        return self.get(index)

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """`length` tokens (default: the rest) of a sequence, from `offset` on."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {self.prefix}, which has {len(self)}")
        size = int(self.sizes[index])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise IndexError(f"tokens {offset}..{offset + length} of a sequence of {size} tokens")
        start = int(self.pointers[index]) // self.dtype.itemsize + offset
        return self._data[start:start + length]


def _suggest(prefix: str) -> str:
    folder = Path(prefix).parent
    near = sorted(path.stem for path in folder.glob(Path(prefix).name + "*.idx")) if folder.is_dir() else []
    if near:
        return f" There is {', '.join(near[:3])} in {folder}: --data-path takes such a name without .bin/.idx"
    return " --data-path takes the path of a .bin/.idx pair without the ending; make it with preprocess_data.py"
