"""Preference tuning: of two answers to a prompt make the chosen one likelier, the rejected one less likely."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.context_parallel.sums import sum_over_parts
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.batch import Dataset, build_train_valid_test, parts_of
from mindspeed_llm.data.instruction_dataset import IGNORE
from mindspeed_llm.data.pairwise_dataset import ANSWERS
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.micro_batch import MicroBatch, Sample, local
from mindspeed_llm.training.objectives.objective import Objective, length_multiple, total
from mindspeed_llm.training.objectives.preference_loss import METRICS, pair_losses, pair_metrics
from mindspeed_llm.training.passes import Metrics
from mindspeed_llm.training.reference import ReferenceModel
from mindspeed_llm.training.reference_logps import ReferenceLogps


@dataclass(frozen=True)
class PairBatch(MicroBatch):
    """P pairs as one packed row: the sequences of the chosen answers, then those of the rejected ones, then padding.

    answers: fp32 `(S, 2P)`, 1 where a position's label belongs to an answer. sizes: fp32 `(2P,)`, its tokens.
    reference: fp32 `(2P,)`, log-probabilities of the answers under the reference model, where they are known.
    """

    answers: np.ndarray
    sizes: np.ndarray
    reference: Tensor | None = None


class Preference(Objective):
    """Samples are pairs. Both sequences of all pairs of a micro-batch are one packed row, in which they do not see each
    other: one pass gives all log-probabilities, and answers of different lengths cost no padding between them.

    `reference` is the model that the loss compares with, None: the trained model without its adapters. `logps` take the
    place of either: log-probabilities of all pairs, computed once. `pad_id` fills the row up: to a multiple of
    --pad-to-multiple-of under --no-pad-to-seq-lengths, else to two sequences of --seq-length per pair.
    """

    metrics = METRICS

    def __init__(self, configs: Configs, pad_id: int, reference: ReferenceModel | None,
                 logps: ReferenceLogps | None = None) -> None:
        self._configs, self._pad_id, self._reference, self._logps = configs, pad_id, reference, logps

    def datasets(self, num_samples: tuple[int, int]) -> tuple[Dataset | None, Dataset | None]:
        """See `Objective`."""
        train = self._configs.train
        datasets = build_train_valid_test(self._configs.data, seq_length=train.seq_length, seed=train.seed,
                                          num_samples=(*num_samples, 0), kind="pairwise")[:2]
        if self._logps is not None:
            self._logps.attach([part for whole in datasets if whole is not None for part in parts_of(whole)],
                               lambda model, samples: model.outputs(answer_logps, [*map(self.micro_batch, samples)]))
        return datasets

    def micro_batch(self, samples: Sequence[Sample]) -> PairBatch:
        """See `Objective`."""
        data = self._configs.data
        if data.no_pad_to_seq_lengths:
            multiple = length_multiple(data.pad_to_multiple_of, self._configs.parallel)
        else:
            multiple = 2 * len(samples) * self._configs.train.seq_length
        return pair_batch(samples, self._pad_id, multiple)

    def prepared(self, micro_batches: list[PairBatch], chunks: list[GPTModel]) -> list[PairBatch]:
        """With the reference model's log-probabilities, on the last stage."""
        if self._logps is not None or not self._configs.preference.needs_reference:
            return micro_batches
        reference = self._reference or ReferenceModel(chunks)
        logps = reference.outputs(answer_logps, micro_batches) or [None] * len(micro_batches)
        return [replace(micro, reference=each) for micro, each in zip(micro_batches, logps, strict=True)]

    def loss(self, chunk: GPTModel, hidden: Tensor, micro: PairBatch) -> tuple[Tensor, Metrics]:
        """Mean over the pairs; every context-parallel rank has an equal share of it."""
        preference, parts = self._configs.preference, chunk.state.cp.size
        losses, scores, logps = pair_losses(preference, answer_logps(chunk, hidden, micro), micro.reference,
                                            from_numpy(micro.sizes))
        with autograd.no_grad():
            metrics = {name: value / parts for name, value in pair_metrics(preference, scores, logps).items()}
        return losses.mean() / parts, metrics

    def prompt(self, sample: Sample) -> list[int]:
        """Everything before the first token of an answer."""
        learned = np.flatnonzero(sample["chosen_labels"] != IGNORE)
        return sample["chosen_tokens"][:learned[0] + 1].tolist()


def answer_logps(chunk: GPTModel, hidden: Tensor, micro: PairBatch) -> Tensor:
    """Sums of the log-probabilities of the answers' tokens, fp32 `(2P,)`, over the whole sequence.

    From the cross entropy of the labels, which holds no logits of the whole vocabulary.
    """
    losses = chunk.token_losses(hidden, local(chunk, micro.labels))
    return sum_over_parts(-total(losses * local(chunk, micro.answers)), chunk.state.cp)


def pair_batch(samples: Sequence[Sample], pad_id: int, multiple: int) -> PairBatch:
    """Pairs as one packed row, filled up to a multiple of so many positions."""
    sequences = [(sample[f"{answer}_tokens"], sample[f"{answer}_labels"]) for answer in ANSWERS for sample in samples]
    bounds = np.cumsum([0, *(tokens.size for tokens, _ in sequences)])
    length = -(-int(bounds[-1]) // multiple) * multiple
    tokens, labels = np.full((length, 1), pad_id, np.int32), np.zeros((length, 1), np.int32)
    answers = np.zeros((length, len(sequences)), np.float32)
    for number, (ids, targets) in enumerate(sequences):
        place, learned = slice(bounds[number], bounds[number + 1]), targets != IGNORE
        tokens[place, 0], labels[place, 0], answers[place, number] = ids, np.where(learned, targets, 0), learned
    ends = bounds if bounds[-1] == length else np.append(bounds, length)
    known = "reference" in samples[0]
    reference = np.stack([sample["reference"] for sample in samples], axis=1).reshape(-1) if known else None
    return PairBatch(tokens, labels, ends.astype(np.int32), answers, answers.sum(axis=0),
                     from_numpy(reference) if known else None)
