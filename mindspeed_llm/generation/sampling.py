"""Samplers choose the next token: greedily, or by drawing with temperature, top-k and top-p.

Every tensor-parallel rank of the last stage decides for itself, from the same gathered candidates with the same random
stream. A prompt's stream depends on the seed and its own number only: its answer does not change with the prompts
beside it, nor with the parallel sizes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.vocab_shard import VocabShard

Sampler = Callable[[VocabShard, Sequence[int]], np.ndarray]
"""(logits, numbers of the prompts that the rows belong to) -> the chosen ids, int32 `(rows,)`."""


def sampler(config: GenerationConfig) -> Sampler:
    """What `config` asks for. Each call begins the random streams of `config.seed` anew."""
    return RandomSampler(config) if config.do_sample else greedy


def greedy(logits: VocabShard, _numbers: Sequence[int]) -> np.ndarray:
    """The likeliest token; among equals the one with the lowest id."""
    return logits.top(1)[1][:, 0]


class RandomSampler:
    """Draws from the model's distribution as `config` reshapes it."""

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config
        self._streams: dict[int, np.random.Generator] = {}

    def __call__(self, logits: VocabShard, numbers: Sequence[int]) -> np.ndarray:
        """See `Sampler`."""
        for number in numbers:
            if number not in self._streams:
                self._streams[number] = random_stream(self._config.seed, number)
        return choose(logits, [self._config] * len(numbers), [self._streams[number] for number in numbers])


def choose(logits: VocabShard, configs: Sequence[GenerationConfig],
           streams: Sequence[np.random.Generator]) -> np.ndarray:
    """Each row's next token, int32 `(rows,)`, as its own config says and out of its own random stream."""
    counts = np.array([(config.top_k or logits.vocab_size) if config.do_sample else 1 for config in configs])
    chosen = np.empty(len(configs), np.int32)
    # a row that draws from everything should not make the others exchange all that they have
    for rows in (np.flatnonzero(counts < logits.vocab_size), np.flatnonzero(counts >= logits.vocab_size)):
        if not len(rows):
            continue
        values, ids = logits.rows(rows).top(int(counts[rows].max()))
        for row, row_values, row_ids in zip(rows, values, ids, strict=True):
            chosen[row] = (_draw(row_values[:counts[row]], row_ids, configs[row], streams[row])
                           if configs[row].do_sample else row_ids[0])
    return chosen


def random_stream(seed: int, number: int) -> np.random.Generator:
    """The stream of draws of a seed for prompt `number`."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, number]))


def _draw(descending: np.ndarray, ids: np.ndarray, config: GenerationConfig, stream: np.random.Generator) -> int:
    probabilities = distribution(descending, config)
    edges = np.cumsum(probabilities)
    drawn = np.searchsorted(edges, stream.random() * edges[-1], side="right")
    return int(ids[min(drawn, len(probabilities) - 1)])


def distribution(descending: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """Probabilities, fp64, of the candidates that top-p leaves of the logits `descending` (after top-k).

    Top-p keeps the smallest number of likeliest candidates whose probabilities reach `top_p`: always at least one.
    """
    logits = descending[descending > -np.inf].astype(np.float64) / config.temperature
    weights = np.exp(logits - logits[0])
    probabilities = weights / weights.sum()
    if config.top_p < 1.0:
        kept = int(np.searchsorted(np.cumsum(probabilities), config.top_p, side="left")) + 1
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
    return probabilities
