"""Blends follow their weights, global batches do not depend on the number of ranks, batches are stacked rightly."""

import numpy as np
import pytest

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.batch import build_train_valid_test, collate, parse_split
from mindspeed_llm.data.blending import BlendedDataset, blending_indices, parse_data_path, samples_per_dataset
from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_llm.data.samplers import BatchSampler


def test_data_path_forms():
    assert parse_data_path(["a"]) == (["a"], None)
    assert parse_data_path(["a", "1/2"]) == (["a", "1/2"], None)
    assert parse_data_path(["0.3", "a", "0.7", "b"]) == (["a", "b"], [0.3, 0.7])
    assert parse_data_path(["3", "a", "1", "b"])[1] == [0.75, 0.25]
    for words, message in (([], "--data-path PREFIX"), (["0.3", "a", "b"], "alternate"), (["a", "0.3"], "alternate"),
                           (["0.3"], "alternate"), (["0", "a", "1", "b"], "above 0")):
        with pytest.raises(UserError, match=message):
            parse_data_path(words)


@pytest.mark.parametrize("shares", [(3, 7), (1, 1), (1, 2, 4), (1, 999), (5,)])
def test_blend_keeps_to_the_weights_all_along(shares):
    weights = [share / sum(shares) for share in shares]
    datasets, samples = blending_indices(weights, 1000)
    for steps in (1, 10, 333, 1000):
        counts = [int((datasets[:steps] == d).sum()) for d in range(len(shares))]
        assert all(abs(count - weight * steps) < len(shares) for count, weight in zip(counts, weights))
        assert all(count <= most for count, most in zip(counts, samples_per_dataset(weights, steps)))
    for number in range(len(shares)):
        mine = samples[datasets == number]
        assert np.array_equal(mine, np.arange(mine.size))


def test_largest_error_first_by_hand():
    datasets, samples = blending_indices([0.75, 0.25], 8)
    assert datasets.tolist() == [0, 1, 0, 0, 0, 1, 0, 0] and samples.tolist() == [0, 0, 1, 2, 3, 1, 4, 5]


def test_blended_dataset_refuses_too_few_samples():
    blend = BlendedDataset([["a0", "a1", "a2"], ["b0"]], [0.75, 0.25], 4)
    assert [blend[i] for i in range(len(blend))] == ["a0", "b0", "a1", "a2"]
    with pytest.raises(ValueError, match="3 are needed"):
        BlendedDataset([["a0", "a1"], ["b0"]], [0.75, 0.25], 4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_global_batches_do_not_depend_on_the_ranks(shuffle):
    def global_batches(size, micro, consumed=0, count=6):
        ranks = [iter(BatchSampler(10, consumed, micro, rank, size, shuffle, seed=7)) for rank in range(size)]
        steps = 8 // (micro * size)
        return [[index for _ in range(steps) for rank in ranks for index in next(rank)] for _ in range(count)]

    expected = global_batches(1, 1)
    assert expected == global_batches(1, 4) == global_batches(2, 2) == global_batches(4, 1) == global_batches(8, 1)
    assert global_batches(2, 1, consumed=24, count=3) == expected[3:]
    flat = [index for batch in expected for index in batch]
    assert all(sorted(flat[k:k + 10]) == list(range(10)) for k in (0, 10, 20, 30))
    assert (flat[:10] == flat[10:20]) is (not shuffle)


def test_sampler_counts_what_was_consumed():
    sampler = BatchSampler(10, 4, 2, 1, 2)
    batches = iter(sampler)
    assert [next(batches), next(batches)] == [[6, 7], [0, 1]] and sampler.consumed_samples == 12
    for arguments in ((0, 0, 1, 0, 1), (5, 0, 0, 0, 1), (5, -1, 1, 0, 1), (5, 0, 1, 2, 2)):
        with pytest.raises(UserError):
            BatchSampler(*arguments)


def sample(tokens, bounds=None):
    tokens = np.array(tokens, np.int64)
    result = {"tokens": tokens, "labels": tokens + 1, "loss_mask": np.ones(tokens.size, np.float32)}
    if bounds is not None:
        result["cu_seqlens"] = np.array(bounds, np.int32)
    return result


def test_collate_fills_up_shorter_samples():
    batch = collate([sample([1, 2, 3]), sample([4])], pad_id=9)
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 9, 9]] and batch["labels"].tolist() == [[2, 3, 4], [5, 0, 0]]
    assert batch["loss_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and "cu_seqlens" not in batch
    assert [batch[key].dtype for key in ("tokens", "labels", "loss_mask")] == [np.int64, np.int64, np.float32]


def test_collate_flattens_the_boundaries():
    batch = collate([sample([1, 2, 3, 4, 5], [0, 2, 5]), sample([6, 7, 8], [0, 1, 3]), sample([9, 9, 9, 9, 9])])
    assert batch["cu_seqlens"].tolist() == [0, 2, 5, 6, 8, 10, 15] and batch["cu_seqlens"].dtype == np.int32


def test_split():
    assert parse_split("100,0,0", 7) == [(0, 7), None, None]
    assert parse_split("98,1,1", 200) == [(0, 196), (196, 198), (198, 200)]
    assert parse_split("0.5,0.5", 10) == [(0, 5), (5, 10), None]
    for split in ("", "a,b,c", "1,2,3,4", "-1,2,0", "0,0,0"):
        with pytest.raises(UserError, match="--split"):
            parse_split(split, 10)
    assert parse_split("98,1,1", 20) == [(0, 20), (20, 20), (20, 20)]


def write_text(prefix, first, count):
    with IndexedDatasetBuilder(prefix) as builder:
        for number in range(count):
            builder.add_item([first + number] * 20)
            builder.end_document()
        builder.finalize()


def test_build_pretraining_sets(tmp_path):
    write_text(tmp_path / "a", 0, 50)
    write_text(tmp_path / "b", 1000, 50)
    config = DataConfig(data_path=(str(tmp_path / "a"),), split="80,20,0")
    train, valid, test = build_train_valid_test(config, seq_length=8, seed=1, num_samples=(200, 10, 5))
    assert (len(train), len(valid), test) == (200, 10, None)
    assert {int(t) for i in range(200) for t in train[i]["tokens"]} == set(range(40))
    assert {int(t) for i in range(10) for t in valid[i]["tokens"]} <= set(range(40, 50))
    config = DataConfig(data_path=(str(tmp_path / "a"),), split="999,1,0")
    assert len(build_train_valid_test(config, seq_length=8, seed=1, num_samples=(9, 0, 0))[0]) == 9
    with pytest.raises(UserError, match="nothing is left for valid"):
        build_train_valid_test(config, seq_length=8, seed=1, num_samples=(9, 1, 0))
    config = DataConfig(data_path=("0.25", str(tmp_path / "a"), "0.75", str(tmp_path / "b")))
    train, valid, _ = build_train_valid_test(config, seq_length=8, seed=1, num_samples=(400, 0, 0))
    assert sum(int(train[i]["tokens"][0]) >= 1000 for i in range(400)) == 300 and valid is None
    config = DataConfig(data_path=(str(tmp_path / "a"), str(tmp_path / "b")))
    train, _, _ = build_train_valid_test(config, seq_length=8, seed=1, num_samples=(40, 0, 0))
    assert sum(int(train[i]["tokens"][0]) >= 1000 for i in range(40)) == 20
    train, _, _ = build_train_valid_test(config, seq_length=8, seed=1, num_samples=(900, 0, 0), kind="text")
    assert sum(int(train[i]["tokens"][0]) >= 1000 for i in range(900)) == 450 and len(train) == 900


def test_build_instruction_sets(tmp_path, glm_tokenizer):
    for prefix, first in (("a", 0), ("b", 100)):
        for field in ("input_ids", "attention_mask", "labels"):
            with IndexedDatasetBuilder(tmp_path / f"{prefix}_packed_{field}_document") as builder:
                for number in range(10):
                    builder.add_item([1, 1, 1] if field == "attention_mask" else [first + number, 5, 6])
                    builder.end_document()
                builder.finalize()
    config = DataConfig(data_path=("1", str(tmp_path / "a"), "1", str(tmp_path / "b")), no_pad_to_seq_lengths=True,
                        pad_to_multiple_of=4)
    train, _, _ = build_train_valid_test(config, seq_length=16, seed=1, num_samples=(20, 0, 0), kind="instruction",
                                         tokenizer=glm_tokenizer)
    assert sorted(int(train[i]["tokens"][0]) for i in range(20)) == [*range(10), *range(100, 110)]
    assert train[0]["tokens"].tolist()[1:] == [5, 6, glm_tokenizer.pad_id]
    with pytest.raises(ValueError, match="pad_id or tokenizer"):
        build_train_valid_test(config, seq_length=16, seed=1, num_samples=(20, 0, 0), kind="instruction")
