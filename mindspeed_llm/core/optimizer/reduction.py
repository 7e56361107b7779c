"""From the gradients that each rank accumulated to the sums over all replicas, as early as they are complete.

Every bucket of a chunk's flat gradient buffer is one message: an all_reduce, or with the distributed optimizer a
reduce_scatter, after which a rank holds the sum in its shard only. With --overlap-grad-reduce a bucket starts as soon as
its last gradient of the step has been accumulated, while backward goes on. Method: Li et al., "PyTorch Distributed", 2020,
section 3.2.
"""

from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import Bucket
from mindspeed_llm.core.sharding import UNDER_WAY
from mindspeed_llm.runtime.collectives import finish, start_all_reduce, start_reduce_scatter


def shard(bucket: Bucket, state: ParallelState, distributed: bool) -> tuple[int, int]:
    """The range of a bucket that this rank updates: all of it, or with the distributed optimizer an equal part."""
    if not distributed:
        return bucket.start, bucket.stop
    part = (bucket.stop - bucket.start) // state.dp_cp.size
    return bucket.start + state.dp_cp.rank * part, bucket.start + (state.dp_cp.rank + 1) * part


class GradientReducer:
    """Sums the gradients of one chunk over the ranks that hold the same parameters."""

    def __init__(self, chunk: GPTModel, state: ParallelState, distributed: bool) -> None:
        self.chunk, self.state, self.distributed = chunk, state, distributed
        self._missing: dict[int, int] = {}
        self._started: dict[int, object] = {}
        parameters = chunk.parameters
        for number, bucket in enumerate(parameters.buckets):
            if chunk.parallel.overlap_grad_reduce and not bucket.late and state.dp_cp.size > 1:
                for name in bucket.names:
                    parameters[name].grad_ready = lambda number=number: self._count(number)

    def expect(self, microbatches: int) -> None:
        """Arm the overlap for a step in which every parameter gets `microbatches` gradients."""
        self._missing = {number: microbatches * len(bucket.names)
                         for number, bucket in enumerate(self.chunk.parameters.buckets) if not bucket.late}

    def finish(self) -> None:
        """Start what has not started, wait for all, and put the sums into the flat buffer, a few buckets at a time.

        `gradients.sum_across_stages` comes before, `gradients.sum_partial` after, on this rank's shards: sums over
        different groups may be taken in either order.
        """
        early = set(self._started)
        for number in range(len(self.chunk.parameters.buckets)):
            if number not in early and self.state.dp_cp.size > 1:
                self._start(number)
                self._store_all_but(UNDER_WAY - 1)
        self._store_all_but(0)
        self._missing = {}

    def _count(self, number: int) -> None:
        if number in self._started:
            raise RuntimeError(f"gradient bucket {number} was summed before its last gradient: expect() was given too "
                               "few micro-batches")
        if number in self._missing:
            self._missing[number] -= 1
            if self._missing[number] == 0:
                self._start(number)

    def _start(self, number: int) -> None:
        parameters, start = self.chunk.parameters, start_reduce_scatter if self.distributed else start_all_reduce
        bucket = parameters.buckets[number]
        self._started[number] = start(parameters.grads.slice(bucket.start, bucket.stop), self.state.dp_cp)

    def _store_all_but(self, count: int) -> None:
        """Wait for the oldest of what has started and put it in place, until `count` are left."""
        parameters = self.chunk.parameters
        while len(self._started) > count:
            number = next(iter(self._started))
            first, _ = shard(parameters.buckets[number], self.state, self.distributed)
            parameters.grads.store(first, finish(self._started.pop(number)))
