"""Which samples a data-parallel rank reads next."""

from collections.abc import Iterator

import numpy as np

from mindspeed_llm.config.errors import UserError


class BatchSampler:
    """Endless, resumable stream of micro-batches of sample indices.

    All ranks walk one global stream: epoch after epoch over 0..total-1. Each step takes the next
    `micro_batch_size * data_parallel_size` of it, and a rank takes its slice, in rank order. So a global batch is
    always the same run of the stream, however many ranks share it, and `consumed_samples` alone tells where to go on.

    Args:
        total_samples: samples in the data set.
        consumed_samples: how many samples of the stream all ranks together have used (from the checkpoint).
        shuffle: a new order in every epoch, from `seed` and the epoch's number; otherwise the data set's own order
            (which is shuffled already for the data sets of this package).

    Attributes:
        consumed_samples: moves on with every micro-batch taken.

    Raises:
        UserError: an empty data set, a size below 1, a rank out of range.
    """

    def __init__(self, total_samples: int, consumed_samples: int, micro_batch_size: int, data_parallel_rank: int,
                 data_parallel_size: int, shuffle: bool = False, seed: int = 1234):
        if total_samples < 1:
            raise UserError("the data set has no samples")
        if micro_batch_size < 1 or data_parallel_size < 1 or consumed_samples < 0:
            raise UserError(f"micro batch size {micro_batch_size} and data parallel size {data_parallel_size} must be "
                            f"at least 1, consumed samples {consumed_samples} at least 0")
        if not 0 <= data_parallel_rank < data_parallel_size:
            raise UserError(f"data parallel rank {data_parallel_rank} is not in 0..{data_parallel_size - 1}")
        self.total_samples = total_samples
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.rank = data_parallel_rank
        self.size = data_parallel_size
        self.shuffle = shuffle
        self.seed = seed
        self._epoch = -1
        self._order: np.ndarray | None = None

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            start = self.consumed_samples + self.rank * self.micro_batch_size
            batch = [self._at(start + offset) for offset in range(self.micro_batch_size)]
            self.consumed_samples += self.micro_batch_size * self.size
            yield batch

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.total_samples)
        if not self.shuffle:
            return offset
        if epoch != self._epoch:
            self._order = np.random.RandomState([self.seed % (1 << 32), epoch]).permutation(self.total_samples)
            self._epoch = epoch
        return int(self._order[offset])
