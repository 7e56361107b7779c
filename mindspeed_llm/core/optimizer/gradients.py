"""From the gradients that a rank accumulated to those of the whole batch: sums over replicas, the global norm, bad
values.
"""

import numpy as np
from mindspore import Tensor, mint

from mindspeed_llm import kernels
from mindspeed_llm.core.gpt_model import EMBEDDING, GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, all_gather, all_reduce
from mindspeed_llm.runtime.memory import FlatBuffer, from_numpy

_NAME_BYTES = 128


def collect(parameters: ParameterSet) -> None:
    """Make every `main_grad` whole: nothing left of the step before, and with what the tape left on the parameters
    (operators without a fused accumulation).
    """
    for tensor in parameters.tensors.values():
        autograd.settle_grad(tensor)
        grad = autograd.take_grad(tensor)
        if grad is not None:
            kernels.primitives().accumulate(tensor.main_grad, grad)


def sum_tied_embedding(chunk: GPTModel, state: ParallelState) -> None:
    """Sum a tied embedding's gradient over first and last stage, which saw the input and the output. Flat buffer, in
    place.

    The two stages lay out their buffers differently, so this comes before the buffers are cut into shards.
    """
    parameters = chunk.parameters
    tied = not chunk.model.untie_embeddings_and_output_weights
    if tied and state.embedding.size > 1 and EMBEDDING in parameters.specs:
        _sum_ranges(parameters.grads, [parameters.ranges[EMBEDDING]], state.embedding)


def sum_partial(chunk: GPTModel, state: ParallelState, shards: list[tuple[int, int]]) -> None:
    """Sum the gradients of parameters that several tensor-parallel ranks hold but each saw only part of, within
    `shards`.

    Norm weights under sequence parallelism saw this rank's part of the sequence; replicated K/V rows saw this rank's
    query heads. Tensor-parallel ranks lay out their buffers alike. Flat buffer, in place.
    """
    parameters = chunk.parameters
    if state.sequence_parallel:
        uncut = [parameters.ranges[name] for name, spec in parameters.specs.items() if spec.axis is None]
        _sum_ranges(parameters.grads, _within(uncut, shards), state.tp)
    if state.kv_replica.size > 1:
        rows = [(_kv_start(chunk, name), parameters.ranges[name][1])
                for name in parameters.specs if ".linear_qkv." in name]
        _sum_ranges(parameters.grads, _within(rows, shards), state.kv_replica)


def owned_ranges(chunk: GPTModel, state: ParallelState, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of the flat ranges `shards` that this rank counts in a sum over the model's ranks: every element once.

    Uncut parameters are counted by tensor rank 0, replicated K/V rows by the first of their ranks, a tied embedding by
    the first stage.
    """
    ranges = []
    for name, spec in chunk.parameters.specs.items():
        low, high = chunk.parameters.ranges[name]
        if spec.axis is None and state.tp.rank > 0:
            continue
        if name == EMBEDDING and not chunk.first:
            continue
        if ".linear_qkv." in name and state.kv_replica.rank > 0:
            high = _kv_start(chunk, name)
        ranges.append((low, high))
    return _within(ranges, shards)


def global_sum_squares(tensors: list[Tensor], group: Group) -> float:
    """Sum of squares of fp32 tensors over the ranks of a group, in fp64 and rank order: the same bits on each rank.

    The device is waited for once, however many tensors there are.
    """
    words = all_gather(kernels.primitives().sum_squares(tensors), group)
    return float(words.asnumpy().astype(np.float64).sum())


def global_sum(value: float, *groups: Group) -> float:
    """Sum of a number over every group in turn, in fp64 and rank order: the same bits on each rank."""
    for group in groups:
        if group.size > 1:
            # Two fp32 words carry the number's 53 bits through engines that move fp32 only.
            pair = np.frombuffer(np.float64(value).tobytes(), np.float32)
            parts = all_gather(from_numpy(pair.copy()), group).asnumpy()
            value = float(np.frombuffer(np.ascontiguousarray(parts).tobytes(), np.float64).sum())
    return value


def first_bad_parameter(chunks: list[GPTModel]) -> str | None:
    """Name of the first parameter whose gradient holds NaN or infinity on this rank, in forward order."""
    for chunk in chunks:
        for name in chunk.parameters.specs:
            gradient = chunk.parameters.grads.slice(*chunk.parameters.ranges[name])
            if not np.isfinite(kernels.primitives().sum_squares([gradient]).asnumpy()).all():
                return name
    return None


def first_bad_anywhere(chunks: list[GPTModel], state: ParallelState) -> str | None:
    """`first_bad_parameter` over all ranks, with the lowest rank that has it: "name (rank r)"; the same text on every
    rank.

    Forward order again: earlier pipeline stages first. A collective of all ranks.
    """
    name = (first_bad_parameter(chunks) or "").encode()[:_NAME_BYTES]
    codes = np.zeros(_NAME_BYTES, np.float32)
    codes[:len(name)] = list(name)
    found = all_gather(from_numpy(codes), state.world).asnumpy().reshape(state.world.size, _NAME_BYTES)
    names = [bytes(row.astype(np.uint8)).rstrip(b"\0").decode() for row in found]
    bad = [(_forward_order(text), rank, text) for rank, text in enumerate(names) if text]
    return "{2} (rank {1})".format(*min(bad)) if bad else None


def _forward_order(name: str) -> tuple[int, int]:
    if name.startswith("decoder.layers."):
        return 1, int(name.split(".")[2])
    return (0, 0) if name == EMBEDDING else (2, 0)


def _within(ranges: list[tuple[int, int]], shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intersections of every range with every shard."""
    cut = [(max(low, start), min(high, stop)) for low, high in ranges for start, stop in shards]
    return [(low, high) for low, high in cut if low < high]


def _sum_ranges(buffer: FlatBuffer, ranges: list[tuple[int, int]], group: Group) -> None:
    """all_reduce of several ranges of a flat buffer as one message, in place."""
    if not ranges:
        return
    total = all_reduce(mint.cat([buffer.slice(start, stop) for start, stop in ranges]), group)
    done = 0
    for start, stop in ranges:
        buffer.store(start, total[done:done + stop - start])
        done += stop - start


def _kv_start(chunk: GPTModel, name: str) -> int:
    """Where the K and V rows of a linear_qkv with one query group begin in the flat buffer: they are the last ones."""
    low, high = chunk.parameters.ranges[name]
    row = (high - low) // chunk.parameters[name].shape[0]
    return high - 2 * chunk.model.kv_channels * row
