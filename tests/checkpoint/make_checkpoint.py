"""Saving a random model as many ranks would, for the checkpoint tests."""

from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint import (OptimizerShard, SaveInfo, StoredTensor, begin_save, commit_save, write_model_file,
                                      write_optimizer_file)
from mindspeed_llm.checkpoint.dtypes import cast
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import chunk_specs, model_specs

MODEL = ModelConfig(num_layers=5, hidden_size=16, ffn_hidden_size=24, num_attention_heads=8, num_query_groups=2,
                    kv_channels=4, padded_vocab_size=40)


def global_state(model: ModelConfig, seed: int = 0,
                 noop_layers: tuple[int, ...] = ()) -> dict[str, dict[str, np.ndarray]]:
    """fp32 whole tensors: state ("weight", "master", "exp_avg", "exp_avg_sq") -> parameter name -> array."""
    rng = np.random.default_rng(seed)
    specs = model_specs(model, noop_layers)
    return {state: {spec.name: rng.standard_normal(spec.shape, dtype=np.float32) for spec in specs}
            for state in ("weight", "master", "exp_avg", "exp_avg_sq")}


def shard(array: np.ndarray, spec: TensorSpec, rank: int, size: int) -> np.ndarray:
    """What a rank holds of a whole tensor, by plain slicing."""
    axis = spec.partition_dim or 0
    parts = [np.take(array, np.arange(start, stop), axis) for start, stop in spec.segments(rank, size)]
    return np.ascontiguousarray(np.concatenate(parts, axis))


def cuts(total: int, parts: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """`parts` consecutive ranges of random lengths (some empty) that cover [0, total)."""
    edges = [0, *sorted(rng.integers(0, total + 1, parts - 1).tolist()), total]
    return list(zip(edges, edges[1:]))


def save(root: Path, model: ModelConfig, parallel: ParallelConfig, state: dict, *, iteration: int = 7, dp: int = 1,
         dtype: str = "fp32", master: bool = True, optimizer: bool = True, seed: int = 0) -> None:
    """Save through the public protocol, every rank in turn; optimizer state is cut at random over DP."""
    staging = begin_save(root, iteration)
    rng = np.random.default_rng(seed)
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for pp_rank, chunks in enumerate(parallel.stage_layers(model)):
        specs = []
        for number, layers in enumerate(chunks):
            specs += chunk_specs(model, layers, first=pp_rank == 0 and number == 0,
                                 last=pp_rank == pp - 1 and number == len(chunks) - 1)
        for tp_rank in range(tp):
            place = {"tp_rank": tp_rank, "tp_size": tp, "pp_rank": pp_rank, "pp_size": pp}
            arrays = {spec.name: shard(state["weight"][spec.name], spec, tp_rank, tp) for spec in specs}
            weights = [(spec, StoredTensor(cast(arrays[spec.name], "fp32", dtype), dtype)) for spec in specs]
            write_model_file(staging, weights, **place)
            if not optimizer:
                continue
            ranges = {spec.name: cuts(int(np.prod(spec.local_shape(tp_rank, tp))), dp, rng) for spec in specs}
            for dp_rank in range(dp):
                shards = []
                for spec in specs:
                    start, stop = ranges[spec.name][dp_rank]
                    states = {kind: shard(state[kind][spec.name], spec, tp_rank, tp).reshape(-1)[start:stop]
                              for kind in (("master",) if master else ()) + ("exp_avg", "exp_avg_sq")}
                    shards.append(OptimizerShard(spec, start, stop, states))
                write_optimizer_file(staging, shards, dp_rank=dp_rank, **place)
    commit_save(root, SaveInfo(model, parallel, iteration, consumed_samples=448, data_parallel_size=dp,
                               rng={"seed": 1234}, weights_only=not optimizer))
