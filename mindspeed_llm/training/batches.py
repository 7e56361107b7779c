"""The micro-batches of one optimizer step, as this rank sees them."""

from collections.abc import Iterator
from itertools import islice

from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.data.batch import Dataset
from mindspeed_llm.data.samplers import BatchSampler
from mindspeed_llm.training.micro_batch import MicroBatch
from mindspeed_llm.training.objectives.objective import Objective


class Batches:
    """Training and validation micro-batches of one data-parallel rank.

    Every rank reads its own data: ranks of one data-parallel replica read the same samples, so all know the shapes.
    """

    def __init__(self, objective: Objective, train: TrainConfig, state: ParallelState) -> None:
        self.objective, self._micro_batch_size, self._dp = objective, train.micro_batch_size, state.dp
        self.num_microbatches = train.num_microbatches(state.dp.size)
        evaluations = train.train_iters // train.eval_interval + 1 if train.eval_iters else 0
        self._training_data, self._validation_data = objective.datasets((
            train.train_iters * train.global_batch_size, evaluations * train.eval_iters * train.global_batch_size))
        self._training = self._stream(self._training_data, 0)
        self._validation = self._stream(self._validation_data, 0) if self.has_validation else None

    def go_on_after(self, consumed_samples: int) -> None:
        """Training goes on behind so many samples, those of the run that is resumed."""
        self._training = self._stream(self._training_data, consumed_samples)

    @property
    def has_validation(self) -> bool:
        """Whether there is validation data."""
        return self._validation_data is not None

    def training_step(self) -> list[MicroBatch]:
        """The micro-batches of the next optimizer step."""
        return [next(self._training) for _ in range(self.num_microbatches)]

    def validation_step(self) -> list[MicroBatch]:
        """The micro-batches of the next validation iteration."""
        return [next(self._validation) for _ in range(self.num_microbatches)]

    def prompts(self, count: int, below: int) -> list[list[int]]:
        """The first `count` prompts of validation data that have fewer than `below` tokens; the same on every rank."""
        data = self._validation_data
        prompts = (self.objective.prompt(data[index]) for index in range(len(data)))
        return list(islice((prompt for prompt in prompts if 0 < len(prompt) < below), count))

    def _stream(self, dataset: Dataset, consumed_samples: int) -> Iterator[MicroBatch]:
        sampler = BatchSampler(len(dataset), consumed_samples, self._micro_batch_size, self._dp.rank, self._dp.size)
        return (self.objective.micro_batch([dataset[index] for index in indices]) for indices in sampler)
