"""An mcore checkpoint of any split -> a complete Hugging Face directory in the original's layout and shard split."""

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindspeed_llm.checkpoint.adapters import find_adapters
from mindspeed_llm.checkpoint.boxes import Box
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, SAFETENSORS_DTYPES, TAGS, cast, check_tag
from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.checkpoint.load import Checkpoint, open_checkpoint
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import SHAPE_FIELDS, ModelConfig
from mindspeed_llm.config.shape import merge_model, require_noop_layers
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.hf_directory import INDEX, SINGLE, HfDirectory
from mindspeed_llm.families.weight_map import Mapped, hf_shapes, mapped_tensors
from mindspeed_llm.tasks.convert.disk import replacing, require_space
from mindspeed_llm.tasks.convert.export_plan import (WEIGHT_FILE, Shard, Tensor, files_to_copy, index_text, plan_shards)
from mindspeed_llm.tasks.convert.merging import MergedCheckpoint
from mindspeed_llm.tasks.convert.parts import row_ranges

Source = Checkpoint | MergedCheckpoint
_CONFIG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def convert(config: ConvertConfig) -> int:
    """Convert the latest iteration in `config.load_dir` into `config.save_dir`; returns its number.

    `config.hf_dir` is the original model: layout, config, tokenizer and, if they are there, its shards' split. Adapters, of
    `config.lora_load` or of the checkpoint itself, are merged.

    Peak memory is a part of a tensor (a whole one where adapters are merged into it). Bad input raises UserError or
    FileNotFoundError before anything is written; the directory appears under its name only when it is complete.
    """
    check_tag(config.params_dtype, "--params-dtype")
    with HfDirectory(config.hf_dir, find_layout(config.model_type_hf), "--hf-dir (--hf-cfg-dir)") as original:
        base = open_checkpoint(config.load_dir)
        if base is None:
            raise FileNotFoundError(f"--load-dir {config.load_dir} holds no checkpoint (no "
                                    "latest_checkpointed_iteration.txt)")
        if base.warning:
            print(base.warning)
        adapters = find_adapters(config.lora_load, base, f"--load-dir {config.load_dir}", "--load-dir")
        with base, adapters or nullcontext():
            checkpoint = base if adapters is None else MergedCheckpoint(base, adapters)
            check_same_model(checkpoint, original)
            model, notes = merge_model(config.stated_model, checkpoint.model_config, str(checkpoint.directory))
            if config.noop_layers:
                require_noop_layers(config.noop_layers, checkpoint.noop_layers, str(checkpoint.directory))
            for note in notes:
                print(note)
            mapped = list(mapped_tensors(original.layout, model, checkpoint.noop_layers,
                                         original.model.padded_vocab_size))
            tensors = _tensors(config, checkpoint, original, mapped)
            shards = plan_shards(original, tensors)
            target = Path(config.save_dir)
            _check_target(target, original.path, shards)
            require_space(target, sum(tensor.nbytes for tensor in tensors.values()))
            _write_directory(checkpoint, original, mapped, tensors, shards, target,
                             _config_text(config, model, original))
            return checkpoint.iteration


def _write_directory(checkpoint: Source, original: HfDirectory, mapped: list[Mapped], tensors: dict[str, Tensor],
                     shards: list[Shard], target: Path, config_text: str) -> None:
    with replacing(target) as staging:
        _write_shards(checkpoint, original, mapped, tensors, shards, staging)
        if len(shards) > 1 or shards[0].file != SINGLE:
            write_text(staging / INDEX, index_text(original, shards, tensors))
        for path in files_to_copy(original.path):
            shutil.copyfile(path, staging / path.name)
        write_text(staging / "config.json", config_text)


def _write_shards(checkpoint: Source, original: HfDirectory, mapped: list[Mapped], tensors: dict[str, Tensor],
                  shards: list[Shard], staging: Path) -> None:
    boxes = _hf_boxes(mapped)
    readers = Counter(name for parts in boxes.values() for name in parts)
    total = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="mcore -> hf", mininterval=1.0) as progress:
        for shard in shards:
            heads = [(name, SAFETENSORS_DTYPES[tensors[name].dtype], tensors[name].shape) for name in shard.names]
            with SafetensorsWriter(staging / shard.file, heads, shard.metadata) as writer:
                writer.write_all(_assemble(checkpoint, name, boxes[name], tensors[name], readers, progress) if name in boxes
                                 else _buffer(original, name, shard.file, tensors[name], progress)
                                 for name in shard.names)


def _hf_boxes(mapped: list[Mapped]) -> dict[str, dict[str, list[Box]]]:
    """HF name -> mcore name -> boxes of the mcore tensor, with their place in the HF tensor's flat buffer."""
    boxes: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for tensor in mapped:
        row, columns = 0, math.prod(tensor.spec.shape[1:])
        for piece in tensor.pieces:
            count = piece.stop - piece.start
            if piece.name is not None:
                boxes[piece.name][tensor.spec.name].append(Box(row, 0, count, columns, piece.start * columns, columns))
            row += count
    return dict(boxes)


def _assemble(checkpoint: Source, name: str, parts: dict[str, list[Box]], tensor: Tensor, readers: Counter, progress: tqdm
              ) -> Iterator[np.ndarray]:
    """The elements of an HF tensor, a run of rows at a time. `readers` counts what tensors of an mcore one are to come."""
    own = checkpoint.dtype(next(iter(parts)))
    for start, stop in row_ranges(tensor.shape, NUMPY_DTYPES[own].itemsize):
        out = np.empty(stop - start, NUMPY_DTYPES[own])
        for mcore_name, boxes in parts.items():
            checkpoint.fill(mcore_name, tuple(_within(boxes, start, stop)), out)
        try:
            result = cast(out, own, tensor.dtype)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        progress.update(result.nbytes)
        yield result
    for mcore_name in parts:
        readers[mcore_name] -= 1
        if not readers[mcore_name]:
            checkpoint.forget(mcore_name)


def _within(boxes: list[Box], start: int, stop: int) -> Iterator[Box]:
    """What of the boxes, which are runs of whole rows, lies in the flat range; offsets count from `start`."""
    for box in boxes:
        first, last = (min(max(edge, box.offset), box.offset + box.rows * box.cols) for edge in (start, stop))
        if first < last:
            row = box.row + (first - box.offset) // box.cols
            yield Box(row, box.col, (last - first) // box.cols, box.cols, first - start, box.stride)


def _buffer(original: HfDirectory, name: str, file_name: str, tensor: Tensor, progress: tqdm) -> Iterator[np.ndarray]:
    """A non-parameter of the layout: the original's bytes where they are at hand, else made anew."""
    if (original.path / file_name).is_file() and name in original.shard(file_name).tensors:
        file = original.shard(file_name)
        yield cast(np.array(file.flat(name)), TAGS[file.tensors[name].dtype], tensor.dtype)
    else:
        yield original.layout.buffers[name](original.model, tensor.dtype).array
    progress.update(tensor.nbytes)


def _tensors(config: ConvertConfig, checkpoint: Source, original: HfDirectory, mapped: list[Mapped],
             ) -> dict[str, Tensor]:
    """What to export, in forward order. The dtype: the flag's, else the original's, else the checkpoint's."""
    shapes = hf_shapes(mapped)
    owners = {piece.name: tensor.spec.name for tensor in mapped for piece in tensor.pieces}
    weight_map = original.weight_map()
    single = original.path / SINGLE
    if weight_map is not None:
        original.check_names(weight_map, shapes, str(original.path / INDEX))
    elif single.is_file():
        weight_map = dict.fromkeys(original.shard(SINGLE).tensors, SINGLE)
        original.check_names(weight_map, shapes, str(single))
    config_dtype = _CONFIG_DTYPES.get(original.config.get("torch_dtype", original.config.get("dtype")))

    def entry_of(name: str):
        file_name = (weight_map or {}).get(name)
        if file_name is None or not (original.path / file_name).is_file():
            return None
        return original.shard(file_name).tensors.get(name)

    tensors = {}
    for name, shape in shapes.items():
        entry = entry_of(name)
        written = TAGS.get(entry.dtype) if entry is not None else config_dtype
        tensors[name] = Tensor(config.params_dtype or written or checkpoint.dtype(owners[name]), shape)
    common = next(iter(tensors.values())).dtype
    for name in original.layout.buffers if weight_map is None else weight_map:
        if name in tensors:
            continue
        entry = entry_of(name)
        if entry is not None and entry.dtype in TAGS:
            tensors[name] = Tensor(config.params_dtype or TAGS[entry.dtype], entry.shape)
        elif name in original.layout.buffers:
            tensors[name] = Tensor(common, original.layout.buffers[name](original.model, common).shape)
    return tensors


def check_same_model(checkpoint: Source, original: HfDirectory) -> None:
    """Raise UserError unless a checkpoint's model is of the shape of the original Hugging Face directory's."""
    ours, theirs = checkpoint.model_config, original.model
    for name in SHAPE_FIELDS:
        have, want = getattr(ours, name), getattr(theirs, name)
        if name == "num_layers":
            have -= len(checkpoint.noop_layers)
        same = have >= want if name == "padded_vocab_size" else (
            math.isclose(have, want, rel_tol=1e-6) if isinstance(want, float) else have == want)
        if not same:
            raise UserError(f"checkpoint {checkpoint.directory} has {name} {have}, but {original.path / 'config.json'} "
                            f"gives {want}: give the Hugging Face directory that the checkpoint was converted from")


def _check_target(target: Path, hf_dir: Path, shards: list[Shard]) -> None:
    """An earlier export may be replaced; anything else in the way is the user's."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--save-dir {target} is a file: give a directory")
    if target.resolve() == hf_dir.resolve():
        raise UserError(f"--save-dir {target} is the original Hugging Face directory: give another one, such as "
                        f"{hf_dir / 'mg2hf'}")
    known = {shard.file for shard in shards} | {INDEX, "config.json"} | {path.name for path in files_to_copy(hf_dir)}
    foreign = sorted(path.name for path in target.iterdir()
                     if path.name not in known and not WEIGHT_FILE.fullmatch(path.name))
    if foreign:
        raise UserError(f"--save-dir {target} holds files that are not an earlier export ({', '.join(foreign[:3])}): "
                        "give an empty or new directory")


def _config_text(config: ConvertConfig, model: ModelConfig, original: HfDirectory) -> str:
    """Text of config.json: the original's, unless the model was trained with other overridable values."""
    changes = original.layout.updates(original.config, model)
    key = "dtype" if "dtype" in original.config else "torch_dtype"
    named = {tag: name for name, tag in _CONFIG_DTYPES.items()}.get(config.params_dtype)
    if named is not None and original.config.get(key) != named:
        changes[key] = named
    if not changes:
        return (original.path / "config.json").read_text(encoding="utf-8")
    changed = ", ".join(f"{name} {original.config.get(name)} -> {value}" for name, value in changes.items())
    print(f"config.json: {changed}")
    return json.dumps(original.config | changes, indent=2, ensure_ascii=False) + "\n"
