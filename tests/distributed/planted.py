"""Bugs that people write in parallel code, planted one at a time to see the parity table's tolerance catch them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import gpt_model
from mindspeed_llm.core.context_parallel import partition
from mindspeed_llm.core.optimizer import gradients, reduction
from mindspeed_llm.core.optimizer.optimizer import ChunkState, Optimizer
from mindspeed_llm.core.optimizer.reduction import GradientReducer
from mindspeed_llm.core.pipeline_parallel import mail
from mindspeed_llm.core.tensor_parallel import layers
from mindspeed_llm.runtime.collectives import Group, start_all_reduce
from tests.distributed.rows import Row, combine

PLANTED_WORLD = 4


def _neighbouring_pieces(seq_length: int, group, _: str) -> np.ndarray:
    """Pieces 2r and 2r+1 for rank r instead of r and 2C-1-r."""
    return np.arange(seq_length).reshape(group.size, -1)[group.rank]


@contextmanager
def _wrong_zigzag() -> Iterator[None]:
    with patch.object(gpt_model, "local_positions", _neighbouring_pieces), \
            patch.object(partition, "local_positions", _neighbouring_pieces):
        yield


def _one_late(finish_exchange):
    """The first message, then always the one before."""
    held = []

    def late(handle) -> list[Tensor]:
        received = finish_exchange(handle)
        if not received:
            return received
        held.append(received)
        return held.pop(0) if len(held) > 1 else received
    return late


def _in_rank_order(stage_layers):
    """Rank r holds the layers of stages V*r to V*r + V-1 instead of every P-th stage."""
    def layers(parallel: ParallelConfig, model) -> list[list[tuple[int, ...]]]:
        by_rank = stage_layers(parallel, model)
        virtual = len(by_rank[0])
        stages = [by_rank[rank][chunk] for chunk in range(virtual) for rank in range(len(by_rank))]
        return [stages[rank * virtual:(rank + 1) * virtual] for rank in range(len(by_rank))]
    return layers


@contextmanager
def _early_sums() -> Iterator[None]:
    expect, count = GradientReducer.expect, GradientReducer._count

    def count_unless_started(reducer: GradientReducer, number: int) -> None:
        if number not in reducer._started:
            count(reducer, number)
    with patch.object(GradientReducer, "expect", lambda reducer, microbatches: expect(reducer, microbatches - 1)), \
            patch.object(GradientReducer, "_count", count_unless_started):
        yield


def _forgetting(finish):
    """Of a bucket that is on its way, this rank's own gradients are kept."""
    def forget(reducer: GradientReducer) -> None:
        parameters = reducer.chunk.parameters
        for number in reducer._started:
            bucket = parameters.buckets[number]
            reducer._started[number] = parameters.grads.slice(bucket.start, bucket.stop).copy(), None
        finish(reducer)
    return forget


_OVERLAP = {"overlap_grad_reduce": True}
_VIRTUAL = {"num_layers_per_virtual_pipeline_stage": 1}

PLANTED = {
    "all-reduce dropped in f": (
        combine("tp2_dp2", 4, 2, tp=2),
        lambda: patch.object(layers, "start_all_reduce", lambda tensor, group: (tensor, None))),
    "K/V gradients not summed": (
        combine("tp4", 4, 4, tp=4), lambda: patch.object(gradients, "sum_partial", lambda chunk, state, shards: None)),
    "gradients of q and k norms not summed": (
        combine("qwen3_tp2_dp2", 4, 2, record="qwen3", tp=2),
        lambda: patch.object(gradients, "sum_partial", lambda chunk, state, shards: None)),
    "zigzag order wrong": (combine("cp2_dp2", 4, 2, cp=2), _wrong_zigzag),
    "replicated parameters counted twice in the norm": (
        combine("tp2_dp2", 4, 2, tp=2),
        lambda: patch.object(gradients, "owned_ranges", lambda chunk, state, shards: shards)),
    "rope offset ignored by CP": (
        combine("cp2_dp2", 4, 2, cp=2),
        lambda: patch.object(gpt_model, "local_positions",
                             lambda seq_length, group, _: np.arange(seq_length // group.size))),
    "pipeline messages one late": (
        combine("pp2_dp2", 4, pp=2),
        lambda: patch.object(mail, "finish_exchange", _one_late(mail.finish_exchange))),
    "interleaved messages one late": (
        combine("pp2_dp2_virtual", 4, pp=2, **_VIRTUAL),
        lambda: patch.object(mail, "finish_exchange", _one_late(mail.finish_exchange))),
    "tied embedding not summed over the stages": (
        combine("pp2_dp2_tied", 4, record="tied", pp=2),
        lambda: patch.object(gradients, "sum_across_stages", lambda chunk, state: None)),
    "chunks of a rank hold neighbouring layers": (
        combine("pp2_dp2_virtual", 4, pp=2, **_VIRTUAL),
        lambda: patch.object(ParallelConfig, "stage_layers", _in_rank_order(ParallelConfig.stage_layers))),
    "bucket summed before its last micro-batch": (combine("tp2_dp2_overlap", 4, tp=2, **_OVERLAP), _early_sums),
    "sum that started early is not stored": (
        combine("pp2_dp2_overlap", 4, pp=2, **_OVERLAP),
        lambda: patch.object(GradientReducer, "finish", _forgetting(GradientReducer.finish))),
    "updated parameters not gathered": (
        combine("tp2_dp2_overlap_zero", 4, tp=2, zero=True, overlap_param_gather=True, **_OVERLAP),
        lambda: patch.object(Optimizer, "_gather", lambda self, chunk_state: None)),
}


def _sum_rounded(tensor: Tensor, group: Group):
    return start_all_reduce(tensor.astype(mstype.bfloat16), group)


def _masters_rounded(update):
    def rounding_update(optimizer: Optimizer, chunk_state: ChunkState, *arguments) -> None:
        update(optimizer, chunk_state, *arguments)
        for master in chunk_state.states["master"]:
            master.copy_(master.astype(mstype.bfloat16).astype(mstype.float32))
    return rounding_update


def _in_bf16(row: Row) -> Row:
    return replace(row, dtype="bf16", record="bf16")


_REPLICAS = _in_bf16(combine("pp2_dp2", 4, 2, pp=2))
PLANTED_HALF = {
    **{f"{name}, bf16": (_in_bf16(row), plant) for name, (row, plant) in PLANTED.items()
       if row.record == "golden"},
    "gradients summed over replicas in bf16": (
        _REPLICAS, lambda: patch.object(reduction, "start_all_reduce", _sum_rounded)),
    "master weights rounded to bf16": (
        _REPLICAS, lambda: patch.object(Optimizer, "_update", _masters_rounded(Optimizer._update))),
}


def with_bug(name: str) -> tuple[Row, object]:
    """The row to run and the context manager that plants the bug."""
    row, plant = {**PLANTED, **PLANTED_HALF}[name]
    return row, plant()
