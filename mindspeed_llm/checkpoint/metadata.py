"""metadata.json, read with distrust: what it says is bounded by the files' sizes before anything is allocated."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoint import layout
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import OPTIMIZER_STATES
from mindspeed_llm.core.structure import model_specs

FILE_NAME = re.compile(r"mp_rank_\d{2,5}(_\d{3,5})?/(model|optimizer_dp_\d{3,6})\.safetensors")
REMEDY = "copy the checkpoint again, or load another iteration"


class _Malformed(Exception):
    """The text names the entry."""


def read_metadata(path: Path) -> dict:
    """The content of a metadata.json whose entries are of the right kinds and agree with each other.

    Raises FileNotFoundError or UserError naming the file and the first entry that is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {REMEDY}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}; {path.stat().st_size} bytes): {REMEDY}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != layout.FORMAT:
        raise UserError(f"{path} is not the metadata of a mindspeed_llm checkpoint")
    if metadata.get("format_version") != layout.FORMAT_VERSION:
        raise UserError(f"{path} has format version {str(metadata.get('format_version'))[:20]}, this program reads "
                        f"{layout.FORMAT_VERSION}: use the mindspeed_llm that wrote it")
    try:
        _check_progress(metadata)
        _check_adapters(metadata)
        _check_files(_entry(metadata, "files", dict))
        _check_model(metadata)
    except _Malformed as error:
        raise UserError(f"{path} is damaged (entry {error} is missing or malformed): {REMEDY}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return metadata


def model_of(metadata: dict) -> ModelConfig:
    """The model config. Raises UserError for unknown entries."""
    return ModelConfig.from_dict(metadata["model"])


def _check_progress(metadata: dict) -> None:
    for name in ("iteration", "consumed_samples"):
        _whole(_entry(metadata, name, int), f"'{name}'")
    for name, kind in (("weights_only", bool), ("model", dict), ("rng", dict), ("extra", dict)):
        _entry(metadata, name, kind)
    parallel = _entry(metadata, "parallel", dict)
    for layer in _entry(parallel, "noop_layers", list):
        _whole(layer, "'noop_layers'")


def _check_adapters(metadata: dict) -> None:
    if "adapters" not in metadata:
        return
    _entry(metadata, "adapters_only", bool)
    try:
        LoraConfig.from_dict(_entry(metadata, "adapters", dict))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise _Malformed("'adapters'") from None


def _check_files(files: dict) -> None:
    for relative, entry in files.items():
        if not FILE_NAME.fullmatch(relative) or not isinstance(entry, dict):
            raise _Malformed(repr(relative[:60]))
        held = 0
        size = _whole(_entry(entry, "bytes", int), f"'bytes' of {relative}")
        for key, tensor in _entry(entry, "tensors", dict).items():
            if not isinstance(tensor, dict):
                raise _Malformed(f"{key[:60]!r} of {relative}")
            try:
                held += _check_tensor(tensor)
            except _Malformed as error:
                raise _Malformed(f"{error} of {key[:60]!r} of {relative}") from None
        if held > size:
            raise _Malformed(f"'bytes' of {relative}")


def _check_tensor(tensor: dict) -> int:
    """Bytes that the tensor takes in its file."""
    _entry(tensor, "name", str)
    dtype = _entry(tensor, "dtype", str)
    if dtype not in NUMPY_DTYPES:
        raise _Malformed("'dtype'")
    if tensor.get("state", "weight") not in ("weight", *OPTIMIZER_STATES):
        raise _Malformed("'state'")
    if not 0 <= _entry(tensor, "crc32", int) < 1 << 32:
        raise _Malformed("'crc32'")
    whole, local = (_shape(tensor, name) for name in ("global_shape", "shape"))
    axis = tensor.get("axis", "")
    if axis is not None and not (type(axis) is int and (axis == 0 or axis == 1 == len(whole) - 1)):
        raise _Malformed("'axis'")
    cut = axis or 0
    segments = _entry(tensor, "segments", list)
    for segment in segments:
        _range(segment, whole[cut], "'segments'")
    expected = [sum(stop - start for start, stop in segments) if place == cut else length
                for place, length in enumerate(whole)]
    if local != expected:
        raise _Malformed("'shape'")
    count = math.prod(local)
    if "range" in tensor:
        start, stop = _range(tensor["range"], count, "'range'")
        count = stop - start
    return count * NUMPY_DTYPES[dtype].itemsize


def _check_model(metadata: dict) -> None:
    """The model's parameters are those that the files hold, which also bounds its sizes by what is on disk."""
    shapes: dict[str, list[int]] = {}
    held: dict[tuple[str, str], int] = defaultdict(int)
    for entry in metadata["files"].values():
        for tensor in entry["tensors"].values():
            name = tensor["name"]
            if shapes.setdefault(name, tensor["global_shape"]) != tensor["global_shape"]:
                raise _Malformed(f"'global_shape' of {name}")
            count = tensor["range"][1] - tensor["range"][0] if "range" in tensor else math.prod(tensor["shape"])
            held[name, tensor.get("state", "weight")] += count
    for (name, state), count in held.items():
        if count < math.prod(shapes[name]):
            raise UserError(f"{math.prod(shapes[name]) - count} of {math.prod(shapes[name])} elements of {state} "
                            f"{name[:80]} are in none of its {len(metadata['files'])} files")
    for value in metadata["model"].values():
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise _Malformed("'model'")
    noop = metadata["parallel"]["noop_layers"]
    layers = metadata["model"].get("num_layers")
    if type(layers) is not int or not 0 < layers <= len(shapes) + len(noop):
        raise _Malformed("'num_layers'")
    try:
        specs = model_specs(model_of(metadata), tuple(noop))
    except (TypeError, ValueError, ArithmeticError):
        raise _Malformed("'model'") from None
    for spec in specs:
        if shapes.get(spec.name, list(spec.shape)) != list(spec.shape):
            raise UserError(f"{spec.name} has global shape {shapes[spec.name]}, the model config gives "
                            f"{list(spec.shape)}")


def _entry(holder: dict, name: str, kind: type) -> Any:
    value = holder.get(name)
    if type(value) is not kind:
        raise _Malformed(repr(name))
    return value


def _whole(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _Malformed(name)
    return value


def _shape(tensor: dict, name: str) -> list[int]:
    shape = _entry(tensor, name, list)
    if not shape or len(shape) > 4 or not all(type(size) is int and 0 < size < 1 << 40 for size in shape):
        raise _Malformed(repr(name))
    return shape


def _range(value: object, length: int, name: str) -> list[int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(edge) is int for edge in value)
            and 0 <= value[0] <= value[1] <= length):
        raise _Malformed(name)
    return value
