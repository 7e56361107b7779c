"""The model's passes over micro-batches, as a pipeline runs them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from mindspore import Tensor

from mindspeed_llm.core.gpt_model import GPTModel, hidden_shape
from mindspeed_llm.core.optimizer.gradients import global_sum
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.core.transformer.lora import ADAPTERS_ON, AdapterUse
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.micro_batch import MicroBatch, local

Output = Callable[[GPTModel, Tensor, MicroBatch], Tensor]
"""What the last stage makes of the last layer's output `(S, B, H)`."""
Metrics = dict[str, Tensor]
"""Scalars by name, of which the parts of a sequence add up to the micro-batch's."""


def stage_programs(output: Output, chunks: list[GPTModel], micro_batches: Sequence[MicroBatch],
                   adapters: AdapterUse = ADAPTERS_ON) -> list[StageProgram]:
    """What each chunk of this rank does with each micro-batch; the last one gives `output`.

    `adapters`: how they take part. A dropout key is a text that no other step has.
    """
    return [_program(output, chunk, micro_batches, adapters) for chunk in chunks]


def _program(output: Output, chunk: GPTModel, micro_batches: Sequence[MicroBatch],
             adapters: AdapterUse) -> StageProgram:
    state = chunk.state

    def forward(number: int, received: Tensor | None) -> Tensor:
        micro = micro_batches[number]
        key = adapters.dropout_key and f"{adapters.dropout_key}/{number}/{state.dp.rank}/{state.cp.rank}"
        context = chunk.training_context(micro.seq_length, _on_device(micro.cu_seqlens),
                                         replace(adapters, dropout_key=key))
        hidden = chunk.hidden_states(local(chunk, micro.tokens) if chunk.first else received, context)
        return output(chunk, hidden, micro) if chunk.last else hidden

    def input_shape(number: int) -> tuple[int, ...]:
        micro = micro_batches[number]
        return hidden_shape(chunk.model, state, micro.seq_length // state.cp.size, micro.batch)

    return StageProgram(forward, input_shape, chunk.parameters.dtype)


class LossPasses:
    """The passes that give the losses of a step's micro-batches, and what is reported beside the losses.

    `loss` and `names` are an objective's `loss` and `metrics`. `dropout_key`: a text that no other step has, which the
    adapters' dropout depends on; None: there is no dropout.
    """

    def __init__(self, loss: Callable[[GPTModel, Tensor, MicroBatch], tuple[Tensor, Metrics]], names: tuple[str, ...],
                 chunks: list[GPTModel], micro_batches: Sequence[MicroBatch], dropout_key: str | None = None) -> None:
        self._loss, self._names, self._count = loss, names, len(micro_batches)
        self._reported: list[Metrics] = []
        self.programs = stage_programs(self._output, chunks, micro_batches, AdapterUse(dropout_key=dropout_key))

    def _output(self, chunk: GPTModel, hidden: Tensor, micro: MicroBatch) -> Tensor:
        loss, metrics = self._loss(chunk, hidden, micro)
        self._reported.append(metrics)
        return loss

    def means(self, losses: list[Tensor], state: ParallelState) -> tuple[float, dict[str, float]]:
        """The loss and the metrics as means over micro-batches and replicas, known to every rank.

        `losses` are those of the last stage's passes (elsewhere none).
        """
        values = [sum(map(float, losses)), *(sum(float(metrics[name]) for metrics in self._reported)
                                             for name in self._names)]
        loss, *metrics = global_sum(np.array(values) / self._count, state.dp_cp, state.pp) / state.dp.size
        return float(loss), {name: float(value) for name, value in zip(self._names, metrics, strict=True)}


def _on_device(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else from_numpy(np.ascontiguousarray(array))
