"""AdamW over a rank's flat buffers, optionally sharded over the data-parallel ranks.

The fp32 master weights and both moments are flat tensors over the ranges of the parameter buffer that this rank updates:
all of it, or with the distributed optimizer (Rajbhandari et al., "ZeRO", 2020, stage 1) an equal part of each bucket per
dp x cp rank.
"""

import math
from dataclasses import dataclass

from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.training import OptimizerConfig
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.core.optimizer.reduction import GradientReducer, shard
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.sharding import OPTIMIZER_STATES, UNDER_WAY
from mindspeed_llm.runtime.collectives import finish, start_all_gather
from mindspeed_llm.runtime.memory import FlatBuffer
from mindspeed_llm.runtime.trace import traced


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step: the global gradient norm before clipping, and whether the update was made."""

    grad_norm: float
    updated: bool


@dataclass(frozen=True)
class Piece:
    """The part of one parameter that this rank updates: elements start..stop of the local tensor, in flat order."""

    name: str
    start: int
    stop: int
    offset: int  # of element `start` in the chunk's flat buffer
    decay: bool

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.stop - self.start


class ChunkState:
    """Optimizer state of one model chunk: the ranges `shards` of its flat buffer that this rank updates (one per
    bucket), and per piece of a parameter in them the fp32 master, exp_avg and exp_avg_sq. fp32 parameters are their
    own masters.
    """

    def __init__(self, chunk: GPTModel, shards: list[tuple[int, int]]) -> None:
        self.chunk, self.shards = chunk, shards
        parameters = chunk.parameters
        self.pieces = []
        for name, spec in parameters.specs.items():
            low, high = parameters.ranges[name]
            for start, stop in shards:
                first, last = max(low, start), min(high, stop)
                if first < last:
                    self.pieces.append(Piece(name, first - low, last - low, first, spec.decay))
        groups = [[(piece.length,)] for piece in self.pieces]
        self.shares_masters = parameters.dtype == mstype.float32
        self.states: dict[str, list[Tensor]] = {}
        for name in OPTIMIZER_STATES:
            if name == "master" and self.shares_masters:
                self.states[name] = [parameters.buffer.slice(piece.offset, piece.offset + piece.length)
                                     for piece in self.pieces]
            else:
                self.states[name] = FlatBuffer(groups, mstype.float32).views

    def reset_masters(self) -> None:
        """Take the master weights from the parameters (after initialisation, or after loading weights only)."""
        if self.shares_masters:
            return
        buffer = self.chunk.parameters.buffer
        for piece, master in zip(self.pieces, self.states["master"], strict=True):
            master.copy_(buffer.slice(piece.offset, piece.offset + piece.length))


class Optimizer:
    """AdamW with fp32 master weights for the chunks of one rank."""

    def __init__(self, chunks: list[GPTModel], config: OptimizerConfig, state: ParallelState,
                 distributed: bool) -> None:
        self.config, self.state = config, state
        self.distributed = distributed and state.dp_cp.size > 1
        self.step_count = 0
        self.chunk_states = []
        for chunk in chunks:
            self.chunk_states.append(ChunkState(chunk, [shard(bucket, state, self.distributed)
                                                        for bucket in chunk.parameters.buckets]))
        self._reducers = [GradientReducer(chunk, state, self.distributed) for chunk in chunks]
        self.reset_masters()

    @property
    def chunks(self) -> list[GPTModel]:
        """The model chunks that this optimizer updates."""
        return [chunk_state.chunk for chunk_state in self.chunk_states]

    def reset_masters(self) -> None:
        """Start from the parameters as they are."""
        for chunk_state in self.chunk_states:
            chunk_state.reset_masters()

    def expect_gradients(self, microbatches: int) -> None:
        """Say how many backward passes the coming step has, so that --overlap-grad-reduce can start each bucket with
        its last gradient. Without this call, or without the flag, all buckets are reduced in `step`.
        """
        for reducer in self._reducers:
            reducer.expect(microbatches)

    def zero_grad(self) -> None:
        """Forget the accumulated gradients."""
        for chunk in self.chunks:
            chunk.parameters.drop_grads()

    @traced("optimizer", "optimizer step")
    def step(self, lr: float, grad_scale: float) -> StepResult:
        """Reduce the gradients over all replicas and update the parameters.

        `grad_scale` turns the accumulated sums into the mean gradient (micro-batches, data-parallel ranks, loss scale).
        A gradient with NaN or infinity anywhere leaves parameters and state as they were, on every rank.
        """
        self._reduce()
        squares = self._sum_squares()
        grad_norm = math.sqrt(squares) * grad_scale if math.isfinite(squares) else squares
        if not math.isfinite(grad_norm):
            return StepResult(grad_norm, False)
        if 0.0 < self.config.clip_grad < grad_norm:
            grad_scale *= self.config.clip_grad / (grad_norm + 1e-6)
        self.step_count += 1
        for chunk_state in self.chunk_states:
            self._update(chunk_state, lr, grad_scale)
        return StepResult(grad_norm, True)

    def _reduce(self) -> None:
        for chunk_state, reducer in zip(self.chunk_states, self._reducers, strict=True):
            chunk = chunk_state.chunk
            gradients.settle(chunk.parameters)
            gradients.sum_across_stages(chunk, self.state)
            reducer.finish()
            gradients.sum_partial(chunk, self.state, chunk_state.shards)

    def _sum_squares(self) -> float:
        owned = [chunk_state.chunk.parameters.grads.slice(low, high) for chunk_state in self.chunk_states
                 for low, high in gradients.owned_ranges(chunk_state.chunk, self.state, chunk_state.shards)]
        return gradients.global_sum_squares(owned, self.state.world if self.distributed else self.state.model)

    def _update(self, chunk_state: ChunkState, lr: float, grad_scale: float) -> None:
        config, parameters = self.config, chunk_state.chunk.parameters
        buffer, grads = parameters.buffer, parameters.grads
        for index, piece in enumerate(chunk_state.pieces):
            end = piece.offset + piece.length
            master, exp_avg, exp_avg_sq = (chunk_state.states[name][index] for name in OPTIMIZER_STATES)
            values = master if chunk_state.shares_masters else buffer.slice(piece.offset, end)
            kernels.primitives().adamw(
                values, master, grads.slice(piece.offset, end), exp_avg, exp_avg_sq, lr=lr, beta1=config.adam_beta1,
                beta2=config.adam_beta2, eps=config.adam_eps,
                weight_decay=config.weight_decay if piece.decay else 0.0, step=self.step_count, grad_scale=grad_scale)
        if self.distributed:
            self._gather(chunk_state)

    def _gather(self, chunk_state: ChunkState) -> None:
        """Collect all shards' parameters: first what every layer needs, then in forward order.

        With --overlap-param-gather they arrive while the next forward pass is already under way; without it few are
        under way at once and all are in place at the end.
        """
        parameters, lazily = chunk_state.chunk.parameters, chunk_state.chunk.parallel.overlap_param_gather
        for bucket, (start, stop) in sorted(zip(parameters.buckets, chunk_state.shards, strict=True),
                                            key=lambda entry: not entry[0].late):
            handle = start_all_gather(parameters.buffer.slice(start, stop), self.state.dp_cp)
            parameters.arriving(
                bucket.names, lambda bucket=bucket, handle=handle: parameters.place(bucket, finish(handle)))
            if not lazily:
                parameters.settle_all_but(UNDER_WAY - 1)
        if not lazily:
            parameters.settle()
