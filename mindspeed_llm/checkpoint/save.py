"""Writing a checkpoint from many ranks so that a kill at any instant leaves the previous one loadable.

Protocol (barriers are the caller's):

    rank 0:     begin_save(save_dir, iteration)
    barrier
    every rank: write_model_file(...), write_optimizer_file(...) into staging_directory(save_dir, iteration)
    barrier
    rank 0:     commit_save(save_dir, info)

Each written file leaves its metadata entry in a small JSON file beside it, which `commit_save` collects: no collective
is needed. Ranks whose files rank 0 cannot see (no shared storage) gather the returned entries and pass them instead.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint import layout
from mindspeed_llm.checkpoint.completeness import check_complete
from mindspeed_llm.checkpoint.dtypes import SAFETENSORS_DTYPES, LazyTensor, StoredTensor
from mindspeed_llm.checkpoint.metadata import read_metadata
from mindspeed_llm.checkpoint.files import sync_directory, write_text
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.sharding import OPTIMIZER_STATES, TensorSpec

_ENTRY = ".entry.json"
Entries = dict[str, dict]


@dataclass(frozen=True)
class SaveInfo:
    """What a checkpoint says about itself beside its tensors. `rng` and `extra` are JSON-ready dictionaries.

    `lora` are the adapters that it holds; with `adapters_only` nothing else.
    """

    model: ModelConfig
    parallel: ParallelConfig
    iteration: int
    consumed_samples: int = 0
    weights_only: bool = False
    data_parallel_size: int = 1
    lora: LoraConfig | None = None
    adapters_only: bool = False
    rng: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerShard:
    """Optimizer state of the flat elements [start, stop) of a rank's tensor of `spec`.

    `states` maps some of "master", "exp_avg", "exp_avg_sq" to fp32 arrays of stop - start elements. A master may be
    left out when the weight itself is fp32.
    """

    spec: TensorSpec
    start: int
    stop: int
    states: Mapping[str, np.ndarray]


def staging_directory(save_dir: str | os.PathLike, iteration: int) -> Path:
    """Where the ranks write until the save is committed."""
    return Path(save_dir) / (layout.iteration_name(iteration) + layout.STAGING)


def begin_save(save_dir: str | os.PathLike, iteration: int) -> Path:
    """Rank 0: clean what killed saves left in `save_dir` (made if needed) and create the staging directory."""
    root = Path(save_dir)
    if root.exists() and not root.is_dir():
        raise UserError(f"--save {root} is a file: give a directory")
    root.mkdir(parents=True, exist_ok=True)
    clean_leftovers(root)
    staging = staging_directory(root, iteration)
    staging.mkdir()
    return staging


def clean_leftovers(root: Path) -> None:
    """Put back an iteration whose replacement was interrupted; remove everything half-written."""
    for old in root.glob(f"iter_*{layout.REPLACED}"):
        current = old.with_name(old.name.removesuffix(layout.REPLACED))
        if current.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, current)
    for staging in root.glob(f"iter_*{layout.STAGING}"):
        shutil.rmtree(staging)


def write_model_file(staging: Path, tensors: Sequence[tuple[TensorSpec, StoredTensor | LazyTensor]], *, tp_rank: int,
                     tp_size: int, pp_rank: int, pp_size: int) -> Entries:
    """Write the weights that a model-parallel rank holds (called by one data-parallel rank of each).

    Tensors are local ones, in the order in which they should lie in the file; lazy ones are made one at a time. Returns
    the file's metadata entry. Raises ValueError when a shape is not the one that the sharding gives the rank.
    """
    for spec, tensor in tensors:
        if tuple(tensor.shape) != spec.local_shape(tp_rank, tp_size):
            raise ValueError(f"{spec.name} of tensor-parallel rank {tp_rank}/{tp_size} has shape {list(tensor.shape)}, "
                             f"{list(spec.local_shape(tp_rank, tp_size))} expected")
    relative = layout.model_file(tp_rank, pp_rank, pp_size)
    heads = [(spec.name, SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape)) for spec, tensor in tensors]
    (staging / relative).parent.mkdir(exist_ok=True)
    with SafetensorsWriter(staging / relative, heads, {"format": "np"}) as writer:
        checksums = writer.write_all(tensor.parts() for _, tensor in tensors)
    described = {spec.name: _shard_entry(spec, tp_rank, tp_size, tensor.dtype) | {"crc32": checksum}
                 for (spec, tensor), checksum in zip(tensors, checksums)}
    return _leave_entry(staging, relative, {"kind": "model", "bytes": writer.size, "tensors": described})


def write_optimizer_file(staging: Path, shards: Sequence[OptimizerShard], *, tp_rank: int, tp_size: int, pp_rank: int,
                         pp_size: int, dp_rank: int) -> Entries:
    """Write a rank's part of the optimizer state (fp32). Not needed for ranks without a part. Returns its entry."""
    relative = layout.optimizer_file(tp_rank, pp_rank, pp_size, dp_rank)
    parts = [(f"{state}/{shard.spec.name}", state, shard) for shard in shards for state in OPTIMIZER_STATES
             if state in shard.states and shard.stop > shard.start]
    for key, state, shard in parts:
        array = shard.states[state]
        if array.dtype != np.float32 or array.size != shard.stop - shard.start:
            raise ValueError(f"{key}: {shard.stop - shard.start} fp32 elements expected, got {array.size} of "
                             f"{array.dtype}")
    (staging / relative).parent.mkdir(exist_ok=True)
    heads = [(key, "F32", (shard.stop - shard.start,)) for key, _, shard in parts]
    with SafetensorsWriter(staging / relative, heads, {"format": "np"}) as writer:
        checksums = writer.write_all((shard.states[state].reshape(-1),) for _, state, shard in parts)
    described = {key: _shard_entry(shard.spec, tp_rank, tp_size, "fp32")
                 | {"state": state, "range": [shard.start, shard.stop], "crc32": checksum}
                 for (key, state, shard), checksum in zip(parts, checksums)}
    return _leave_entry(staging, relative, {"kind": "optimizer", "bytes": writer.size, "tensors": described})


def commit_save(save_dir: str | os.PathLike, info: SaveInfo, entries: Entries | None = None) -> Path:
    """Rank 0, after all ranks have written: make the staged files the checkpoint of `info.iteration`.

    Checks that every element of every parameter is held, writes metadata.json, fsyncs, renames the directory (replacing
    an earlier save of the same iteration) and then moves the tracker. `entries`: the union of what the write functions
    returned, when the ranks share no storage; by default they are collected from the staging directory. Returns the
    final directory. Raises UserError when a rank's file is missing.
    """
    root, staging = Path(save_dir), staging_directory(save_dir, info.iteration)
    entry_files = sorted(staging.glob(f"*/*{_ENTRY}"))
    if entries is None:
        entries = {}
        for path in entry_files:
            entries |= json.loads(path.read_text(encoding="utf-8"))
    metadata = _metadata(info, entries)
    check_complete(metadata, str(staging))
    write_text(staging / layout.METADATA, json.dumps(metadata, indent=1))
    for path in entry_files:
        path.unlink()
    for directory in sorted({staging / Path(name).parent for name in entries}):
        if directory.is_dir():
            sync_directory(directory)
    sync_directory(staging)
    final = root / layout.iteration_name(info.iteration)
    old = final.with_name(final.name + layout.REPLACED)
    if final.exists():
        os.rename(final, old)
    os.rename(staging, final)
    sync_directory(root)
    write_text(root / layout.TRACKER, f"{info.iteration}\n")
    sync_directory(root)
    if old.exists():
        shutil.rmtree(old)
    return final


def remove_old(save_dir: str | os.PathLike, keep: int) -> list[int]:
    """Remove the oldest training checkpoints but the last `keep` (`--save-total-limit`), after a commit.

    Weights-only ones (conversions) are left alone. Returns the iterations that were removed. A kill on the way leaves
    a directory that the next save clears away.
    """
    root = Path(save_dir)
    saved = []
    for name in layout.saved_iterations(root):
        try:
            if not read_metadata(root / name / layout.METADATA)["weights_only"]:
                saved.append(name)
        except UserError:
            continue  # whoever looks after a damaged one decides about it
    current = layout.iteration_name(layout.latest_iteration(root))
    old = [name for name in saved if name < current][:max(0, len(saved) - keep)]
    for name in old:
        staging = root / (name + layout.STAGING)
        os.rename(root / name, staging)  # no longer a checkpoint from here on
        shutil.rmtree(staging)
    return [layout.iteration_number(name) for name in old]


def _shard_entry(spec: TensorSpec, tp_rank: int, tp_size: int, dtype: str) -> dict:
    return {"name": spec.name, "global_shape": list(spec.shape), "dtype": dtype,
            "shape": list(spec.local_shape(tp_rank, tp_size)), "axis": spec.partition_dim,
            "segments": [list(segment) for segment in spec.segments(tp_rank, tp_size)]}


def _leave_entry(staging: Path, relative: str, entry: dict) -> Entries:
    entries = {relative: entry}
    write_text(staging / (relative + _ENTRY), json.dumps(entries))
    return entries


def _metadata(info: SaveInfo, entries: Entries) -> dict:
    parallel = info.parallel
    return {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "iteration": info.iteration,
        "consumed_samples": info.consumed_samples,
        "weights_only": info.weights_only,
        "model": info.model.to_dict(),
        "parallel": {
            "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
            "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
            "context_parallel_size": parallel.context_parallel_size,
            "data_parallel_size": info.data_parallel_size,
            "shared_storage": not parallel.no_shared_storage,
            "noop_layers": list(parallel.noop_layers),
            "layers": [[list(chunk) for chunk in stage] for stage in parallel.stage_layers(info.model)],
        },
        **({} if info.lora is None else {"adapters": info.lora.to_dict(), "adapters_only": info.adapters_only}),
        "rng": info.rng,
        "extra": info.extra,
        "files": dict(sorted(entries.items())),
    }
