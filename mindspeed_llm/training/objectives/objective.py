"""What an objective is: which samples training reads, how they form a micro-batch, and what is made small."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Protocol

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.context_parallel.partition import pieces_of
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.batch import Dataset, collate
from mindspeed_llm.training.micro_batch import MicroBatch, Sample, local
from mindspeed_llm.training.passes import Metrics


class Objective(Protocol):
    """What a run trains for. The loop runs the model over its micro-batches and goes down the gradient of its loss.

    `metrics`: names of what is reported beside the loss.
    """

    metrics: tuple[str, ...] = ()

    def datasets(self, num_samples: tuple[int, int]) -> tuple[Dataset | None, Dataset | None]:
        """Data sets of so many training and validation samples; None where no samples or no data are meant for it."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """One micro-batch of entries of a data set.

        All ranks of a model replica make the same micro-batches in the same order.
        """

    def prepared(self, micro_batches: list[MicroBatch], chunks: list[GPTModel]) -> list[MicroBatch]:
        """The micro-batches of a step with what passes of another model than the trained `chunks` add to them.

        Collective among the ranks of a model replica.
        """
        return micro_batches

    def loss(self, chunk: GPTModel, hidden: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
        """Scalar fp32 loss of a micro-batch on the last stage, for its part of the sequence, and its `metrics`.

        `hidden (S, B, H)` is the output of the last layer. The parts of a sequence add up to the micro-batch's loss, of
        which training takes the mean over the micro-batches of a step; so do the metrics.
        """

    def prompt(self, sample: Sample) -> list[int]:
        """The beginning of a sample for the model to continue (--eval-generate); empty where there is none."""


@dataclass(frozen=True)
class TokenBatch(MicroBatch):
    """loss_weights: fp32 `(S, B)`, the mask over the number of tokens that count."""

    loss_weights: np.ndarray


def token_batch(samples: Sequence[Sample], pad_id: int = 0) -> TokenBatch:
    """Samples one beside the other, sequence first; a packed batch becomes one sequence of all its rows."""
    collated = collate(samples, pad_id)
    packed = collated.get("cu_seqlens")
    arrays = [collated[key] if packed is None else collated[key].reshape(1, -1)
              for key in ("tokens", "labels", "loss_mask")]
    tokens, labels, mask = (np.ascontiguousarray(array.T) for array in arrays)
    weights = mask.astype(np.float32) / max(1.0, float(mask.sum()))
    return TokenBatch(tokens.astype(np.int32), labels.astype(np.int32), packed, weights)


def token_loss(chunk: GPTModel, hidden: Tensor, micro: TokenBatch) -> tuple[Tensor, Metrics]:
    """Cross entropy of the labels, weighted by `micro.loss_weights`: the mean over the tokens that count."""
    losses = chunk.token_losses(hidden, local(chunk, micro.labels))
    return total((losses * local(chunk, micro.loss_weights)).reshape(-1, 1)).reshape(()), {}


def total(values: Tensor) -> Tensor:
    """Sums over the first axis of `(S, N)`, each as the sum of sums of up to 256: `(N,)`.

    MindSpore's CPU kernel adds element after element: over the 65,536 tokens of two 32K sequences one such sum is off
    by 3e-5, which then depends on how many ranks share the sequence.
    """
    rows, columns = values.shape
    return values.reshape(-1, gcd(rows, 256), columns).sum(dim=1).sum(dim=0)


def length_multiple(asked: int, parallel: ParallelConfig) -> int:
    """What sequence lengths must be multiples of so that context and sequence parallelism can cut them evenly."""
    pieces = pieces_of(parallel.context_parallel_size, parallel.context_parallel_algo)
    return lcm(asked, pieces * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1))
