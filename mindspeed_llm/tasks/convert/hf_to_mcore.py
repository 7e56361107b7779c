"""Hugging Face weights -> a weights-only mcore checkpoint of iteration 1, for any tensor and pipeline split."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindspeed_llm.checkpoint import layout as names
from mindspeed_llm.checkpoint.boxes import shard_boxes
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, LazyTensor, cast, check_tag
from mindspeed_llm.checkpoint.files import make_directories, remove_empty
from mindspeed_llm.checkpoint.load import open_checkpoint
from mindspeed_llm.checkpoint.save import SaveInfo, begin_save, commit_save, staging_directory, write_model_file
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.shape import merge_model
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.config.validation import check_parallel
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import chunk_specs
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.hf_directory import HfDirectory
from mindspeed_llm.families.weight_map import Mapped, hf_shapes, mapped_tensors
from mindspeed_llm.tasks.convert.disk import require_space
from mindspeed_llm.tasks.convert.parts import row_ranges

ITERATION = 1


def convert(config: ConvertConfig) -> int:
    """Convert `config.load_dir` into `config.save_dir`; returns the iteration written (1).

    Peak memory is a part of a tensor. Raises UserError or FileNotFoundError for bad input before anything is written; on
    any later failure what was written is removed.
    """
    check_tag(config.params_dtype, "--params-dtype")
    with HfDirectory(config.load_dir, find_layout(config.model_type_hf), "--load-dir") as source:
        hf_vocab = source.model.padded_vocab_size
        model, parallel = target_of(config, source)
        mapped = list(mapped_tensors(source.layout, model, config.noop_layers, hf_vocab))
        source.open_weights(hf_shapes(mapped))
        root = Path(config.save_dir)
        refuse_to_hide_training(root)
        if model.padded_vocab_size != hf_vocab:
            print(f"padded the vocabulary with zero rows from {hf_vocab} to {model.padded_vocab_size}: give "
                  f"--padded-vocab-size {model.padded_vocab_size} where flags state the model's shape")
        require_space(root, sum(math.prod(tensor.spec.shape) * _itemsize(source, tensor, config.params_dtype)
                                for tensor in mapped))
        with saving(root, SaveInfo(model, parallel, ITERATION, weights_only=True)) as staging:
            _write_files(config, source, mapped, parallel, model, staging)
    return ITERATION


@contextmanager
def saving(root: Path, info: SaveInfo) -> Iterator[Path]:
    """Give the directory to write model files into, which become the checkpoint of `info`; nothing is left on failure."""
    made = make_directories(root)
    try:
        yield begin_save(root, info.iteration)
        commit_save(root, info)
    except BaseException:
        shutil.rmtree(staging_directory(root, info.iteration), ignore_errors=True)
        remove_empty(made)
        raise


def target_of(config: ConvertConfig, source: HfDirectory) -> tuple[ModelConfig, ParallelConfig]:
    """The model that is written and its split. Raises UserError where the flags do not fit the model or one another."""
    model = _target_model(config, source)
    parallel = ParallelConfig(tensor_model_parallel_size=config.target_tensor_parallel_size,
                              pipeline_model_parallel_size=config.target_pipeline_parallel_size,
                              num_layer_list=config.num_layer_list, noop_layers=config.noop_layers)
    _validate(parallel, model)
    return model, parallel


def _target_model(config: ConvertConfig, source: HfDirectory) -> ModelConfig:
    """The HF model with the no-op layers and the vocabulary padding asked for, or needed by the target TP size."""
    tp, vocab = config.target_tensor_parallel_size, source.model.padded_vocab_size
    padded = max(vocab, config.stated_model.get("padded_vocab_size", math.ceil(vocab / max(tp, 1)) * tp))
    stored = dataclasses.replace(source.model, padded_vocab_size=padded,
                                 num_layers=source.model.num_layers + len(config.noop_layers))
    model, notes = merge_model(config.stated_model, stored, str(source.path / "config.json"))
    for note in notes:
        print(note)
    return model


def _write_files(config: ConvertConfig, source: HfDirectory, mapped: list[Mapped], parallel: ParallelConfig,
                 model: ModelConfig, staging: Path) -> None:
    by_name = {tensor.spec.name: tensor for tensor in mapped}
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    stages = [chunk_specs(model, layers, first=pp_rank == 0, last=pp_rank == pp - 1)
              for pp_rank, (layers,) in enumerate(parallel.stage_layers(model))]
    total = _total(stages, by_name, source, tp, config.params_dtype)
    with tqdm(total=total, unit="B", unit_scale=True, desc="hf -> mcore", mininterval=1.0) as progress:
        for pp_rank, specs in enumerate(stages):
            for tp_rank in range(tp):
                tensors = [(spec, _shard(source, by_name[spec.name], tp_rank, tp, config.params_dtype, progress))
                           for spec in specs]
                write_model_file(staging, tensors, tp_rank=tp_rank, tp_size=tp, pp_rank=pp_rank, pp_size=pp)


def _total(stages: list[list[TensorSpec]], by_name: dict[str, Mapped], source: HfDirectory, tp: int,
           dtype: str | None) -> int:
    """Bytes that all ranks write, replicated tensors counted for each."""
    return sum(spec.local_numel(rank, tp) * _itemsize(source, by_name[spec.name], dtype)
               for specs in stages for spec in specs for rank in range(tp))


def _shard(source: HfDirectory, mapped: Mapped, rank: int, size: int, dtype: str | None, progress: tqdm) -> LazyTensor:
    spec, own = mapped.spec, source.dtype(mapped.pieces[0].name)
    shape = spec.local_shape(rank, size)

    def parts() -> Iterator[np.ndarray]:
        for start, stop in row_ranges(shape, NUMPY_DTYPES[own].itemsize):
            out = np.empty(stop - start, NUMPY_DTYPES[own])
            boxes = shard_boxes(spec.shape, spec.partition_dim, spec.segments(rank, size), start, stop)
            source.fill(mapped.pieces, boxes, math.prod(spec.shape[1:]), own, out)
            try:
                result = cast(out, own, dtype or own)
            except UserError as error:
                raise UserError(f"--params-dtype {dtype}: {spec.name}: {error}") from None
            progress.update(result.nbytes)
            yield result
        if rank == size - 1:    # the others have taken their parts
            source.forget(mapped.pieces)

    return LazyTensor(dtype or own, shape, parts)


def _itemsize(source: HfDirectory, mapped: Mapped, dtype: str | None) -> int:
    return NUMPY_DTYPES[dtype or source.dtype(mapped.pieces[0].name)].itemsize


def _validate(parallel: ParallelConfig, model: ModelConfig) -> None:
    try:
        check_parallel(parallel, model)
    except UserError as error:
        text = str(error)
        for size in ("tensor", "pipeline"):
            text = text.replace(f"--{size}-model-parallel-size", f"--target-{size}-parallel-size")
        raise UserError(text) from None


def refuse_to_hide_training(root: Path) -> None:
    """A converted checkpoint takes over the tracker: do not let it hide a training run's."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--save-dir {root} is a file: give a directory")
    if names.latest_iteration(root) is None:
        return
    with open_checkpoint(root) as earlier:
        if not earlier.weights_only:
            raise UserError(f"--save-dir {root} holds a training checkpoint of iteration {earlier.iteration}, which a "
                            "converted one would hide: give another directory")
