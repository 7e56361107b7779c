"""The model's passes over an objective's micro-batches, as a pipeline runs them."""

import numpy as np
from mindspore import Tensor

from mindspeed_llm.core.gpt_model import GPTModel, hidden_shape
from mindspeed_llm.core.optimizer.gradients import global_sum
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.core.transformer.lora import AdapterUse
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.objectives.objective import MicroBatch, Objective, local


def stage_programs(objective: Objective, chunks: list[GPTModel], micro_batches: list[MicroBatch],
                   dropout_key: str | None = None) -> list[StageProgram]:
    """What each chunk of this rank does with each micro-batch; the last one gives the objective's loss.

    `dropout_key`: a text that no other step has, which the adapters' dropout depends on; None: there is no dropout.
    """
    return [_program(objective, chunk, micro_batches, dropout_key) for chunk in chunks]


def _program(objective: Objective, chunk: GPTModel, micro_batches: list[MicroBatch],
             dropout_key: str | None) -> StageProgram:
    state = chunk.state

    def forward(number: int, received: Tensor | None) -> Tensor:
        micro = micro_batches[number]
        key = None if dropout_key is None else f"{dropout_key}/{number}/{state.dp.rank}/{state.cp.rank}"
        context = chunk.training_context(micro.seq_length, _on_device(micro.cu_seqlens), AdapterUse(dropout_key=key))
        hidden = chunk.hidden_states(local(chunk, micro.tokens) if chunk.first else received, context)
        return objective.loss(chunk, hidden, micro) if chunk.last else hidden

    def input_shape(number: int) -> tuple[int, ...]:
        micro = micro_batches[number]
        return hidden_shape(chunk.model, state, micro.seq_length // state.cp.size, micro.batch)

    return StageProgram(forward, input_shape, chunk.parameters.dtype)


def mean_loss(losses: list[Tensor], microbatches: int, state: ParallelState) -> float:
    """Mean over `microbatches` and replicas of the last stage's losses (elsewhere none), known to every rank."""
    local_mean = sum(float(loss) for loss in losses) / microbatches
    return global_sum(local_mean, state.dp_cp, state.pp) / state.dp.size


def _on_device(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else from_numpy(np.ascontiguousarray(array))
