"""Adapters alone: an mcore checkpoint of them -> a PEFT adapter directory, and back."""

from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.adapters import find_adapters
from mindspeed_llm.checkpoint.dtypes import StoredTensor, cast, check_tag
from mindspeed_llm.checkpoint.load import open_checkpoint
from mindspeed_llm.checkpoint.save import SaveInfo, write_model_file
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import TARGETS, LoraConfig
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.core.structure import chunk_specs
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.adapter_map import MappedAdapter, mapped_adapters
from mindspeed_llm.tasks.convert import peft_directory
from mindspeed_llm.tasks.convert.disk import replacing
from mindspeed_llm.families.hf_directory import HfDirectory
from mindspeed_llm.tasks.convert.hf_to_mcore import ITERATION, refuse_to_hide_training, saving, target_of
from mindspeed_llm.tasks.convert.mcore_to_hf import check_same_model
from mindspeed_llm.tasks.convert.peft_directory import CONFIG, WEIGHTS, Matrices


def to_peft(config: ConvertConfig) -> int:
    """Write the adapters of `config.lora_load` (or of `config.load_dir`) to the PEFT directory `config.save_dir`; returns
    their iteration. Raises UserError or FileNotFoundError for bad input before anything is written.
    """
    check_tag(config.params_dtype, "--params-dtype")
    target = Path(config.save_dir)
    if target.exists() and not (target.is_dir() and {path.name for path in target.iterdir()} <= {CONFIG, WEIGHTS}):
        raise UserError(f"--save-dir {target} holds something else than adapters: give an empty or new directory")
    with HfDirectory(config.hf_dir, find_layout(config.model_type_hf), "--hf-dir (--hf-cfg-dir)") as original:
        base = open_checkpoint(config.load_dir)
        adapters = find_adapters(config.lora_load, base, f"--load-dir {config.load_dir}", "--load-dir")
        if adapters is None:
            raise UserError(f"--save-lora-to-hf needs adapters, but --load-dir {config.load_dir} has none: give --lora-load")
        with adapters:
            check_same_model(adapters, original)
            matrices: Matrices = {}
            for adapter in mapped_adapters(original.layout, adapters.model_config, adapters.noop_layers, adapters.lora):
                a, b = (adapters.read_global(spec.name, config.params_dtype) for spec in (adapter.a, adapter.b))
                for module, rows in adapter.modules.items():
                    of_module = np.empty((rows, b.shape[1]), b.array.dtype)
                    for start, stop, piece in _places(adapter):
                        if piece.name == module:
                            of_module[piece.start:piece.stop] = b.array[start:stop]
                    matrices[module] = {"A": a, "B": StoredTensor(of_module, b.dtype)}
            with replacing(target) as staging:
                peft_directory.write(staging, adapters.lora, matrices, str(original.path))
            return adapters.iteration


def from_peft(config: ConvertConfig) -> int:
    """Write the PEFT directory `config.lora_load`, of adapters of the Hugging Face model `config.load_dir`, as a
    weights-only checkpoint of adapters; returns its iteration (1).

    Modules that are one layer here may have adapters of their own: their matrices A are stacked then, and every adapter
    has as many times the rank, filled up with zeros; the model is the same. Raises UserError or FileNotFoundError for bad
    input before anything is written.
    """
    check_tag(config.params_dtype, "--params-dtype")
    rank, scale, dropout, matrices = peft_directory.read(Path(config.lora_load))
    if not matrices:
        raise UserError(f"--lora-load {config.lora_load} holds no adapters: {WEIGHTS} is empty")
    with HfDirectory(config.load_dir, find_layout(config.model_type_hf), "--load-dir") as source:
        model, parallel = target_of(config, source)
    everything = list(mapped_adapters(source.layout, model, config.noop_layers, LoraConfig(TARGETS, rank)))
    mapped = [adapter for adapter in everything if set(adapter.modules) & set(matrices)]
    unknown = sorted(set(matrices) - {module for adapter in mapped for module in adapter.modules})
    if unknown:
        raise UserError(f"--lora-load {config.lora_load} has an adapter of {unknown[0]}, which is no linear layer of "
                        f"{source.layout.description} of {source.path}: give the model that the adapters are of")
    kinds = tuple(kind for kind in TARGETS if any(adapter.a.name.split(".")[-3] == kind for adapter in mapped))
    joined = {adapter.a.name: _join(adapter, matrices, rank) for adapter in mapped}
    rank = max(a.shape[0] for a, _ in joined.values())
    alpha = round(scale * rank)
    if alpha < 1 or alpha != scale * rank:
        raise UserError(f"--lora-load {config.lora_load}: lora_alpha / r is {scale:g}, which is no whole number for rank "
                        f"{rank}: such adapters cannot be converted")
    lora = LoraConfig(kinds, rank, alpha, dropout)
    own = next(iter(matrices.values()))["A"].dtype
    _write(config, SaveInfo(model, parallel, ITERATION, weights_only=True, lora=lora, adapters_only=True), joined,
           config.params_dtype or own)
    return ITERATION


def _places(adapter: MappedAdapter) -> list[tuple]:
    """(first, one after the last row of `b`, piece) of every piece."""
    row, places = 0, []
    for piece in adapter.pieces:
        places.append((row, row + piece.stop - piece.start, piece))
        row += piece.stop - piece.start
    return places


def _join(adapter: MappedAdapter, matrices: Matrices, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B, fp32, of one adapter from those of its modules."""
    read = {module: {letter: tensor.to("fp32").array for letter, tensor in matrices[module].items()}
            for module in adapter.modules if module in matrices}
    for module, both in read.items():
        want = (rank, adapter.a.shape[1]), (adapter.modules[module], rank)
        have = both["A"].shape, both["B"].shape
        if have != want:
            raise UserError(f"the adapter of {module} has shapes {[*map(list, have)]}, the model gives {[*map(list, want)]}: "
                            "give the model that the adapters are of")
    first = next(iter(read.values()))["A"]
    one = all(np.array_equal(both["A"], first) for both in read.values())
    columns = {module: 0 if one else number * rank for number, module in enumerate(read)}
    a = first if one else np.concatenate([both["A"] for both in read.values()])
    b = np.zeros((adapter.b.shape[0], a.shape[0]), np.float32)
    for start, stop, piece in _places(adapter):
        if piece.name in read:
            place = columns[piece.name]
            b[start:stop, place:place + rank] = read[piece.name]["B"][piece.start:piece.stop]
    return a, b


def _write(config: ConvertConfig, info: SaveInfo, joined: dict[str, tuple[np.ndarray, np.ndarray]], dtype: str) -> None:
    """Write adapters, given fp32 and by the name of A, with zeros where there is none or its rank is less."""
    root, (tp, pp) = Path(config.save_dir), (config.target_tensor_parallel_size, config.target_pipeline_parallel_size)
    refuse_to_hide_training(root)
    with saving(root, info) as staging:
        for pp_rank, (layers,) in enumerate(info.parallel.stage_layers(info.model)):
            specs = [spec for spec in chunk_specs(info.model, layers, first=pp_rank == 0, last=pp_rank == pp - 1,
                                                  lora=info.lora) if spec.adapter]
            for tp_rank in range(tp):
                tensors = []
                for spec in specs:
                    whole, is_b = np.zeros(spec.shape, np.float32), ".lora_B." in spec.name
                    found = joined.get(spec.name.replace(".lora_B.", ".lora_A."), (np.zeros((0, 0)),) * 2)[is_b]
                    whole[:found.shape[0], :found.shape[1]] = found
                    axis = spec.partition_dim or 0
                    local = np.concatenate([whole.take(range(*segment), axis) for segment in spec.segments(tp_rank, tp)],
                                           axis)
                    tensors.append((spec, StoredTensor(cast(local, "fp32", dtype), dtype)))
                write_model_file(staging, tensors, tp_rank=tp_rank, tp_size=tp, pp_rank=pp_rank, pp_size=pp)
