"""Log-probabilities and texts are those of whole passes, whatever is shared, batched or reordered."""

import numpy as np
import pytest

from mindspeed_llm.tasks.evaluation.language_model import ParallelLanguageModel, Request
from mindspeed_llm.tasks.evaluation.prefixes import shared_prefixes
from tests.generation.golden_model import full_logits, golden_generator, log_probs


def ids(rng, count):
    return rng.integers(0, 96, count).tolist()


def whole(context, continuation):
    """(log-probability, whether greedy) of a continuation, token by token, each by a pass without cache."""
    total, best = 0.0, True
    for place, token in enumerate(continuation):
        row = log_probs([*context, *continuation[:place]])
        total, best = total + row[token], best and row.argmax() == token
    return total, best


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_log_likelihoods_equal_whole_passes(batch_size):
    """Choices of one token and of several, mixed; contexts that share a beginning, contain one another, or are one
    token.
    """
    rng = np.random.default_rng(2)
    common = ids(rng, 9)
    likeliest = [int(full_logits(common)[-1].argmax())]
    requests = [Request(common + ids(rng, length), [[17], [3], [95]]) for length in (5, 1, 7)]
    requests += [Request(common, [likeliest, [4, 5, 6], [4, 5]]), Request(common, [[8, 9]]), Request([5], [[6], [7, 1]])]
    found = ParallelLanguageModel(golden_generator(), batch_size).log_likelihoods(requests)
    for request, rated in zip(requests, found, strict=True):
        wanted = [whole(request.context, continuation) for continuation in request.continuations]
        np.testing.assert_allclose(rated.log_probs, [value for value, _ in wanted], rtol=0, atol=2e-5)
        assert rated.greedy.tolist() == [best for _, best in wanted]
    assert found[3].greedy[0]


def test_written_answers_equal_whole_passes():
    """The likeliest tokens one after the other; an end that `ended` sees, and a stop token."""
    rng = np.random.default_rng(3)
    common = ids(rng, 6)
    prompts = [common + ids(rng, length) for length in (3, 1, 5)]
    wanted = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(20):
            text.append(int(full_logits(text)[-1].argmax()))
        wanted.append(text[len(prompt):])
    model = ParallelLanguageModel(golden_generator(), 2)
    assert model.generate(prompts, 20, frozenset(), lambda ids: False) == wanted
    assert model.generate(prompts, 20, frozenset(), lambda ids: True) == [answer[:16] for answer in wanted]
    stop = wanted[0][3]
    stopped = model.generate(prompts, 20, frozenset({stop}), lambda ids: False)
    assert stopped == [answer[:answer.index(stop)] if stop in answer else answer for answer in wanted]


def test_shared_prefixes_are_found_in_any_order():
    """Two subjects of unlike length, a question of its own: computed tokens are as few as one shared level allows."""
    first, second = list(range(100, 140)), list(range(200, 220))
    sequences = [first + [1], second + [1], [7, 8, 9], first + [2, 3], second + [4], first + [2, 5]]
    groups = shared_prefixes(sequences, [len(ids) - 1 for ids in sequences])
    assert sorted((group.length, sorted(group.members)) for group in groups) == [
        (0, [2]), (20, [1, 4]), (40, [0, 3, 5])]
    assert shared_prefixes([], []) == []


def test_shared_prefixes_leave_what_must_be_computed():
    same = [[1, 2, 3]] * 3
    assert [(group.length, len(group.members)) for group in shared_prefixes(same, [2, 2, 1])] == [(1, 3)]
    chain = [[1] * length for length in range(1, 1200)]  # each begins the next
    assert sum(len(group.members) for group in shared_prefixes(chain, [len(ids) - 1 for ids in chain])) == 1199
