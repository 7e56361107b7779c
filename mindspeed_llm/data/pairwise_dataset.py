"""Preference samples: a prompt with a chosen and a rejected answer, made by `preprocess_data.py` from pairwise data."""

import logging
from pathlib import Path

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset
from mindspeed_llm.data.instruction_dataset import IGNORE, require_same_rows, shuffled_epochs

ANSWERS = ("chosen", "rejected")
FIELDS = tuple(f"{answer}_{part}" for answer in ANSWERS for part in ("input_ids", "labels"))
logger = logging.getLogger(__name__)


class PairedRows:
    """The four documents `<prefix>_packed_{chosen,rejected}_{input_ids,labels}_document`, read side by side.

    Attributes:
        reference: fp32[rows, 2], log-probabilities of the chosen and the rejected answers under a reference model, or
            None.

    Raises:
        FileNotFoundError, UserError: the data are no pairs, a file is missing or damaged, or they differ in their rows.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.reference: np.ndarray | None = None
        first = Path(f"{prefix}_packed_{FIELDS[0]}_document.idx")
        if not first.is_file():
            raise UserError(f"--data-path {prefix} is not pairwise: {first} does not exist; make pairs with "
                            "preprocess_data.py --handler-name AlpacaStylePairwiseHandler or "
                            "SharegptStylePairwiseHandler")
        self.parts = {field: IndexedDataset(f"{prefix}_packed_{field}_document") for field in FIELDS}
        for answer in ANSWERS:
            require_same_rows(self.parts[f"{answer}_input_ids"], self.parts[f"{answer}_labels"])
        if len(self.parts[FIELDS[0]]) != len(self.parts[FIELDS[2]]):
            raise UserError(f"{prefix}: {len(self.parts[FIELDS[0]])} chosen and {len(self.parts[FIELDS[2]])} rejected "
                            "answers: the files come from different runs, make the data again with preprocess_data.py")

    def __len__(self) -> int:
        return len(self.parts[FIELDS[0]])

    def row(self, index: int, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) of the `chosen` or `rejected` sequence of a pair, as stored."""
        return self.parts[f"{answer}_input_ids"][index], self.parts[f"{answer}_labels"][index]


class PairwiseDataset:
    """Pairs [first, last) in shuffled order, epoch after epoch.

    Args:
        rows: the stored pairs.
        selection: (first, last) range to use (`--split`).
        num_samples: how many samples to provide; None: one epoch.
        seq_length: the longest sequence of prompt and answer; longer ones are cut on the right.
        seed: same seed, same order on any machine; every epoch has an order of its own.
    """

    def __init__(self, rows: PairedRows, selection: tuple[int, int], num_samples: int | None, seq_length: int,
                 seed: int):
        self.rows, self.seq_length = rows, seq_length
        self._order = shuffled_epochs(*selection, num_samples, seed)
        self._warned = False

    def __len__(self) -> int:
        return self._order.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One pair.

        Returns:
            `chosen_tokens`, `chosen_labels` int64[L] and `rejected_tokens`, `rejected_labels` int64[M]: labels[i]
            belongs after tokens[i] and is -100 outside the answer. If the rows have it, also `reference` fp32[2].

        Raises:
            UserError: nothing is left of an answer within `seq_length`.
        """
        row = int(self._order[index])
        sample = self.pair(row)
        return sample if self.rows.reference is None else {**sample, "reference": self.rows.reference[row]}

    def used_rows(self) -> np.ndarray:
        """Numbers of the rows that occur, in ascending order."""
        return np.unique(self._order)

    def pair(self, row: int) -> dict[str, np.ndarray]:
        """A pair by the number of its row, without what a reference model says of it."""
        sample = {}
        for answer in ANSWERS:
            ids, labels = (np.asarray(part, np.int64) for part in self.rows.row(row, answer))
            if ids.size > self.seq_length:
                self._warn_once(ids.size)
            tokens, targets = ids[:self.seq_length][:-1], labels[:self.seq_length][1:]
            if not (targets != IGNORE).any():
                raise UserError(f"{self.rows.prefix}: of pair {row} nothing of the {answer} answer lies within "
                                f"--seq-length {self.seq_length} (it has {ids.size} tokens with its prompt): make the "
                                f"data with preprocess_data.py --seq-length {self.seq_length}, which shortens prompts")
            sample |= {f"{answer}_tokens": tokens, f"{answer}_labels": targets}
        return sample

    def _warn_once(self, size: int) -> None:
        if not self._warned:
            logger.warning("%s has sequences longer than --seq-length %d (one of %d tokens): they are cut",
                           self.rows.prefix, self.seq_length, size)
            self._warned = True
