"""From data sets to the micro-batches of one optimizer step, as this rank sees them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.context_parallel.partition import pieces_of
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.data.batch import build_train_valid_test, collate
from mindspeed_llm.data.samplers import BatchSampler
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.runtime.memory import from_numpy


@dataclass(frozen=True)
class MicroBatch:
    """tokens, labels int32 `(S, B)`; loss_weights fp32 `(S, B)`, the mask over the number of tokens that count.

    cu_seqlens: int32 boundaries of packed segments, or None. S is the whole sequence, before context parallelism cuts it.
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


def micro_batch(collated: dict[str, np.ndarray]) -> MicroBatch:
    """`collate`'s batch-first arrays, sequence first. A packed batch becomes one sequence of all its rows."""
    packed = collated.get("cu_seqlens")
    arrays = [collated[key] if packed is None else collated[key].reshape(1, -1)
              for key in ("tokens", "labels", "loss_mask")]
    tokens, labels, mask = (np.ascontiguousarray(array.T) for array in arrays)
    weights = mask.astype(np.float32) / max(1.0, float(mask.sum()))
    return MicroBatch(tokens.astype(np.int32), labels.astype(np.int32), weights, packed)


class Batches:
    """Training and validation micro-batches of one data-parallel rank, resumable from the number of consumed samples.

    Every rank reads its own data: ranks of one data-parallel replica read the same samples, so all know the shapes.
    """

    def __init__(self, configs: Configs, state: ParallelState, consumed_samples: int) -> None:
        train, data = configs.train, configs.data
        self._micro_batch_size, self._dp = train.micro_batch_size, state.dp
        self.num_microbatches = train.num_microbatches(state.dp.size)
        evaluations = train.train_iters // train.eval_interval + 1 if train.eval_iters else 0
        samples = (train.train_iters * train.global_batch_size,
                   evaluations * train.eval_iters * train.global_batch_size, 0)
        instruction = data.is_instruction_dataset
        data = replace(data, pad_to_multiple_of=_length_multiple(data.pad_to_multiple_of, configs.parallel))
        pad_id = load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).pad_id if instruction else None
        training, validation, _ = build_train_valid_test(
            data, seq_length=train.seq_length, seed=train.seed, num_samples=samples, instruction=instruction,
            pad_id=pad_id)
        self._pad_id = pad_id or 0
        self._training = self._stream(training, consumed_samples)
        self._validation = self._stream(validation, 0) if validation is not None else None

    @property
    def has_validation(self) -> bool:
        """Whether there is validation data."""
        return self._validation is not None

    def training_step(self) -> list[MicroBatch]:
        """The micro-batches of the next optimizer step."""
        return [next(self._training) for _ in range(self.num_microbatches)]

    def validation_step(self) -> list[MicroBatch]:
        """The micro-batches of the next validation iteration."""
        return [next(self._validation) for _ in range(self.num_microbatches)]

    def _stream(self, dataset, consumed_samples: int) -> Iterator[MicroBatch]:
        sampler = BatchSampler(len(dataset), consumed_samples, self._micro_batch_size, self._dp.rank, self._dp.size)
        return (micro_batch(collate([dataset[index] for index in indices], self._pad_id)) for indices in sampler)


def _length_multiple(asked: int, parallel: ParallelConfig) -> int:
    """What sequence lengths must be multiples of so that context and sequence parallelism can cut them evenly."""
    pieces = pieces_of(parallel.context_parallel_size, parallel.context_parallel_algo)
    return math.lcm(asked, pieces * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1))


def to_device(array: np.ndarray | None) -> Tensor | None:
    """A contiguous tensor on the device."""
    return None if array is None else from_numpy(np.ascontiguousarray(array))
