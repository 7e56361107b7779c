"""The smallest change of flags that makes a job fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.planner.job import Job
from mindspeed_llm.tasks.planner.memory import stage_memory

_MOST_TENSOR_PARALLEL = 8  # beyond one node's devices its traffic would cross nodes


@dataclass(frozen=True)
class Change:
    """A way to make the job smaller: the flags that say it, and the job they give."""

    flags: tuple[str, ...]
    job: Job


def peak(job: Job) -> int:
    """The largest peak of any rank, in bytes."""
    return max(stage_memory(job, stage).peak for stage in range(job.pp))


def smallest_change(job: Job, limit: int) -> Change | None:
    """The first change that brings every rank to at most `limit` bytes, or None.

    Order: a reference model that is not kept in memory, recomputation of as few layers as it takes, then more tensor,
    pipeline or context parallelism, then a smaller micro-batch, each alone; then these with all layers recomputed; then
    two and three of them together.
    """
    for change in candidates(job):
        if peak(change.job) <= limit:
            return change
    return None


def candidates(job: Job) -> Iterator[Change]:
    """Changes that make the job smaller, smallest first, among those that the job would accept."""
    start = Change((), job)
    if job.second_model:
        start = Change(("--precompute-ref",), job.with_precomputed_reference())
        yield start
    kinds = (_tensor, _pipeline, _context, _micro_batch)
    yield from _recompute(start)
    for kind in kinds:
        yield from kind(start)
    everything = [start, *_recompute(start)][-1]
    for kind in kinds:
        yield from kind(everything)
    for base in (start, everything):
        for first in range(len(kinds)):
            for second in range(first + 1, len(kinds)):
                yield from _chain(base, kinds[first], kinds[second])
    for base in (start, everything):
        yield from _chain(base, _tensor, _pipeline, _context)
        yield from _chain(base, _tensor, _pipeline, _context, _micro_batch)


def _chain(base: Change, *kinds: Callable[[Change], Iterator[Change]]) -> Iterator[Change]:
    if not kinds:
        yield base
        return
    for change in kinds[0](base):
        yield from _chain(change, *kinds[1:])


def _recompute(base: Change) -> Iterator[Change]:
    """Full recomputation of 1, 2, ... layers of each chunk; more than are recomputed now."""
    parallel = base.job.parallel
    most = max(len(layers) for chunks in base.job.stage_layers for layers in chunks)
    now = 0
    if parallel.recompute_granularity == "full":
        now = parallel.recompute_num_layers if parallel.recompute_method == "block" else most
    for count in range(now + 1, most + 1):
        flags = ("--recompute-granularity full", "--recompute-method block", f"--recompute-num-layers {count}")
        yield from _made(base, flags, lambda count=count: base.job.with_parallel(
            recompute_granularity="full", recompute_method="block", recompute_num_layers=count))
    if parallel.recompute_granularity == "full" and parallel.recompute_method == "uniform" and \
            parallel.recompute_num_layers > 1:
        yield from _made(base, ("--recompute-num-layers 1",), lambda: base.job.with_parallel(recompute_num_layers=1))


def _tensor(base: Change) -> Iterator[Change]:
    for size in _multiples(base.job.tp, min(base.job.world_size, _MOST_TENSOR_PARALLEL)):
        flags = (f"--tensor-model-parallel-size {size}", *(() if base.job.parallel.sequence_parallel else
                                                           ("--sequence-parallel",)))
        yield from _made(base, flags, lambda size=size: base.job.with_parallel(
            tensor_model_parallel_size=size, sequence_parallel=True))


def _pipeline(base: Change) -> Iterator[Change]:
    layers = base.job.model.num_layers
    for size in _multiples(base.job.pp, min(base.job.world_size, layers)):
        counts, flags = None, (f"--pipeline-model-parallel-size {size}",)
        if layers % size or base.job.parallel.num_layer_list is not None:
            counts = tuple(layers // size + (stage < layers % size) for stage in range(size))
            flags += (f"--num-layer-list {','.join(map(str, counts))}",)
        yield from _made(base, flags, lambda size=size, counts=counts: base.job.with_parallel(
            pipeline_model_parallel_size=size, num_layer_list=counts))


def _context(base: Change) -> Iterator[Change]:
    for size in _multiples(base.job.cp, base.job.world_size):
        yield from _made(base, (f"--context-parallel-size {size}",),
                         lambda size=size: base.job.with_parallel(context_parallel_size=size))


def _micro_batch(base: Change) -> Iterator[Change]:
    for size in range(base.job.train.micro_batch_size - 1, 0, -1):
        yield from _made(base, (f"--micro-batch-size {size}",), lambda size=size: base.job.with_micro_batch(size))


def _multiples(now: int, most: int) -> Iterator[int]:
    size = 2 * now
    while size <= most:
        yield size
        size *= 2


def _made(base: Change, flags: tuple[str, ...], make: Callable[[], Job]) -> Iterator[Change]:
    """The change, unless the job refuses such sizes."""
    try:
        job = make()
    except UserError:
        return
    yield Change(base.flags + flags, job)
