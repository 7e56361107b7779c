"""Beam search: the most probable answers that a search of limited width finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.kv_cache import KVCache
from mindspeed_llm.generation.vocab_shard import VocabShard


@dataclass(frozen=True)
class Beam:
    """An answer so far: its ids, their log-probabilities and the sum of these."""

    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """A complete answer, without the stop token, and why it ends, as in `decoding.Answer`.

    score: mean log-probability of a token, the stop token included. log_probs: of each id, penalized as the search has
    them.
    """

    ids: tuple[int, ...]
    score: float
    log_probs: tuple[float, ...]
    reason: str


def beam_search(generator: Generator, prompt: Sequence[int], config: GenerationConfig) -> list[Hypothesis]:
    """The `config.num_beams` best answers found, best first. Same result on every rank.

    Each step extends every beam and keeps the `num_beams` likeliest unfinished ones. The search ends when there are
    `num_beams` finished answers and no beam's mean is above the worst of these (a beam could still recover: the usual
    heuristic, that of Hugging Face's early_stopping=False), or at a length limit, where the beams count as answers.
    """
    num_beams, stop_ids = config.num_beams, config.stop_ids
    if num_beams > generator.vocab_size:
        raise UserError(f"--num-beams ({num_beams}) must be at most the tokenizer's {generator.vocab_size} ids")
    caches, logits = generator.prefill([prompt])
    beams, finished = [Beam()], []
    longest = min(config.max_new_tokens, generator.max_length - len(prompt))
    width = num_beams * (1 + len(stop_ids))  # so many that num_beams are no stop tokens
    for length in range(1, longest + 1):
        sequences = [[*prompt, *beam.ids] for beam in beams]
        log_probs, ids = _candidates(generator, logits, sequences, min(width, generator.vocab_size),
                                     config.repetition_penalty)
        ended, survivors = _extend(beams, log_probs, ids, num_beams, stop_ids)
        finished += [Hypothesis(beam.ids[:-1], beam.total / length, beam.log_probs[:-1], "stop") for beam in ended]
        finished = _best(finished, num_beams)
        beams = [beam for _, beam in survivors]
        if not beams or length == longest:
            reason = "length" if length == config.max_new_tokens else "positions"
            finished += [Hypothesis(beam.ids, beam.total / length, beam.log_probs, reason) for beam in beams]
            break
        if len(finished) == num_beams and beams[0].total / length <= finished[-1].score:
            break
        caches = _follow(caches, [parent for parent, _ in survivors])
        logits = generator.decode(caches, [beam.ids[-1] for beam in beams])
    return _best(finished, num_beams)


def _candidates(generator: Generator, logits: VocabShard | None, sequences: list[list[int]], count: int,
                penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities fp32 and ids of the likeliest next tokens, `(sequences, count)`, on every stage."""
    packed = None
    if logits is not None:
        log_probs, ids = logits.log_probs().penalized(sequences, [penalty] * len(sequences)).top(count)
        packed = np.stack((log_probs.view(np.int32), ids))
    bits = generator.from_last_stage(packed, (2, len(sequences), count))
    return bits[0].copy().view(np.float32), bits[1]


def _extend(beams: list[Beam], log_probs: np.ndarray, ids: np.ndarray, num_beams: int,
            stop_ids: frozenset[int]) -> tuple[list[Beam], list[tuple[int, Beam]]]:
    """Of all candidates by total: those that end within the first `num_beams`; (parent, beam) of those that go on."""
    extended = sorted(((beam.total + float(log_prob), parent, int(token), float(log_prob))
                       for parent, beam in enumerate(beams)
                       for log_prob, token in zip(log_probs[parent], ids[parent], strict=True) if token >= 0),
                      key=lambda entry: (-entry[0], entry[1], entry[2]))
    ended, survivors = [], []
    for place, (total, parent, token, log_prob) in enumerate(extended):
        beam = Beam((*beams[parent].ids, token), (*beams[parent].log_probs, log_prob), total)
        if token in stop_ids:
            ended += [beam] if place < num_beams else []
        elif len(survivors) < num_beams:
            survivors.append((parent, beam))
    return ended, survivors


def _best(hypotheses: list[Hypothesis], count: int) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: (-hypothesis.score, hypothesis.ids))[:count]


def _follow(caches: list[KVCache], parents: list[int]) -> list[KVCache]:
    """The caches of the surviving beams: a parent's cache goes to its first child, further children get copies."""
    taken: set[int] = set()
    followed = []
    for parent in parents:
        followed.append(caches[parent].fork() if parent in taken else caches[parent])
        taken.add(parent)
    return followed
