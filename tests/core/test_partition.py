"""Every division of work over ranks covers everything exactly once: tensors, positions, layers, groups, pipeline
tasks.
"""

import numpy as np
import pytest

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import RING, ULYSSES, ParallelConfig
from mindspeed_llm.core.context_parallel.partition import local_part, local_positions
from mindspeed_llm.core.context_parallel.ring import blocks
from mindspeed_llm.core.context_parallel.ulysses import group_ranges
from mindspeed_llm.core.parallel_state import rank_coordinates
from mindspeed_llm.core.pipeline_parallel.order import Task, order_of_tasks
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.runtime.collectives import Group

MODEL = ModelConfig(num_layers=2, hidden_size=16, ffn_hidden_size=24, num_attention_heads=8, num_query_groups=2,
                    kv_channels=4, padded_vocab_size=32, post_norm=True)


def members(size: int) -> list[Group]:
    return [Group("test", tuple(range(size)), rank) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_shards_cover_every_tensor(size):
    """Each index of a cut axis is held once, K/V rows once per replica."""
    for spec in model_specs(MODEL):
        held = np.zeros(spec.shape[spec.partition_dim or 0], int)
        for rank in range(size):
            for start, stop in spec.segments(rank, size):
                held[start:stop] += 1
            assert spec.local_shape(rank, size)[spec.partition_dim or 0] == sum(b - a for a, b in spec.segments(rank, size))
        if spec.partition_dim is None:
            assert (held == size).all(), spec.name
        elif ".linear_qkv." in spec.name:
            rows = np.arange(len(held)) % ((MODEL.heads_per_group + 2) * MODEL.kv_channels)
            expected = np.where(rows < MODEL.heads_per_group * MODEL.kv_channels, 1, MODEL.local_heads(size).replicas)
            assert (held == expected).all(), spec.name
        else:
            assert (held == 1).all(), spec.name


@pytest.mark.parametrize("algorithm", [RING, ULYSSES])
def test_positions_cover_the_sequence(algorithm):
    parts = [local_positions(48, group, algorithm) for group in members(4)]
    assert sorted(np.concatenate(parts)) == list(range(48))
    assert {len(part) for part in parts} == {12}
    array = np.arange(96).reshape(48, 2)
    assert (local_part(array, members(4)[2], algorithm) == array[parts[2]]).all()


def test_positions_refuse_an_uneven_cut():
    with pytest.raises(ValueError, match=r"sequence length \(20\) must be divisible by 8"):
        local_positions(20, members(4)[0], RING)


@pytest.mark.parametrize("packed", [False, True])
def test_ring_blocks_see_each_visible_pair_once(packed):
    """Pairs (query, key) with key <= query, over all ranks and steps; and every rank has as many of them."""
    size, piece = 4, 3
    groups = members(size)
    seen, work = np.zeros((2 * size * piece,) * 2, int), []
    for rank in range(size):
        queries = local_positions(2 * size * piece, groups[rank], RING)
        before = seen.sum()
        for owner in range(size):
            keys = local_positions(2 * size * piece, groups[owner], RING)
            for block in blocks(rank, owner, size, piece, packed):
                q_rows, k_rows = queries[block.queries], keys[block.keys]
                k_index, q_index = block.k_start + np.arange(len(k_rows)), block.q_start + np.arange(len(q_rows))
                visible = k_index[None] <= q_index[:, None]
                seen[np.ix_(q_rows, k_rows)] += visible
        work.append(seen.sum() - before)
    assert (seen == np.tril(np.ones_like(seen))).all()
    assert len(set(work)) == 1


def test_ulysses_groups():
    assert group_ranges(8, 4, 2) == [(0, 2), (2, 4)]
    assert group_ranges(8, 2, 4) == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert group_ranges(8, 2, 2) == [(0, 1), (1, 2)]
    with pytest.raises(ValueError, match="ulysses_cp_algo cannot cut 8 heads"):
        group_ranges(8, 2, 3)


def test_rank_coordinates_are_unique_and_tensor_parallel_is_fastest():
    parallel = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, context_parallel_size=2)
    places = [rank_coordinates(rank, parallel, 16) for rank in range(16)]
    assert len({tuple(place.items()) for place in places}) == 16
    assert [place["tp"] for place in places[:4]] == [0, 1, 0, 1]
    assert places[1] == {"tp": 1, "cp": 0, "dp": 0, "pp": 0}
    assert places[8] == {"tp": 0, "cp": 0, "dp": 0, "pp": 1}


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 4, 5, 6, 8, 9])
def test_interleaved_order_is_complete_and_never_waits_for_ever(ranks, chunks, microbatches):
    """Simulates all ranks: each runs its next task once the task's input has been made."""
    stages = ranks * chunks
    waiting = [order_of_tasks(rank, ranks, chunks, microbatches) for rank in range(ranks)]
    everything = {Task(forward, stage, number) for forward in (True, False) for stage in range(stages)
                  for number in range(microbatches)}
    assert {task for tasks in waiting for task in tasks} == everything
    assert sum(map(len, waiting)) == len(everything)
    done: set[Task] = set()

    def ready(task: Task) -> bool:
        if task.forward:
            return task.stage == 0 or Task(True, task.stage - 1, task.microbatch) in done
        follows = task.stage == stages - 1 or Task(False, task.stage + 1, task.microbatch) in done
        return follows and Task(True, task.stage, task.microbatch) in done

    while any(waiting):
        runnable = [tasks for tasks in waiting if tasks and ready(tasks[0])]
        assert runnable, f"all ranks wait: {[tasks[:1] for tasks in waiting]}"
        for tasks in runnable:
            done.add(tasks.pop(0))


def test_interleaved_bubble_matches_theory():
    """With forwards of 1 and backwards of 2 units the idle fraction is (p-1) / (v m + p - 1)."""
    ranks, chunks, microbatches = 4, 2, 16
    orders = [order_of_tasks(rank, ranks, chunks, microbatches) for rank in range(ranks)]
    end: dict[Task, int] = {}
    clock, position = [0] * ranks, [0] * ranks
    stages = ranks * chunks
    while any(position[rank] < len(orders[rank]) for rank in range(ranks)):
        for rank in range(ranks):
            while position[rank] < len(orders[rank]):
                task = orders[rank][position[rank]]
                source = Task(task.forward, task.stage + (-1 if task.forward else 1), task.microbatch)
                if 0 <= source.stage < stages and source not in end:
                    break
                clock[rank] = max(clock[rank], end.get(source, 0)) + (1 if task.forward else 2)
                end[task] = clock[rank]
                position[rank] += 1
    busy = 3 * chunks * microbatches
    idle = 1 - busy / max(clock)
    assert abs(idle - (ranks - 1) / (chunks * microbatches + ranks - 1)) < 0.01
