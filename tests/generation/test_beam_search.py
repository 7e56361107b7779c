"""Beam search against trying every answer, on the recorded model with its vocabulary cut down."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.beam_search import Beam, _draw, beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.sampling import random_stream
from mindspeed_llm.generation.vocab_shard import VocabShard
from mindspeed_llm.runtime.collectives import Group
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


def test_sampling_without_heat_is_beam_search(small):
    """Noise of size 1 does not change the order of what is a hundred times farther apart."""
    config = GenerationConfig(LENGTH, frozenset([2]), num_beams=2)
    cold = beam_search(small, PROMPT, replace(config, do_sample=True, temperature=1e-4))
    plain = beam_search(small, PROMPT, config)
    assert [beam.ids for beam in cold] == [beam.ids for beam in plain]
    assert cold[0].score == pytest.approx(1e4 * plain[0].score, rel=1e-5)


def test_sampling_depends_on_seed_and_prompt_number(small):
    config = GenerationConfig(10, num_beams=2, do_sample=True, temperature=2.0, top_k=4, seed=3)
    first = beam_search(small, PROMPT, config, 1)
    assert beam_search(small, PROMPT, config, 1) == first
    assert beam_search(small, PROMPT, config, 2) != first
    assert beam_search(small, PROMPT, replace(config, seed=4), 1) != first
    for beam in first:
        assert beam.score == pytest.approx(np.mean(beam.log_probs)) and 0 <= min(beam.ids) and max(beam.ids) < VOCAB


def test_extended_beams_are_drawn_as_their_totals_say():
    """Chi-square over draws of one of two beams with three tokens each: 5 degrees of freedom, 20.5 is passed once in a
    thousand seeds."""
    logits = np.log(np.array([[0.5, 0.3, 0.2, 1e-9], [0.1, 0.3, 1e-9, 0.6]], np.float32))
    beams, config = [Beam(total=0.0), Beam(total=-0.7)], GenerationConfig(do_sample=True, top_k=3, temperature=1.5)
    shard, stream, counts = VocabShard(logits, 4, Group("alone", (0,), 0)), random_stream(1, 0), np.zeros((2, 4))
    for _ in range(1000):
        values, ids = _draw(shard, beams, 1, config, stream)
        ((row, _),) = np.argwhere(ids >= 0)
        counts[row, ids[row, 0]] += 1
        assert values[row, 0] == pytest.approx(logits[row, ids[row, 0]] / 1.5, rel=1e-6)
    weights = np.exp(logits.astype(np.float64) / 1.5 + np.array([[0.0], [-0.7]]))
    kept = logits > -10
    expected = 1000 * (weights / weights[kept].sum())[kept]
    assert not counts[~kept].any()
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 20.5
    drawn = _draw(shard, beams, 6, config, stream)[1]
    assert (drawn >= 0).sum() == 6     # without replacement: all of them


def test_more_beams_than_tokens(small):
    with pytest.raises(UserError, match=r"--num-beams \(6\) must be at most"):
        beam_search(small, PROMPT, GenerationConfig(2, num_beams=6))
