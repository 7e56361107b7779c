"""Weighted mixture of data sets: `--data-path 0.3 a 0.7 b`.

Sizes, order and floating-point arithmetic are Megatron's, so that a run mixes as it would there:
https://github.com/NVIDIA/Megatron-LM, megatron/core/datasets/readme.md
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

from mindspeed_llm.config.errors import UserError

SURPLUS = 0.005  # Megatron's mid_level_dataset_surplus: it decides how many epochs a part has, and so its order


def parse_data_path(data_path: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """`--data-path` to (prefixes, weights that sum to 1); the weights are None for paths without them.

    Raises:
        UserError: nothing given, weights and paths do not alternate, a weight is not positive.
    """
    words = list(data_path)
    if not words:
        raise UserError("no data: give --data-path PREFIX, or --data-path WEIGHT PREFIX WEIGHT PREFIX ...")
    numbers = [_as_number(word) for word in words]
    if all(number is None for number in numbers):
        return words, None
    alternating = len(words) % 2 == 0 and all(n is not None for n in numbers[0::2]) \
        and all(n is None for n in numbers[1::2])
    if not alternating:
        raise UserError(f"--data-path {' '.join(words)}: weights and paths must alternate, as in 0.3 first 0.7 second")
    if not all(0 < weight < float("inf") for weight in numbers[0::2]):
        raise UserError(f"--data-path {' '.join(words)}: weights must be above 0")
    return words[1::2], normalized(numbers[0::2])


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum."""
    array = np.array(weights, np.float64)
    return (array / np.sum(array)).tolist()


def samples_per_dataset(weights: Sequence[float], num_samples: int) -> list[int]:
    """How many samples each data set must provide for a blend of `num_samples` (never exceeded by the blend)."""
    return [ceil(ceil(num_samples * weight) * (1 + SURPLUS)) for weight in weights]


def blending_indices(weights: Sequence[float], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which sample comes from where: at each step the data set furthest behind its weight (the first one on a tie).

    After any n steps no count is above weight * n by 1 or more (the one chosen was behind).

    Returns:
        dataset int16[num_samples], sample int64[num_samples] (0, 1, 2, ... within each data set).
    """
    datasets = np.empty(num_samples, np.int16)
    samples = np.empty(num_samples, np.int64)
    counts = [0] * len(weights)
    for step in range(num_samples):
        so_far = float(max(step, 1))
        behind = [weight * so_far - count for weight, count in zip(weights, counts)]
        chosen = behind.index(max(behind))
        datasets[step] = chosen
        samples[step] = counts[chosen]
        counts[chosen] += 1
    return datasets, samples


class BlendedDataset:
    """Samples of several data sets in the order of `blending_indices`; the weights need not sum to 1."""

    def __init__(self, datasets: Sequence, weights: Sequence[float], num_samples: int):
        self.datasets = list(datasets)
        self._dataset, self._sample = blending_indices(normalized(weights), num_samples)
        for number, dataset in enumerate(self.datasets):
            used = int((self._dataset == number).sum())
            if used > len(dataset):
                raise ValueError(f"data set {number} of the blend has {len(dataset)} samples, {used} are needed")

    def __len__(self) -> int:
        return self._dataset.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.datasets[self._dataset[index]][int(self._sample[index])]


def _as_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
