"""Logits that are cut over the vocabulary, and the few numbers of them that ranks exchange.

Of each rank's shard only its best candidates travel: one pair (logit, id) a row for greedy search, k pairs for top-k
and beam search. Sampling from everything (top-k 0) is the exception: it gathers the rows, `(rows, V)`, once a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.runtime.collectives import Group, all_gather
from mindspeed_llm.runtime.memory import from_numpy


@dataclass(frozen=True)
class VocabShard:
    """This rank's part of the logits of some rows.

    logits: fp32 `(rows, V/T)`; its columns are the ids from `group.rank * V/T` on. Ids of `vocab_size` and above are
    padding of the embedding, which no tokenizer can spell: they are never chosen.
    """

    logits: np.ndarray
    vocab_size: int
    group: Group

    def __post_init__(self) -> None:
        if not np.isfinite(self._valid).all():
            raise UserError("the model's logits hold NaN or infinity: its weights are damaged, or their values do not "
                            "fit the dtype (use --bf16 instead of --fp16)")

    def rows(self, numbers: Sequence[int]) -> "VocabShard":
        """Some of the rows."""
        return replace(self, logits=self.logits[np.asarray(numbers)])

    def top(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` largest logits of each row over all shards: values fp32 and ids int32, `(rows, count)`.

        Descending; equal values by ascending id. The same on every rank of the group. Where the vocabulary is smaller
        than `count`, the rest is -inf with id -1.
        """
        rows, width = self.logits.shape
        kept = min(count, width)
        packed = np.empty((1, rows, 2, kept), np.int32)
        for row, logits in enumerate(self._valid):
            ids = _largest(logits, kept)
            values = np.full(kept, -np.inf, np.float32)
            values[:len(ids)] = logits[ids]
            packed[0, row, 0] = values.view(np.int32)
            packed[0, row, 1] = -1
            packed[0, row, 1, :len(ids)] = ids + self._start
        gathered = _gather(packed, self.group)
        values = np.concatenate([part[:, 0].copy().view(np.float32) for part in gathered], axis=1)
        ids = np.concatenate([part[:, 1] for part in gathered], axis=1)
        order = np.lexsort((ids, -values), axis=1)[:, :count]
        values, ids = np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)
        if values.shape[1] == count:
            return values, ids
        missing = ((0, 0), (0, count - values.shape[1]))
        return np.pad(values, missing, constant_values=-np.inf), np.pad(ids, missing, constant_values=-1)

    def log_normalizers(self) -> np.ndarray:
        """log(sum(exp(logits))) of each row over all shards, fp32 `(rows,)`; the same on every rank of the group."""
        stats = np.zeros((1, len(self.logits), 2), np.float32)
        stats[0, :, 0] = -np.inf
        if self._valid.shape[1]:
            stats[0, :, 0] = self._valid.max(axis=1)
            stats[0, :, 1] = np.exp(self._valid.astype(np.float64) - stats[0, :, :1]).sum(axis=1)
        gathered = _gather(stats.view(np.int32), self.group).copy().view(np.float32).astype(np.float64)
        top = gathered[:, :, 0].max(axis=0)
        total = (gathered[:, :, 1] * np.exp(gathered[:, :, 0] - top)).sum(axis=0)
        return (top + np.log(total)).astype(np.float32)

    def log_probs_of(self, ids: np.ndarray) -> np.ndarray:
        """Log-probability, fp32 `(rows,)`, of one id of each row; the same on every rank of the group."""
        places = ids - self._start
        here = np.flatnonzero((0 <= places) & (places < self.logits.shape[1]))
        own = np.full((1, len(ids)), -np.inf, np.float32)
        own[0, here] = self.logits[here, places[here]]
        found = _gather(own.view(np.int32), self.group).copy().view(np.float32).max(axis=0)
        return found - self.log_normalizers()

    def log_probs(self) -> "VocabShard":
        """The same rows as log-probabilities."""
        return replace(self, logits=self.logits - self.log_normalizers()[:, None])

    def penalized(self, sequences: Sequence[Sequence[int]], penalties: Sequence[float]) -> "VocabShard":
        """The same rows, the logits of the ids in each row's sequence moved away by its `repetition_penalty` of
        GenerationConfig.
        """
        if all(penalty == 1.0 for penalty in penalties):
            return self
        changed = self.logits.copy()
        for row, sequence, penalty in zip(changed, sequences, penalties, strict=True):
            places = np.unique(np.asarray(sequence, np.int64)) - self._start
            places = places[(0 <= places) & (places < len(row))]
            row[places] = np.where(row[places] < 0, row[places] * penalty, row[places] / penalty)
        return replace(self, logits=changed)

    @property
    def _start(self) -> int:
        return self.group.rank * self.logits.shape[1]

    @property
    def _valid(self) -> np.ndarray:
        return self.logits[:, :max(0, self.vocab_size - self._start)]


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest entries (fewer if the row is shorter), the lower positions among equals."""
    if count == 1 and len(row):
        return np.array([row.argmax()], np.int32)
    if count >= len(row):
        return np.arange(len(row), dtype=np.int32)
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    above = np.flatnonzero(row > threshold)
    ties = np.flatnonzero(row == threshold)[:count - len(above)]
    return np.concatenate((above, ties)).astype(np.int32)


def _gather(array: np.ndarray, group: Group) -> np.ndarray:
    return array if group.size == 1 else all_gather(from_numpy(array), group).asnumpy()
