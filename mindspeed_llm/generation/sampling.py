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
        values, ids = logits.top(self._config.top_k or logits.vocab_size)
        chosen = np.empty(len(ids), np.int32)
        for row, number in enumerate(numbers):
            probabilities = distribution(values[row], self._config)
            edges = np.cumsum(probabilities)
            drawn = np.searchsorted(edges, self._stream(number).random() * edges[-1], side="right")
            chosen[row] = ids[row, min(drawn, len(probabilities) - 1)]
        return chosen

    def _stream(self, number: int) -> np.random.Generator:
        if number not in self._streams:
            self._streams[number] = np.random.Generator(np.random.Philox(key=[self._config.seed % 2**64, number]))
        return self._streams[number]


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
