"""Beam search: the most probable answers that a search of limited width finds, or such that it draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.kv_cache import KVCache
from mindspeed_llm.generation.sampling import distribution, random_stream
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


def beam_search(generator: Generator, prompt: Sequence[int], config: GenerationConfig,
                number: int = 0) -> list[Hypothesis]:
    """The `config.num_beams` best answers found, best first. Same result on every rank.

    Each step extends every beam and keeps the `num_beams` likeliest unfinished ones. The search ends when there are
    `num_beams` finished answers and no beam's mean is above the worst of these (a beam could still recover: the usual
    heuristic, that of Hugging Face's early_stopping=False), or at a length limit, where the beams count as answers.

    With `config.do_sample` a step does not look at all extended beams, but at some that it draws, without replacement
    and with probabilities that go as the exponential of their totals (Hugging Face's beam search with do_sample=True).
    Log-probabilities are then divided by the temperature, and those outside of top-k and top-p left out. `number` is
    the prompt's, for its random stream.
    """
    num_beams, stop_ids = config.num_beams, config.stop_ids
    if num_beams > generator.vocab_size:
        raise UserError(f"--num-beams ({num_beams}) must be at most the tokenizer's {generator.vocab_size} ids")
    caches, logits = generator.prefill([prompt])
    beams, finished = [Beam()], []
    longest = min(config.max_new_tokens, generator.max_length - len(prompt))
    # so many that num_beams are no stop tokens; Hugging Face draws at least two for each beam
    width = num_beams * max(1 + len(stop_ids), 2 if config.do_sample else 1)
    stream = random_stream(config.seed, number)
    for length in range(1, longest + 1):
        sequences = [[*prompt, *beam.ids] for beam in beams]
        log_probs, ids = _candidates(generator, logits, sequences, beams, width, config, stream)
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


def _candidates(generator: Generator, logits: VocabShard | None, sequences: list[list[int]], beams: list[Beam],
                width: int, config: GenerationConfig, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities fp32 and ids of the tokens to look at, `(beams, width)`, on every stage.

    They are the likeliest ones, or drawn; -1 where there are fewer.
    """
    packed = None
    if logits is not None:
        penalized = logits.log_probs().penalized(sequences, [config.repetition_penalty] * len(sequences))
        found = _draw(penalized, beams, width, config, stream) if config.do_sample else penalized.top(width)
        packed = np.stack((found[0].view(np.int32), found[1]))
    bits = generator.from_last_stage(packed, (2, len(sequences), width))
    return bits[0].copy().view(np.float32), bits[1]


def _draw(log_probs: VocabShard, beams: list[Beam], width: int, config: GenerationConfig,
          stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of all extended beams `width` that are drawn: log-probabilities and ids, as `VocabShard.top` gives them.

    Adding Gumbel noise and taking the largest draws without replacement (Kool et al., "Stochastic Beams and Where to
    Find Them", ICML 2019).
    """
    values, ids = log_probs.top(config.top_k or log_probs.vocab_size)
    values = (values.astype(np.float64) / config.temperature).astype(np.float32)
    plain = replace(config, temperature=1.0)
    kept = [len(distribution(row, plain)) for row in values]
    totals = np.concatenate([beam.total + row[:count] for beam, row, count in zip(beams, values, kept, strict=True)])
    rows = np.repeat(np.arange(len(beams)), kept)
    places = np.concatenate([np.arange(count) for count in kept])
    found = np.full((len(beams), width), -np.inf, np.float32), np.full((len(beams), width), -1, np.int32)
    drawn = np.argsort(-(totals + stream.gumbel(size=len(totals))), kind="stable")[:width]
    for row in range(len(beams)):
        chosen = np.sort(places[drawn[rows[drawn] == row]])
        found[0][row, :len(chosen)], found[1][row, :len(chosen)] = values[row, chosen], ids[row, chosen]
    return found


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
