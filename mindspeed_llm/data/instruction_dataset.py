"""Tuning samples: rows of token ids with a label per token, made by `preprocess_data.py` from instruction data."""

import logging
import math
from pathlib import Path

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset

IGNORE = -100
FIELDS = ("input_ids", "attention_mask", "labels")
logger = logging.getLogger(__name__)


def is_pairwise(prefix: str) -> bool:
    """Whether the data of that prefix are pairs of answers (and no instruction data as well)."""
    chosen, instruction = (Path(f"{prefix}_packed_{field}_document.idx") for field in ("chosen_input_ids", FIELDS[0]))
    return chosen.is_file() and not instruction.is_file()


def require_same_rows(first: IndexedDataset, second: IndexedDataset) -> None:
    """Raise UserError unless both have as many rows, and these are equally long."""
    if not np.array_equal(first.sizes, second.sizes):
        raise UserError(f"{second.prefix} does not have the rows of {first.prefix}: the files come from different runs, "
                        "make the data again with preprocess_data.py")


class PackedRows:
    """The three documents `<prefix>_packed_{input_ids,attention_mask,labels}_document`, read side by side.

    Attributes:
        packed: rows hold several conversations (`--pack`): attention_mask numbers them from 1, padding is 0.

    Raises:
        FileNotFoundError, UserError: a file is missing or damaged, or the three differ in their row lengths.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        if is_pairwise(prefix):
            raise UserError(f"--data-path {prefix} holds pairs of answers: train on them with --stage dpo "
                            "--is-pairwise-dataset, or make instruction data with preprocess_data.py --handler-name "
                            "AlpacaStyleInstructionHandler or SharegptStyleInstructionHandler")
        self.parts = {field: IndexedDataset(f"{prefix}_packed_{field}_document") for field in FIELDS}
        for field in FIELDS[1:]:
            require_same_rows(self.parts["input_ids"], self.parts[field])
        masks = self.parts["attention_mask"]
        self.packed = any(bool((masks[row] != 1).any()) for row in range(min(len(masks), 1000)))

    def __len__(self) -> int:
        return len(self.parts["input_ids"])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(input_ids, attention_mask, labels) of a row, as stored."""
        return tuple(self.parts[field][index] for field in FIELDS)


def shuffled_epochs(first: int, last: int, num_samples: int | None, seed: int) -> np.ndarray:
    """int64 numbers of rows [first, last) in shuffled order, epoch after epoch, `num_samples` of them (None: one epoch).

    Every epoch has an order of its own; the same seed gives the same ones on any machine. Raises UserError for an empty
    range.
    """
    if last <= first:
        raise UserError(f"no rows in {first}..{last}")
    count = last - first
    length = count if num_samples is None else num_samples
    rng = np.random.RandomState(seed)
    return np.concatenate([first + rng.permutation(count) for _ in range(max(1, math.ceil(length / count)))])[:length]


class InstructionDataset:
    """Rows [first, last) in shuffled order, epoch after epoch, as samples of fixed or dynamic length.

    Args:
        rows: the stored rows.
        selection: (first, last) range to use (`--split`).
        num_samples: how many samples to provide; None: one epoch.
        seq_length: S, the longest sample; longer rows are cut on the right.
        seed: same seed, same order on any machine; every epoch has an order of its own.
        pad_id: token to fill up with.
        pad_to_multiple_of: None: every sample has length S. A number: only up to the next multiple of it, at most S
            (`--no-pad-to-seq-lengths`); pipeline, sequence and context parallelism tell which multiple.

    Raises:
        UserError: an S that is no multiple of `pad_to_multiple_of`.
    """

    def __init__(self, rows: PackedRows, selection: tuple[int, int], num_samples: int | None, seq_length: int,
                 seed: int, pad_id: int, pad_to_multiple_of: int | None = None):
        first, last = selection
        if pad_to_multiple_of is not None and seq_length % pad_to_multiple_of:
            raise UserError(f"--seq-length {seq_length} must be a multiple of {pad_to_multiple_of} (what "
                            "--no-pad-to-seq-lengths pads to, --pad-to-multiple-of)")
        self.rows = rows
        self.seq_length = seq_length
        self.pad_id = pad_id
        self.multiple = pad_to_multiple_of
        self._order = shuffled_epochs(first, last, num_samples, seed)
        self._warned = False

    def __len__(self) -> int:
        return self._order.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One sample of length L (S, or dynamic).

        Returns:
            tokens int64[L]; labels int64[L], labels[i] belongs after tokens[i] (0 where there is no loss); loss_mask
            float32[L]; for packed rows also cu_seqlens int32[n+1], the boundaries 0..L of the conversations, the
            padding tail being the last of them.
        """
        ids, mask, labels = (np.asarray(part, np.int64) for part in self.rows.row(int(self._order[index])))
        if self.rows.packed and not mask[-1]:
            filled = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 1
            ids, mask, labels = ids[:filled], mask[:filled], labels[:filled]
        if ids.size > self.seq_length:
            self._warn_once(ids.size)
            ids, mask, labels = (part[:self.seq_length] for part in (ids, mask, labels))
        length = self._padded_length(ids.size)
        tokens = np.full(length, self.pad_id, np.int64)
        tokens[:ids.size] = ids
        targets = np.full(length, IGNORE, np.int64)
        targets[:ids.size - 1] = labels[1:]
        segments = np.zeros(length, np.int64)
        segments[:ids.size] = mask
        starts = np.flatnonzero(segments[1:] != segments[:-1]) + 1
        targets[starts - 1] = IGNORE  # a conversation does not predict the first token of the next one
        learned = targets != IGNORE
        sample = {"tokens": tokens, "labels": np.where(learned, targets, 0), "loss_mask": learned.astype(np.float32)}
        if self.rows.packed:
            sample["cu_seqlens"] = np.concatenate(([0], starts, [length])).astype(np.int32)
        return sample

    def _padded_length(self, size: int) -> int:
        if self.multiple is None:
            return self.seq_length
        return math.ceil(size / self.multiple) * self.multiple

    def _warn_once(self, size: int) -> None:
        if not self._warned:
            logger.warning("%s has rows longer than --seq-length %d (one of %d tokens): they are cut", self.rows.prefix,
                           self.seq_length, size)
            self._warned = True
