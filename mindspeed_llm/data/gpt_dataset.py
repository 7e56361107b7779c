"""Pre-training samples: all documents in shuffled order as one stream of tokens, cut into pieces of a fixed length.

The method is Megatron's (document order, sample boundaries, sample order; all from one seed), to the same samples in
the same order, with boundaries computed by a cumulative sum instead of a loop:
https://github.com/NVIDIA/Megatron-LM, megatron/core/datasets/readme.md
"""

import math

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset

SAMPLE_ORDER = 2  # stored in checkpoints; another number where the same seed gives another order of samples
LAST_EPOCH_SHARE = 0.8  # Megatron: below this share of an epoch, the last epoch is shuffled by itself


class GPTDataset:
    """Samples of `seq_length` tokens over the documents [first, last) of an indexed data set.

    Sample k of the stream covers the tokens k*S .. k*S + S (S+1 of them: neighbours share one token, which is the last
    label of one and the first input of the next). When more samples are asked for than one epoch has, the documents are
    repeated and shuffled together; what an unfinished last epoch contributes comes after the full ones, unless it is
    almost a full one.

    Args:
        indexed: the documents.
        documents: (first, last) range of sequences to use (`--split`).
        num_samples: how many samples to provide; None: those of one epoch.
        seq_length: S.
        seed: same seed, same samples in the same order, on any machine.
        reset_attention_mask: samples tell where their documents begin, so that these do not see each other.

    Raises:
        UserError: no tokens in the range, or too few for one sample when num_samples is None.
    """

    def __init__(self, indexed: IndexedDataset, documents: tuple[int, int], num_samples: int | None, seq_length: int,
                 seed: int, reset_attention_mask: bool = False):
        self.indexed = indexed
        self.seq_length = seq_length
        self._reset_attention_mask = reset_attention_mask
        first, last = documents
        sizes = indexed.sizes[first:last]
        epoch_tokens = int(sizes.sum(dtype=np.int64))
        if epoch_tokens == 0:
            raise UserError(f"{indexed.prefix}: documents {first}..{last} hold no tokens")
        if num_samples is None:
            num_samples = (epoch_tokens - 1) // seq_length
            if num_samples == 0:
                raise UserError(
                    f"{indexed.prefix}: {epoch_tokens} tokens are too few for one sample of {seq_length} + 1: use more "
                    "text or a smaller --seq-length"
                )
        self._length = num_samples
        self.epochs = max(1, math.ceil((num_samples * seq_length + 1) / epoch_tokens))
        rng = np.random.RandomState(seed)

        # samples that end within the epochs before the last one
        full = ((self.epochs - 1) * epoch_tokens - 1) // seq_length if self.epochs > 1 else 0
        per_epoch = (epoch_tokens - 1) // seq_length
        # all samples of the epochs are shuffled, not only those used
        total = max(num_samples, (self.epochs * epoch_tokens - 1) // seq_length)
        separate = self.epochs > 1 and num_samples - full < int(LAST_EPOCH_SHARE * per_epoch)
        groups = [self.epochs - 1, 1] if separate else [self.epochs]
        shuffled = []
        for epochs in groups:
            group = np.tile(np.arange(first, last, dtype=np.int64), epochs)
            rng.shuffle(group)
            shuffled.append(group)
        self._documents = np.concatenate(shuffled)

        lengths = indexed.sizes[self._documents].astype(np.int64)
        ends = np.cumsum(lengths)
        boundaries = np.arange(total + 1, dtype=np.int64) * seq_length
        # the first document whose end lies beyond the boundary holds it (empty documents are passed over)
        self._positions = np.searchsorted(ends, boundaries, side="right")
        self._offsets = boundaries - (ends - lengths)[self._positions]

        orders = []
        for start, stop in ((0, full), (full, total)) if separate else ((0, total),):
            order = np.arange(start, stop, dtype=np.int64)
            rng.shuffle(order)
            orders.append(order)
        self._order = np.concatenate(orders)[:num_samples]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """tokens int64[S], labels int64[S] (the next tokens), loss_mask float32[S] (all ones); with
        reset_attention_mask also cu_seqlens int32[n+1], the boundaries 0..S of the n documents. The last token of a
        document predicts the first one of the next, as in Megatron.
        """
        stream, starts = self._span(int(self._order[index]))
        sample = {"tokens": stream[:-1], "labels": stream[1:], "loss_mask": np.ones(self.seq_length, np.float32)}
        if self._reset_attention_mask:
            inner = [start for start in starts if 0 < start < self.seq_length]
            sample["cu_seqlens"] = np.array([0, *inner, self.seq_length], np.int32)
        return sample

    def token_span(self, sample: int) -> np.ndarray:
        """The S+1 tokens (int64) of a sample by its place in the stream (before the sample order is shuffled)."""
        return self._span(sample)[0]

    def _span(self, sample: int) -> tuple[np.ndarray, list[int]]:
        """(tokens of `token_span`, the places where their documents begin)."""
        result = np.empty(self.seq_length + 1, np.int64)
        starts = []
        position, offset, filled = int(self._positions[sample]), int(self._offsets[sample]), 0
        while filled < result.size:
            document = int(self._documents[position])
            take = min(int(self.indexed.sizes[document]) - offset, result.size - filled)
            if take:
                starts.append(filled)
            result[filled:filled + take] = self.indexed.get(document, offset, take)
            filled += take
            position, offset = position + 1, 0
        return result, starts
