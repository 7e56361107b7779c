"""Choosing the next token: greedy, or sampling with temperature, top-k and top-p.

Every tensor-parallel rank of the last stage decides for itself, from the same gathered candidates with the same random
stream. A prompt's stream depends on the seed and its own number only: its answer does not change with the prompts
beside it, nor with the parallel sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.config.training import InferenceConfig
from mindspeed_llm.tasks.inference.vocab_shard import VocabShard

Chooser = Callable[[VocabShard, Sequence[int]], np.ndarray]
"""(logits, numbers of the prompts that the rows belong to) -> the chosen ids, int32 `(rows,)`."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` divides the logits; `top_k` (0: all) and then `top_p` (1.0: all) cut off unlikely tokens.

    Top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, config: InferenceConfig) -> "Sampling":
        """What the command line says."""
        return cls(config.temperature, config.top_k, config.top_p)


def greedy() -> Chooser:
    """The likeliest token; among equals the one with the lowest id."""
    return lambda shard, _: shard.top(1)[1][:, 0]


def sampler(sampling: Sampling, seed: int) -> Chooser:
    """Draws from the model's distribution as `sampling` reshapes it."""
    streams: dict[int, np.random.Generator] = {}

    def choose(shard: VocabShard, numbers: Sequence[int]) -> np.ndarray:
        values, ids = shard.top(sampling.top_k or shard.vocab_size)
        chosen = np.empty(len(ids), np.int32)
        for row, number in enumerate(numbers):
            if number not in streams:
                streams[number] = np.random.Generator(np.random.Philox(key=[seed % 2**64, number]))
            probabilities = distribution(values[row], sampling)
            edges = np.cumsum(probabilities)
            drawn = np.searchsorted(edges, streams[number].random() * edges[-1], side="right")
            chosen[row] = ids[row, min(drawn, len(probabilities) - 1)]
        return chosen

    return choose


def distribution(descending: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities, fp64, of the candidates that top-p leaves of the logits `descending` (after top-k).

    Top-p keeps the smallest number of likeliest candidates whose probabilities reach `top_p`: always at least one.
    """
    logits = descending[descending > -np.inf].astype(np.float64) / sampling.temperature
    weights = np.exp(logits - logits[0])
    probabilities = weights / weights.sum()
    if sampling.top_p < 1.0:
        kept = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p, side="left")) + 1
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
    return probabilities
