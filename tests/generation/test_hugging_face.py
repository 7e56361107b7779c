"""Generation says what Hugging Face's `generate` says: greedy search, repetition penalty, beam search, sampling."""

from dataclasses import replace

import numpy as np
import pytest

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.sampling import choose, distribution, random_stream
from tests.generation.recorded_generation import answers, beams, record, recorded_generator, rows, settings

DRAWS = 2000


@pytest.fixture(scope="module")
def answered():
    return answers(recorded_generator(), len(rows("prompts")))


@pytest.mark.parametrize("name", ["greedy", "penalized"])
def test_answers(answered, name):
    """Fifty prompts of up to 40 tokens, answers of up to 64, all in one engine."""
    assert len(rows("prompts")) == 50
    assert answered[name] == rows(name)
    assert len({len(answer) for answer in rows(name)}) > 20 and max(map(len, rows(name))) == 64


@pytest.mark.parametrize("name", ["beams", "penalized_beams"])
def test_beams(name):
    scores = record()[f"{name}_scores"]
    found_ids, found_scores = beams(recorded_generator(), name, len(scores))
    assert found_ids == rows(name)
    np.testing.assert_allclose(found_scores, scores, rtol=0, atol=1e-5)  # fp32 sums of 24 numbers of size 1


@pytest.mark.parametrize("number", range(4))
def test_draws_follow_hugging_faces_distribution(number):
    """The probabilities themselves; and draws by chi-square, which must not see the next setting in them."""
    how, expected = GenerationConfig(do_sample=True, **settings()[number]), record()["probabilities"][number]
    prompt = rows("prompts")[0]
    _, logits = recorded_generator().prefill([prompt])
    shard = logits.penalized([prompt], [how.repetition_penalty])
    values, ids = shard.top(how.top_k or shard.vocab_size)
    probabilities = np.zeros(len(expected))
    given = distribution(values[0], how)
    probabilities[ids[0, :len(given)]] = given
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    drawn = choose(shard.rows([0] * DRAWS), [replace(how, seed=seed) for seed in range(DRAWS)],
                   [random_stream(seed, 0) for seed in range(DRAWS)])
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any()
    assert _chi_square(counts, expected) < 1
    assert _chi_square(counts, record()["probabilities"][(number + 1) % 4]) > 1


def _chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic over what one in a thousand seeds passes; tokens expected less than 5 times are one class."""
    expected = DRAWS * probabilities
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    kept = (expected > 1e-6) | (counts > 0)
    statistic = ((counts - expected) ** 2 / expected)[kept].sum()
    freedom = kept.sum() - 1
    # Wilson and Hilferty's approximation of the 0.999 quantile
    return statistic / (freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3)
