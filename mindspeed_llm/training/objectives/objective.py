"""What an objective is: which samples training reads, how they form a micro-batch, and what is made small."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Protocol

import numpy as np
from mindspore import Tensor

from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.batch import Dataset, collate
from mindspeed_llm.runtime.memory import from_numpy

Sample = dict[str, np.ndarray]


@dataclass(frozen=True)
class MicroBatch:
    """tokens, labels int32 `(S, B)`; loss_weights fp32 `(S, B)`, the mask over the number of tokens that count.

    cu_seqlens: int32 boundaries of packed segments, or None. S is the whole sequence, before context parallelism cuts
    it. The model runs over `tokens` and `cu_seqlens`; the rest is for the loss, and an objective may add to it in a
    class of its own.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_weights: np.ndarray
    cu_seqlens: np.ndarray | None

    @property
    def seq_length(self) -> int:
        """S."""
        return self.tokens.shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.tokens.shape[1]


class Objective(Protocol):
    """What a run trains for. The loop runs the model over its micro-batches and goes down the gradient of its loss."""

    def datasets(self, num_samples: tuple[int, int]) -> tuple[Dataset | None, Dataset | None]:
        """Data sets of so many training and validation samples; None where no samples or no data are meant for it."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """One micro-batch of entries of a data set.

        All ranks of a model replica make the same micro-batches in the same order.
        """

    def loss(self, chunk: GPTModel, hidden: Tensor, micro: MicroBatch) -> Tensor:
        """Scalar fp32 loss of a micro-batch on the last stage, for its part of the sequence.

        `hidden (S, B, H)` is the output of the last layer. The parts of a sequence add up to the micro-batch's loss, of
        which training takes the mean over the micro-batches of a step.
        """

    def prompt(self, sample: Sample) -> list[int]:
        """The beginning of a sample for the model to continue (--eval-generate); empty where there is none."""


def token_batch(samples: Sequence[Sample], pad_id: int = 0) -> MicroBatch:
    """Samples one beside the other, sequence first; a packed batch becomes one sequence of all its rows."""
    collated = collate(samples, pad_id)
    packed = collated.get("cu_seqlens")
    arrays = [collated[key] if packed is None else collated[key].reshape(1, -1)
              for key in ("tokens", "labels", "loss_mask")]
    tokens, labels, mask = (np.ascontiguousarray(array.T) for array in arrays)
    weights = mask.astype(np.float32) / max(1.0, float(mask.sum()))
    return MicroBatch(tokens.astype(np.int32), labels.astype(np.int32), weights, packed)


def token_loss(chunk: GPTModel, hidden: Tensor, micro: MicroBatch) -> Tensor:
    """Cross entropy of the labels, weighted by `micro.loss_weights`: the mean over the tokens that count."""
    losses = chunk.token_losses(hidden, local(chunk, micro.labels))
    return total(losses * local(chunk, micro.loss_weights))


def local(chunk: GPTModel, array: np.ndarray) -> Tensor:
    """A context-parallel rank's rows of `(S, ...)`, on the device."""
    return from_numpy(np.ascontiguousarray(chunk.local_part(array)))


def total(values: Tensor) -> Tensor:
    """Sum of all elements, as the sum of sums of up to 256.

    MindSpore's CPU kernel adds element after element: over the 65,536 tokens of two 32K sequences one such sum is off
    by 3e-5, which then depends on how many ranks share the sequence.
    """
    return values.reshape(-1, gcd(values.size, 256)).sum(dim=1).sum()
