"""Sampling: what is cut off, that draws follow the distribution, that tensor-parallel shards agree with the whole."""

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation import vocab_shard
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.sampling import distribution, greedy, sampler
from mindspeed_llm.generation.vocab_shard import VocabShard
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.collectives import Group

ALONE = Group("alone", (0,), 0)


def shard(logits, vocab_size=None):
    logits = np.asarray(logits, np.float32)
    return VocabShard(logits, vocab_size or logits.shape[1], ALONE)


def drawing(seed):
    return sampler(GenerationConfig(do_sample=True, seed=seed))


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum()


def test_distribution_divides_by_temperature():
    logits = np.array([2.0, 1.0, -1.0], np.float32)
    np.testing.assert_allclose(distribution(logits, GenerationConfig(temperature=0.5)), softmax([4, 2, -2]), rtol=1e-12)


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)
    np.testing.assert_allclose(distribution(logits, GenerationConfig(top_p=0.6)), [0.625, 0.375], rtol=1e-6)
    assert len(distribution(logits, GenerationConfig(top_p=0.9))) == 3
    assert len(distribution(logits, GenerationConfig(top_p=0.01))) == 1


def test_draws_follow_the_distribution():
    """Chi-square over 4,000 draws at a fixed seed, 3 degrees of freedom: 16.3 is passed once in a thousand seeds."""
    logits = np.array([[0.3, -1.0, 1.2, 0.0, -3.0]], np.float32)
    choose = sampler(GenerationConfig(do_sample=True, temperature=0.8, top_k=4, seed=11))
    rows = shard(logits)
    counts = np.bincount([choose(rows, [0])[0] for _ in range(4000)], minlength=5)
    expected = 4000 * softmax(logits[0, :4] / 0.8)
    assert counts[4] == 0
    assert ((counts[:4] - expected) ** 2 / expected).sum() < 16.3
    uniform = np.full(4, 1000)
    assert ((counts[:4] - uniform) ** 2 / uniform).sum() > 16.3


def test_same_seed_same_draws_whatever_stands_beside():
    logits = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    both, alone = drawing(5), drawing(5)
    together = [both(shard(logits), [0, 1, 2]).tolist() for _ in range(20)]
    single = [int(alone(shard(logits[1:2]), [1])[0]) for _ in range(20)]
    assert [row[1] for row in together] == single
    other = drawing(6)
    assert [int(other(shard(logits[1:2]), [1])[0]) for _ in range(20)] != single


def test_greedy_takes_the_lowest_id_of_equals_and_no_padding():
    logits = [[1.0, 3.0, 3.0, 9.0], [0.0, 0.0, 0.0, 9.0]]
    assert greedy(shard(logits, vocab_size=3), [0, 1]).tolist() == [1, 0]


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_shards_agree_with_the_whole(monkeypatch, count):
    """Three ranks of 4 columns, of which 10 are real: the last shard has 2, and ties cross shards."""
    device.setup()
    logits = np.random.default_rng(1).integers(-3, 4, (5, 12)).astype(np.float32)
    ranks = [Group("tp", (0, 1, 2), rank) for rank in range(3)]
    parts = [VocabShard(logits[:, 4 * rank:4 * rank + 4], 10, group) for rank, group in enumerate(ranks)]
    whole = VocabShard(logits, 10, ALONE)
    sequences = [[row, 7, 7, 11] for row in range(5)]
    parts, whole = [part.penalized(sequences, [1.5] * 5) for part in parts], whole.penalized(sequences, [1.5] * 5)
    assert not np.array_equal(whole.logits, logits)
    np.testing.assert_array_equal(np.concatenate([part.logits for part in parts], axis=1), whole.logits)
    for method in ("top", "log_normalizers"):
        args = (count,) if method == "top" else ()
        sent = []
        monkeypatch.setattr(vocab_shard, "_gather", lambda array, group: sent.append(array) or array.repeat(3, axis=0))
        for part in parts:
            getattr(part, method)(*args)
        monkeypatch.setattr(vocab_shard, "_gather",
                            lambda array, group: np.concatenate(sent) if group.size == 3 else array)
        expected, found = getattr(whole, method)(*args), getattr(parts[1], method)(*args)
        if method == "top":
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
            assert found[1].shape == (5, count) and found[1].max() < 10
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            np.testing.assert_allclose(expected, np.log(np.exp(whole.logits[:, :10]).sum(axis=1)), rtol=1e-6)


def test_logits_that_are_no_numbers():
    with pytest.raises(UserError, match="NaN or infinity"):
        shard([[0.0, np.nan]])
