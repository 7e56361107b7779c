"""Beam search against trying every answer, on the recorded model with its vocabulary cut down."""

import itertools

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.beam_search import beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.generator import Generator
from tests.generation.golden_model import full_logits, golden_generator

VOCAB, LENGTH = 5, 3
PROMPT = [70, 3, 41]


@pytest.fixture(scope="module")
def small():
    return Generator(golden_generator().chunks, VOCAB, 64)


def mean_log_prob(answer: tuple[int, ...]) -> float:
    logits = full_logits([*PROMPT, *answer])[len(PROMPT) - 1:-1, :VOCAB].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(np.mean(log_probs[np.arange(len(answer)), answer]))


def every_answer(stop_ids: frozenset[int]) -> list[tuple[float, tuple[int, ...]]]:
    """(score, ids) of all answers of up to LENGTH tokens, best first; a stop token ends one and is not in its ids."""
    found = []
    plain = [token for token in range(VOCAB) if token not in stop_ids]
    for length in range(1, LENGTH + 1):
        for body in itertools.product(plain, repeat=length - 1):
            ends = range(VOCAB) if length == LENGTH else sorted(stop_ids)
            for last in ends:
                ids = body if last in stop_ids else (*body, last)
                found.append((mean_log_prob((*body, last)), ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("stop_ids", [frozenset(), frozenset([2])])
def test_a_wide_beam_finds_the_best_answers(small, stop_ids):
    best = every_answer(stop_ids)
    beams = VOCAB if stop_ids == frozenset() else 4
    found = beam_search(small, PROMPT, GenerationConfig(LENGTH, stop_ids, num_beams=beams))
    assert len(found) == beams
    assert found[0].ids == best[0][1]
    for hypothesis in found:
        score = dict((ids, score) for score, ids in best)[hypothesis.ids]
        assert hypothesis.score == pytest.approx(score, abs=1e-5)
        assert hypothesis.reason == ("stop" if len(hypothesis.ids) < LENGTH else "length")
        assert len(hypothesis.log_probs) == len(hypothesis.ids)
        if hypothesis.reason == "length":
            assert sum(hypothesis.log_probs) == pytest.approx(score * LENGTH, abs=1e-5)
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)


def test_repetition_penalty_is_on_log_probabilities(small):
    """One beam takes the best penalized log-probability, which need not be the best penalized logit."""
    penalty, ids, total = 2.0, list(PROMPT), 0.0
    ids += [0, 3]  # of the small vocabulary: to be penalized from the start
    prompt = list(ids)
    for _ in range(4):
        logits = full_logits(ids)[-1, :VOCAB].astype(np.float64)
        scores = logits - np.log(np.exp(logits).sum())
        scores[sorted({token for token in ids if token < VOCAB})] *= penalty
        total += scores.max()
        ids.append(int(scores.argmax()))
    (found,) = beam_search(small, prompt, GenerationConfig(4, repetition_penalty=penalty))
    assert found.ids == tuple(ids[len(prompt):])
    assert found.score == pytest.approx(total / 4, abs=1e-5)


def test_one_beam_is_greedy_search(small):
    (answer,) = generate(small, [PROMPT], GenerationConfig(6))
    (hypothesis,) = beam_search(small, PROMPT, GenerationConfig(6))
    assert hypothesis.ids == tuple(answer.ids)


def test_more_beams_than_tokens(small):
    with pytest.raises(UserError, match=r"--num-beams \(6\) must be at most"):
        beam_search(small, PROMPT, GenerationConfig(2, num_beams=6))
