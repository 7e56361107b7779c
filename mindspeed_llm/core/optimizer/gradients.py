"""From the gradients that a rank accumulated to those of the whole batch: sums over replicas, the global norm, bad
values.
"""

from collections import defaultdict

import numpy as np
from mindspore import Tensor, mint

from mindspeed_llm import kernels
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, all_gather, all_reduce
from mindspeed_llm.runtime.memory import FlatBuffer, from_numpy


def settle(parameters: ParameterSet) -> None:
    """Leave nothing of the step before in any `main_grad`. Raises RuntimeError when an operator left a parameter's
    gradient to the tape: it would be lost.
    """
    for name, tensor in parameters.trainable.items():
        autograd.settle_grad(tensor)
        if autograd.grad_of(tensor) is not None:
            raise RuntimeError(f"{name}: an operator left its gradient to the tape: use autograd.accumulate_grad")


def sum_across_stages(chunk: GPTModel, state: ParallelState) -> None:
    """Sum the gradients of parameters that several pipeline stages hold (a tied embedding: the first stage saw the input,
    the last one the output). Flat buffer, in place.

    The stages lay out their buffers differently, so this comes before the buffers are cut into shards.
    """
    for group, ranges in _partial_ranges(chunk, state, across_stages=True).items():
        _sum_ranges(chunk.parameters.grads, ranges, getattr(state, group))


def sum_partial(chunk: GPTModel, state: ParallelState, shards: list[tuple[int, int]]) -> None:
    """Sum the gradients of parameters that several tensor-parallel ranks hold but each saw only part of, within
    `shards`.

    Norm weights under sequence parallelism saw this rank's part of the sequence; replicated K/V rows saw this rank's
    query heads. Tensor-parallel ranks lay out their buffers alike. Flat buffer, in place.
    """
    for group, ranges in _partial_ranges(chunk, state, across_stages=False).items():
        _sum_ranges(chunk.parameters.grads, _within(ranges, shards), getattr(state, group))


def _partial_ranges(chunk: GPTModel, state: ParallelState, across_stages: bool) -> dict[str, list[tuple[int, int]]]:
    """Ranges of the flat gradient buffer of which this rank has only part of the sum, by group."""
    ranges = defaultdict(list)
    for name in chunk.parameters.trainable:
        shared = chunk.parameters.specs[name].shared
        if shared is None or shared.across_stages != across_stages or getattr(state, shared.group).size == 1:
            continue
        if state.sequence_parallel or not shared.by_sequence:
            ranges[shared.group].append(chunk.parameters.shared_range(name))
    return ranges


def owned_ranges(chunk: GPTModel, state: ParallelState, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of the flat ranges `shards` that this rank counts in a sum over the model's ranks: every element once.

    What several ranks share is counted by the first of them.
    """
    ranges = []
    for name in chunk.parameters.trainable:
        low, high = chunk.parameters.ranges[name]
        shared = chunk.parameters.specs[name].shared
        if shared is not None and getattr(state, shared.group).rank > 0:
            high, _ = chunk.parameters.shared_range(name)
        ranges.append((low, high))
    return _within(ranges, shards)


def global_sum_squares(tensors: list[Tensor], group: Group) -> float:
    """Sum of squares of fp32 tensors over the ranks of a group, in fp64 and rank order: the same bits on each rank.

    The device is waited for once, however many tensors there are.
    """
    words = all_gather(kernels.primitives().sum_squares(tensors), group)
    return float(words.asnumpy().astype(np.float64).sum())


def global_sum(values: np.ndarray, *groups: Group) -> np.ndarray:
    """Sum of numbers `(n,)` over every group in turn, in fp64 and rank order: the same bits on each rank."""
    for group in groups:
        if group.size > 1:
            # Two fp32 words carry a number's 53 bits through engines that move fp32 only.
            pairs = np.frombuffer(values.astype(np.float64).tobytes(), np.float32)
            parts = all_gather(from_numpy(pairs.copy()), group).asnumpy()
            values = np.frombuffer(np.ascontiguousarray(parts).tobytes(), np.float64).reshape(group.size, -1).sum(axis=0)
    return values


def first_bad_parameter(chunks: list[GPTModel]) -> str | None:
    """Name of the first parameter whose gradient holds NaN or infinity on this rank, in forward order."""
    for chunk in chunks:
        for name in chunk.parameters.trainable:
            gradient = chunk.parameters.grads.slice(*chunk.parameters.ranges[name])
            if not np.isfinite(kernels.primitives().sum_squares([gradient]).asnumpy()).all():
                return name
    return None


def first_bad_anywhere(chunks: list[GPTModel], state: ParallelState) -> str | None:
    """The first in forward order of all ranks' `first_bad_parameter`, with the lowest rank that has it: "name (rank r)";
    the same text on every rank. A collective of all ranks.
    """
    names = [spec.name for spec in model_specs(chunks[0].model, chunks[0].parallel.noop_layers, chunks[0].lora)]
    name = first_bad_parameter(chunks)
    place = len(names) if name is None else names.index(name)
    places = all_gather(from_numpy(np.array([place], np.float32)), state.world).asnumpy().astype(int).tolist()
    first = min(places)
    return f"{names[first]} (rank {places.index(first)})" if first < len(names) else None


def _within(ranges: list[tuple[int, int]], shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intersections of the ranges with the shards; those that follow one another in a shard are one."""
    found = []
    for start, stop in shards:
        joins = -1      # where a range begins that goes on with the last one
        for low, high in sorted((max(low, start), min(high, stop)) for low, high in ranges):
            if low >= high:
                continue
            if low == joins:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
            joins = high
    return found


def _sum_ranges(buffer: FlatBuffer, ranges: list[tuple[int, int]], group: Group) -> None:
    """all_reduce of several ranges of a flat buffer as one message, in place."""
    if not ranges:
        return
    total = all_reduce(mint.cat([buffer.slice(start, stop) for start, stop in ranges]), group)
    done = 0
    for start, stop in ranges:
        buffer.store(start, total[done:done + stop - start])
        done += stop - start
