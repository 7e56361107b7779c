"""Bugs that people write in parallel code, planted one at a time to see the parity table's tolerance catch them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.core import gpt_model
from mindspeed_llm.core.context_parallel import partition
from mindspeed_llm.core.optimizer import gradients, reduction
from mindspeed_llm.core.optimizer.optimizer import ChunkState, Optimizer
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


PLANTED = {
    "all-reduce dropped in f": (
        combine("tp2_dp2", 4, 2, tp=2),
        lambda: patch.object(layers, "start_all_reduce", lambda tensor, group: (tensor, None))),
    "K/V gradients not summed": (
        combine("tp4", 4, 4, tp=4), lambda: patch.object(gradients, "sum_partial", lambda chunk, state, shards: None)),
    "zigzag order wrong": (combine("cp2_dp2", 4, 2, cp=2), _wrong_zigzag),
    "replicated parameters counted twice in the norm": (
        combine("tp2_dp2", 4, 2, tp=2),
        lambda: patch.object(gradients, "owned_ranges", lambda chunk, state, shards: shards)),
    "rope offset ignored by CP": (
        combine("cp2_dp2", 4, 2, cp=2),
        lambda: patch.object(gpt_model, "local_positions",
                             lambda seq_length, group, _: np.arange(seq_length // group.size))),
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
    **{f"{name}, bf16": (_in_bf16(row), plant) for name, (row, plant) in PLANTED.items()},
    "gradients summed over replicas in bf16": (
        _REPLICAS, lambda: patch.object(reduction, "start_all_reduce", _sum_rounded)),
    "master weights rounded to bf16": (
        _REPLICAS, lambda: patch.object(Optimizer, "_update", _masters_rounded(Optimizer._update))),
}


def with_bug(name: str) -> tuple[Row, object]:
    """The row to run and the context manager that plants the bug."""
    row, plant = {**PLANTED, **PLANTED_HALF}[name]
    return row, plant()
