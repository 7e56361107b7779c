"""Every token is used once per epoch, samples overlap by the one label, and it is all repeatable and fast."""

import time
from collections import Counter

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.gpt_dataset import GPTDataset
from mindspeed_llm.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Documents whose tokens tell where they come from: document * 1000 + position. One is empty."""
    prefix = tmp_path_factory.mktemp("gpt") / "d"
    sizes = np.random.default_rng(1).integers(1, 60, 40)
    sizes[7] = 0
    tokens = np.concatenate([number * 1000 + np.arange(size) for number, size in enumerate(sizes)])
    with IndexedDatasetBuilder(prefix) as builder:
        builder.add_documents(tokens, sizes)
        builder.finalize()
    return IndexedDataset(prefix)


def stream(dataset):
    """The whole token stream, put together from the samples in order."""
    spans = [dataset.token_span(sample) for sample in range(len(dataset))]
    for left, right in zip(spans, spans[1:]):
        assert left[-1] == right[0]
    return np.concatenate([span[:-1] for span in spans] + [spans[-1][-1:]])


def test_one_epoch_holds_every_token_once(indexed):
    dataset = GPTDataset(indexed, (0, 40), None, 16, seed=3)
    tokens = stream(dataset)
    total = int(indexed.sizes.sum())
    assert len(dataset) == (total - 1) // 16 and dataset.epochs == 1
    assert len(set(tokens.tolist())) == tokens.size > total - 17
    inside = np.diff(tokens)[tokens[1:] % 1000 != 0]
    assert (inside == 1).all()  # documents run through unbroken
    order = [int(token) // 1000 for token in tokens if token % 1000 == 0]
    assert order != sorted(order)


def test_samples_are_shifted_and_typed(indexed):
    dataset = GPTDataset(indexed, (0, 40), None, 16, seed=3)
    sample = dataset[0]
    assert {key: (value.dtype, value.shape) for key, value in sample.items()} == {
        "tokens": (np.dtype(np.int64), (16,)), "labels": (np.dtype(np.int64), (16,)),
        "loss_mask": (np.dtype(np.float32), (16,))}
    assert np.array_equal(sample["tokens"][1:], sample["labels"][:-1]) and sample["loss_mask"].all()
    firsts = sorted(int(dataset[i]["tokens"][0]) for i in range(len(dataset)))
    assert firsts == sorted(int(dataset.token_span(i)[0]) for i in range(len(dataset)))
    assert [int(dataset[i]["tokens"][0]) for i in range(8)] != [int(dataset.token_span(i)[0]) for i in range(8)]


@pytest.mark.parametrize("num_samples", [1, 40, 95, 96, 150, 200, 250, 1000])
def test_many_epochs_use_tokens_evenly(indexed, num_samples):
    dataset = GPTDataset(indexed, (0, 40), num_samples, 16, seed=3)
    counts = Counter(stream(dataset).tolist())
    assert len(dataset) == num_samples
    assert max(counts.values()) <= dataset.epochs
    used = sum(counts.values())
    assert used == num_samples * 16 + 1 and used > (dataset.epochs - 1) * int(indexed.sizes.sum())


def test_an_unfinished_last_epoch_comes_last(indexed):
    total = int(indexed.sizes.sum())
    per_epoch = (total - 1) // 16
    num_samples = 2 * per_epoch + 5
    dataset = GPTDataset(indexed, (0, 40), num_samples, 16, seed=3)
    assert dataset.epochs == 3
    counts = Counter(int(t) for i in range(2 * per_epoch) for t in dataset[i]["tokens"])
    assert max(counts.values()) == 2


def test_samples_tell_where_documents_begin(indexed):
    plain, dataset = (GPTDataset(indexed, (0, 40), 300, 16, 3, reset) for reset in (False, True))
    several = 0
    for number in range(300):
        sample, bounds = dataset[number], dataset[number]["cu_seqlens"]
        assert "cu_seqlens" not in plain[number] and np.array_equal(plain[number]["tokens"], sample["tokens"])
        assert bounds[0] == 0 and bounds[-1] == 16 and (np.diff(bounds) > 0).all() and bounds.dtype == np.int32
        # a token is its document's first exactly where a boundary stands (the sample may begin within a document)
        assert np.flatnonzero(sample["tokens"] % 1000 == 0).tolist() in (bounds[:-1].tolist(), bounds[1:-1].tolist())
        several += bounds.size > 2
    assert several > 100


def test_split_range_is_respected(indexed):
    dataset = GPTDataset(indexed, (10, 20), 30, 16, seed=3)
    assert set((stream(dataset) // 1000).tolist()) <= set(range(10, 20))


def test_seed_decides(indexed):
    first, same, other = (GPTDataset(indexed, (0, 40), 300, 16, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[i]["tokens"], same[i]["tokens"]) for i in range(300))
    assert any(not np.array_equal(first[i]["tokens"], other[i]["tokens"]) for i in range(10))


def test_too_little_text_is_refused(indexed):
    with pytest.raises(UserError, match="too few for one sample"):
        GPTDataset(indexed, (0, 2), None, 4096, seed=3)
    with pytest.raises(UserError, match="no tokens"):
        GPTDataset(indexed, (7, 8), 4, 16, seed=3)
    assert len(GPTDataset(indexed, (0, 2), 3, 4096, seed=3)[2]["tokens"]) == 4096


def test_a_hundred_million_tokens_index_in_seconds():
    class Sizes:
        prefix = "synthetic"
        sizes = np.random.default_rng(0).integers(50, 1500, 130_000).astype(np.int32)

    start = time.monotonic()
    dataset = GPTDataset(Sizes(), (0, 130_000), 2 * 24_000, 4096, seed=1)
    assert dataset.epochs == 2 and time.monotonic() - start < 5
