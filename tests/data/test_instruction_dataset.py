"""Labels are shifted by one, padding and prompts have no loss, packed conversations are kept apart."""

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_llm.data.instruction_dataset import InstructionDataset, PackedRows

PAD = 99


def write(prefix, rows):
    """rows: (input_ids, attention_mask, labels)."""
    for place, field in enumerate(("input_ids", "attention_mask", "labels")):
        with IndexedDatasetBuilder(f"{prefix}_packed_{field}_document") as builder:
            for row in rows:
                builder.add_item(row[place])
                builder.end_document()
            builder.finalize()
    return PackedRows(str(prefix))


@pytest.fixture
def loose(tmp_path):
    return write(tmp_path / "loose", [([1, 2, 3, 4], [1] * 4, [-100, -100, 3, 4]), ([5, 6, 7], [1] * 3, [-100, 9, 7])])


@pytest.fixture
def packed(tmp_path):
    row = ([1, 2, 3, 4, 5, 6, 7, PAD, PAD, PAD], [1, 1, 1, 2, 2, 2, 2, 0, 0, 0],
           [-100, 2, 3, 4, -100, 6, 7, -100, -100, -100])
    full = (list(range(10)), [1] * 10, [-100] + list(range(1, 10)))
    return write(tmp_path / "packed", [row, full])


def by_first(dataset, first):
    return next(dataset[i] for i in range(len(dataset)) if dataset[i]["tokens"][0] == first)


def test_fixed_length(loose):
    sample = by_first(InstructionDataset(loose, (0, 2), None, 8, 1, PAD), 1)
    assert sample["tokens"].tolist() == [1, 2, 3, 4, PAD, PAD, PAD, PAD]
    assert sample["labels"].tolist() == [0, 3, 4, 0, 0, 0, 0, 0]
    assert sample["loss_mask"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert [sample[key].dtype for key in ("tokens", "labels", "loss_mask")] == [np.int64, np.int64, np.float32]
    assert not loose.packed and "cu_seqlens" not in sample


def test_labels_may_differ_from_the_next_token(loose):
    """The end mark between turns is a label only."""
    sample = by_first(InstructionDataset(loose, (0, 2), None, 8, 1, PAD), 5)
    assert sample["labels"].tolist()[:3] == [9, 7, 0] and sample["loss_mask"].sum() == 2


def test_dynamic_length(loose):
    dataset = InstructionDataset(loose, (0, 2), None, 8, 1, PAD, pad_to_multiple_of=2)
    assert sorted(dataset[i]["tokens"].size for i in range(2)) == [4, 4]
    dataset = InstructionDataset(loose, (0, 2), None, 9, 1, PAD, pad_to_multiple_of=3)
    assert sorted(dataset[i]["tokens"].size for i in range(2)) == [3, 6]
    with pytest.raises(UserError, match="multiple of 4"):
        InstructionDataset(loose, (0, 2), None, 10, 1, PAD, pad_to_multiple_of=4)


def test_long_rows_are_cut(loose, caplog):
    sample = by_first(InstructionDataset(loose, (0, 2), None, 3, 1, PAD), 1)
    assert sample["tokens"].tolist() == [1, 2, 3] and sample["labels"].tolist() == [0, 3, 0]
    assert "longer than --seq-length 3" in caplog.text


def test_packed_rows(packed):
    dataset = InstructionDataset(packed, (0, 2), None, 10, 1, PAD)
    sample = by_first(dataset, 1)
    assert sample["cu_seqlens"].tolist() == [0, 3, 7, 10] and sample["cu_seqlens"].dtype == np.int32
    # the label 4 of the second conversation's first token must not be asked of the first one's last token
    assert sample["loss_mask"].tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert sample["labels"].tolist() == [2, 3, 0, 0, 6, 7, 0, 0, 0, 0]
    full = by_first(dataset, 0)
    assert full["cu_seqlens"].tolist() == [0, 10] and full["loss_mask"].sum() == 9


def test_packed_rows_at_dynamic_length_lose_their_padding(packed):
    sample = by_first(InstructionDataset(packed, (0, 2), None, 10, 1, PAD, pad_to_multiple_of=5), 1)
    assert sample["tokens"].size == 10
    sample = by_first(InstructionDataset(packed, (0, 2), None, 14, 1, PAD, pad_to_multiple_of=7), 1)
    assert sample["tokens"].tolist() == [1, 2, 3, 4, 5, 6, 7] and sample["cu_seqlens"].tolist() == [0, 3, 7]


def test_epochs_are_shuffled_and_repeatable(tmp_path):
    rows = write(tmp_path / "d", [([i, 1], [1, 1], [-100, 1]) for i in range(20)])
    firsts = [[int(d[i]["tokens"][0]) for i in range(len(d))]
              for d in (InstructionDataset(rows, (5, 15), 30, 4, seed, PAD) for seed in (1, 1, 2))]
    assert firsts[0] == firsts[1] != firsts[2]
    epochs = [firsts[0][k:k + 10] for k in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(5, 15)) for epoch in epochs) and epochs[0] != epochs[1]


def test_files_of_different_runs_are_refused(tmp_path, loose):
    with IndexedDatasetBuilder(tmp_path / "loose_packed_labels_document") as builder:
        builder.add_documents(np.arange(7), np.array([3, 4]))
        builder.finalize()
    with pytest.raises(UserError, match="different runs"):
        PackedRows(str(tmp_path / "loose"))
    with pytest.raises(FileNotFoundError, match="none_packed_input_ids_document"):
        PackedRows(str(tmp_path / "none"))
