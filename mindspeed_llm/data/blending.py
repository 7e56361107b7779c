"""Weighted mixture of data sets: `--data-path 0.3 a 0.7 b`."""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, gcd, lcm

import numpy as np

from mindspeed_llm.config.errors import UserError


def parse_data_path(data_path: Sequence[str]) -> tuple[list[str], list[Fraction] | None]:
    """`--data-path` to (prefixes, weights that sum to 1); the weights are None for a single path or paths without them.

    Raises:
        UserError: nothing given, weights and paths do not alternate, a weight is not positive.
    """
    words = list(data_path)
    if not words:
        raise UserError("no data: give --data-path PREFIX, or --data-path WEIGHT PREFIX WEIGHT PREFIX ...")
    numbers = [_as_fraction(word) for word in words]
    if all(number is None for number in numbers):
        return words, None
    pairs = list(zip(numbers[0::2], words[1::2]))
    alternating = len(words) % 2 == 0 and all(n is not None for n in numbers[0::2]) \
        and all(n is None for n in numbers[1::2])
    if not alternating:
        raise UserError(f"--data-path {' '.join(words)}: weights and paths must alternate, as in 0.3 first 0.7 second")
    if min(weight for weight, _ in pairs) <= 0:
        raise UserError(f"--data-path {' '.join(words)}: weights must be above 0")
    total = sum(weight for weight, _ in pairs)
    return [path for _, path in pairs], [weight / total for weight, _ in pairs]


def samples_per_dataset(weights: Sequence[Fraction], num_samples: int) -> list[int]:
    """How many samples each data set must provide for a blend of `num_samples` (never exceeded by the blend)."""
    return [ceil(weight * num_samples) for weight in weights]


def blending_indices(weights: Sequence[Fraction], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which sample comes from where: at each step the data set furthest behind its weight (the first one on a tie).

    Integer arithmetic throughout, so that the result is exact and the same everywhere. After any n steps no count is
    above weight * n by 1 or more (the one chosen was behind).

    Returns:
        dataset int16[num_samples], sample int64[num_samples] (0, 1, 2, ... within each data set).
    """
    denominator = lcm(*(weight.denominator for weight in weights))
    shares = [weight.numerator * (denominator // weight.denominator) for weight in weights]
    common = gcd(*shares)
    shares = [share // common for share in shares]
    whole = sum(shares)
    datasets = np.empty(num_samples, np.int16)
    samples = np.empty(num_samples, np.int64)
    counts = [0] * len(shares)
    behind = list(shares)  # share * (step + 1) - whole * count
    for step in range(num_samples):
        chosen = behind.index(max(behind))
        datasets[step] = chosen
        samples[step] = counts[chosen]
        counts[chosen] += 1
        behind[chosen] -= whole
        for index, share in enumerate(shares):
            behind[index] += share
    return datasets, samples


class BlendedDataset:
    """Samples of several data sets in the order of `blending_indices`."""

    def __init__(self, datasets: Sequence, weights: Sequence[Fraction], num_samples: int):
        self.datasets = list(datasets)
        self._dataset, self._sample = blending_indices(weights, num_samples)
        for number, dataset in enumerate(self.datasets):
            used = int((self._dataset == number).sum())
            if used > len(dataset):
                raise ValueError(f"data set {number} of the blend has {len(dataset)} samples, {used} are needed")

    def __len__(self) -> int:
        return self._dataset.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.datasets[self._dataset[index]][int(self._sample[index])]


def _as_fraction(word: str) -> Fraction | None:
    try:
        float(word)  # a plain number: Fraction alone would also take the path "1/2"
        return Fraction(word)
    except ValueError:
        return None
