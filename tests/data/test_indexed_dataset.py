"""The .bin/.idx pair is Megatron's to the byte, appears whole or not at all, and damaged ones are refused."""

import errno
import struct
from unittest import mock

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, best_dtype, merge_datasets


def build(prefix, documents, dtype=np.int32):
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize()
    return IndexedDataset(prefix)


def test_bytes_are_those_of_megatrons_format(tmp_path):
    build(tmp_path / "d", [[1, 2, 3], [4, 500]], np.uint16)
    assert (tmp_path / "d.bin").read_bytes() == struct.pack("<5H", 1, 2, 3, 4, 500)
    assert (tmp_path / "d.idx").read_bytes() == (
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i", 3, 2) + struct.pack("<2q", 0, 6)
        + struct.pack("<3q", 0, 1, 2)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_round_trip_of_every_dtype(tmp_path, dtype):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 100, size).astype(dtype) for size in (3, 0, 7, 1)]
    dataset = build(tmp_path / "d", documents, dtype)
    assert len(dataset) == 4 and dataset.dtype == dtype and dataset.sizes.tolist() == [3, 0, 7, 1]
    for stored, document in zip((dataset[i] for i in range(4)), documents):
        assert stored.dtype == dtype and np.array_equal(stored, document)
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(dataset.get(2, 2, 3), documents[2][2:5])
    assert np.array_equal(dataset.get(2, 5), documents[2][5:])
    assert np.array_equal(dataset[-1], documents[-1])
    for bad in ((9, 0, None), (2, 5, 3), (2, -1, 1)):
        with pytest.raises(IndexError):
            dataset.get(*bad)


def test_documents_of_several_sequences(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "d") as builder:
        builder.add_item([1, 2])
        builder.add_item([3])
        builder.end_document()
        builder.add_documents(np.array([4, 5, 6]), np.array([1, 2]))
        builder.add_item([7])
        builder.end_document()
        builder.finalize()
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.document_indices.tolist() == [0, 2, 3, 4, 5]
    assert [dataset[i].tolist() for i in range(5)] == [[1, 2], [3], [4], [5, 6], [7]]


def test_merge_equals_building_in_one_go(tmp_path):
    documents = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    build(tmp_path / "a", documents[:1])
    build(tmp_path / "b", documents[1:])
    build(tmp_path / "whole", documents)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    for end in ("bin", "idx"):
        assert (tmp_path / f"merged.{end}").read_bytes() == (tmp_path / f"whole.{end}").read_bytes()
    build(tmp_path / "c", documents, np.uint16)
    with pytest.raises(UserError, match="cannot be merged"):
        merge_datasets([tmp_path / "a", tmp_path / "c"], tmp_path / "mixed")
    assert not list(tmp_path.glob("mixed*"))


def test_nothing_appears_before_the_end_or_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), IndexedDatasetBuilder(tmp_path / "d") as builder:
        builder.add_item([1, 2])
        assert not (tmp_path / "d.bin").exists()
        raise RuntimeError("stop")
    with pytest.raises(UserError, match="nothing to write"), IndexedDatasetBuilder(tmp_path / "e") as builder:
        builder.finalize()
    with pytest.raises(ValueError, match="do not fit"), IndexedDatasetBuilder(tmp_path / "f", np.uint16) as builder:
        builder.add_item([1, -100])
    assert not list(tmp_path.iterdir())


def test_a_rebuild_replaces_the_old_data(tmp_path):
    build(tmp_path / "d", [[1, 2, 3]])
    assert build(tmp_path / "d", [[9], [8]])[1].tolist() == [8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx"]


def test_damage_is_named(tmp_path):
    prefix = tmp_path / "d_text_document"
    build(prefix, [[1, 2, 3], [4, 5]])
    index, data = (tmp_path / f"d_text_document.{end}" for end in ("idx", "bin"))
    good_index, good_data = index.read_bytes(), data.read_bytes()
    with pytest.raises(FileNotFoundError, match="There is d_text_document in"):
        IndexedDataset(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="preprocess_data.py"):
        IndexedDataset(tmp_path / "other" / "x")
    for content, message in ((b"", "is empty"), (good_index[:20], "only 20 bytes"), (good_index[:-3], "cut short"),
                             (b"PK\x03\x04" + good_index[4:], "not an index"),
                             (good_index[:9] + b"\x02" + good_index[10:], "version 2"),
                             (good_index[:17] + b"\x63" + good_index[18:], "dtype code 99")):
        index.write_bytes(content)
        with pytest.raises(UserError, match=message):
            IndexedDataset(prefix)
    index.write_bytes(good_index)
    for content in (b"", good_data[:-4], good_data + b"abcd"):
        data.write_bytes(content)
        with pytest.raises(UserError, match="its index speaks of 20"):
            IndexedDataset(prefix)
    data.unlink()
    with pytest.raises(FileNotFoundError, match="d_text_document.bin"):
        IndexedDataset(prefix)


def test_small_vocabularies_take_two_bytes():
    assert best_dtype(8014) == np.uint16 and best_dtype(151343) == np.int32


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/x.bin: No space left on device"):
        with IndexedDatasetBuilder(tmp_path / "x") as builder:
            builder._stream.close()
            builder._stream = mock.Mock(write=full, close=full)   # closing writes what is buffered
            builder.add_item([1, 2])
    assert list(tmp_path.iterdir()) == []
