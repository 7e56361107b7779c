"""From the gradients that a rank accumulated to those of the whole batch: sums over replicas, the global norm, bad values."""

import math

import numpy as np
from mindspore import mint

from mindspeed_llm import kernels
from mindspeed_llm.core.gpt_model import EMBEDDING, GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, all_gather, all_reduce
from mindspeed_llm.runtime.memory import FlatBuffer, from_numpy


def collect(parameters: ParameterSet) -> None:
    """Move gradients that the tape left on the parameters (operators without a fused accumulation) into `main_grad`."""
    for tensor in parameters.tensors.values():
        grad = autograd.grad_of(tensor)
        if grad is not None:
            kernels.primitives().accumulate(tensor.main_grad, grad)
            tensor._grad = None


def reduce_model_parallel(chunks: list[GPTModel], state: ParallelState) -> None:
    """Sum the gradients of parameters that several ranks of one model replica hold but each saw only part of.

    Norm weights under sequence parallelism saw this rank's part of the sequence; replicated K/V rows saw this rank's query
    heads; a tied embedding saw the input on the first stage and the output on the last. Works on the flat buffers.
    """
    for chunk in chunks:
        parameters = chunk.parameters
        if state.sequence_parallel:
            uncut = [parameters.ranges[name] for name, spec in parameters.specs.items() if spec.axis is None]
            _sum_ranges(parameters.grads, uncut, state.tp)
        if state.kv_replica.size > 1:
            _sum_ranges(parameters.grads, [(_kv_start(chunk, name), parameters.ranges[name][1])
                                           for name in parameters.specs if ".linear_qkv." in name], state.kv_replica)
        if not chunk.model.untie_embeddings_and_output_weights and state.embedding.size > 1 and EMBEDDING in parameters.specs:
            _sum_ranges(parameters.grads, [parameters.ranges[EMBEDDING]], state.embedding)


def owned_ranges(chunk: GPTModel, state: ParallelState, start: int, stop: int) -> list[tuple[int, int]]:
    """Parts of the flat range start..stop that this rank counts in a sum over the model's ranks: every element once.

    Uncut parameters are counted by tensor rank 0, replicated K/V rows by the first of their ranks, a tied embedding by the
    first stage.
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
        low, high = max(low, start), min(high, stop)
        if low < high:
            ranges.append((low, high))
    return ranges


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
        for name, tensor in chunk.parameters.tensors.items():
            if not math.isfinite(kernels.primitives().sum_squares(tensor.main_grad.reshape(-1))):
                return name
    return None


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
