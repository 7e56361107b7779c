"""Prefill and decode with a KV cache give what whole passes give."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.generator import PromptLengthError, plan_passes
from mindspeed_llm.generation.kv_cache import BlockPool, SharedPrefix
from tests.generation.golden_model import full_logits, golden, golden_generator

TOLERANCE = 1e-5  # fp32 rounding of logits of size 1; measured 9e-7
LENGTHS = (3, 7, 1, 12)


def prompts() -> list[list[int]]:
    return [row[:length] for row, length in zip(golden()["ids"].tolist(), LENGTHS)]


def test_cached_logits_equal_the_recorded_ones():
    generator, ids = golden_generator(), golden()["ids"].tolist()
    caches, logits = generator.prefill(prompts())
    for step in range(4):
        for row, length in enumerate(LENGTHS):
            np.testing.assert_allclose(logits.logits[row], golden()["logits"][row, length - 1 + step], rtol=0,
                                       atol=TOLERANCE)
        logits = generator.decode(caches, [ids[row][length + step] for row, length in enumerate(LENGTHS)])
    assert [cache.length for cache in caches] == [length + 4 for length in LENGTHS]


def test_tolerance_sees_a_cache_that_is_off_by_one():
    """Planted bug: the cache believes that it is one token longer."""
    generator, row = golden_generator(), golden()["ids"].tolist()[0]
    (cache,), _ = generator.prefill([row[:5]])
    cache.length -= 1
    wrong = generator.decode([cache], [row[5]]).logits[0]
    assert np.abs(wrong - golden()["logits"][0, 5]).max() > 100 * TOLERANCE


def test_prefill_in_pieces_equals_prefill_at_once(monkeypatch):
    monkeypatch.setattr("mindspeed_llm.generation.generator.PASS_TOKENS", 5)
    _, logits = golden_generator().prefill(prompts())
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(logits.logits[row], golden()["logits"][row, length - 1], rtol=0, atol=TOLERANCE)


def test_passes_keep_the_limit_and_the_order():
    caches = [golden_generator().new_cache() for _ in range(4)]
    planned = plan_passes(caches, [[1, 2], [3], [4] * 7, [5, 6]], 3)
    assert [one.tokens for one in planned] == [3, 3, 3, 3]
    assert [one.wanted for one in planned] == [[0, 1], [], [], [0, 1]]
    assert planned[3].caches == [caches[2], caches[3]]


@pytest.fixture
def small_blocks(monkeypatch):
    """The pool of a generator that keeps 3 tokens in a block and grows by 2 blocks."""
    monkeypatch.setattr("mindspeed_llm.generation.kv_cache.SLAB", 2)
    pool = BlockPool(3)
    monkeypatch.setattr(golden_generator(), "_pool", pool)
    return pool


def test_cache_grows_block_by_block_and_gives_them_back(small_blocks):
    row = golden()["ids"].tolist()[1]
    generator = golden_generator()
    (cache,), logits = generator.prefill([row[:1]])
    for count, token in enumerate(row[1:], start=2):
        logits = generator.decode([cache], [token])
        assert small_blocks.used == -(-count // 3)
    np.testing.assert_allclose(logits.logits[0], golden()["logits"][1, -1], rtol=0, atol=TOLERANCE)
    cache.truncate(4)
    assert small_blocks.used == 2
    del cache
    assert small_blocks.used == 0           # and the memory is given back: a layer begins with one slab
    keys, values = small_blocks.slabs(0, Tensor(np.zeros((1, 1, 2, 8), np.float32)))
    assert (len(keys), len(values), keys[0].shape) == (1, 1, (2, 3, 2, 8))


def test_forks_share_blocks_until_they_write(small_blocks):
    generator, row = golden_generator(), golden()["ids"].tolist()[2]
    (cache,), _ = generator.prefill([row[:7]])
    twin, other = cache.fork(), cache.fork()
    assert small_blocks.used == 3
    generator.extend([twin, other], [[90, 91], [92]])
    assert small_blocks.used == 5           # the third block is written thrice
    logits = generator.decode([cache], [row[7]])
    assert small_blocks.used == 5           # the last holder writes into it
    np.testing.assert_allclose(logits.logits[0], golden()["logits"][2, 7], rtol=0, atol=TOLERANCE)
    del twin, other
    assert small_blocks.used == 3


def test_fork_and_truncate_do_not_touch_the_original():
    generator, row = golden_generator(), golden()["ids"].tolist()[2]
    (cache,), _ = generator.prefill([row[:6]])
    twin = cache.fork()
    twin.truncate(3)
    generator.extend([twin], [[90, 91, 92, 93]])
    logits = generator.decode([cache], [row[6]])
    np.testing.assert_allclose(logits.logits[0], golden()["logits"][2, 6], rtol=0, atol=TOLERANCE)


def test_shared_prefix_equals_a_whole_prompt():
    generator, row = golden_generator(), golden()["ids"].tolist()[3]
    (prefix,), _ = generator.prefill([row[:4]])
    logits = generator.extend([SharedPrefix(prefix), SharedPrefix(prefix)], [row[4:9], row[4:11]])
    assert prefix.length == 4
    for index, last in enumerate((8, 10)):
        np.testing.assert_allclose(logits.logits[index], golden()["logits"][3, last], rtol=0, atol=TOLERANCE)


def test_greedy_equals_recomputing_everything():
    stop = 51
    answers = generate(golden_generator(), prompts(), GenerationConfig(8, frozenset([stop])))
    reasons = set()
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = list(prompt)
        while len(ids) - len(prompt) < 8 and (token := int(full_logits(ids)[-1].argmax())) != stop:
            ids.append(token)
        assert answer.ids == ids[len(prompt):]
        reasons.add(answer.reason)
    assert reasons == {"stop", "length"}


def penalized(logits: np.ndarray, ids: list[int], penalty: float) -> np.ndarray:
    """As Hugging Face's RepetitionPenaltyLogitsProcessor states it, in a plain loop."""
    changed = logits.astype(np.float64)
    for token in set(ids):
        changed[token] = changed[token] * penalty if changed[token] < 0 else changed[token] / penalty
    return changed


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_equals_recomputing_everything(penalty):
    answers = generate(golden_generator(), prompts(), GenerationConfig(8, repetition_penalty=penalty))
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(penalized(full_logits(ids)[-1], ids, penalty).argmax()))
        assert answer.ids == ids[len(prompt):]
    assert answers != generate(golden_generator(), prompts(), GenerationConfig(8))


def test_log_probs_are_those_of_the_model():
    """Before temperature and penalty, whatever chose the token."""
    config = GenerationConfig(6, do_sample=True, temperature=1.5, top_k=9, repetition_penalty=1.2, log_probs=True)
    for prompt, answer in zip(prompts(), generate(golden_generator(), prompts(), config), strict=True):
        rows = full_logits([*prompt, *answer.ids])[len(prompt) - 1:-1].astype(np.float64)
        expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(answer.log_probs, expected[np.arange(6), answer.ids], rtol=0, atol=TOLERANCE)


def test_a_sequence_decodes_to_the_same_bits_alone_and_in_a_batch():
    generator, ids = golden_generator(), golden()["ids"].tolist()
    alone = [generator.prefill([prompt])[0][0] for prompt in prompts()]
    together = [cache.fork() for cache in alone]
    for step in range(4):
        tokens = [ids[row][length + step] for row, length in enumerate(LENGTHS)]
        logits = generator.decode(together, tokens).logits
        for row, (cache, token) in enumerate(zip(alone, tokens, strict=True)):
            assert np.array_equal(generator.decode([cache], [token]).logits[0], logits[row])


def test_generation_stops_at_the_longest_sequence():
    (answer,) = generate(golden_generator(), [list(range(60))], GenerationConfig(100))
    assert (len(answer.ids), answer.reason) == (4, "positions")


@pytest.mark.parametrize(("prompt", "words"), [([], "empty"), ([1] * 64, "64 tokens.*--seq-length")])
def test_prompt_that_cannot_be_answered(prompt, words):
    with pytest.raises(PromptLengthError, match=words):
        golden_generator().prefill([prompt])
