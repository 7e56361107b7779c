"""A Hugging Face model directory: config.json, safetensors shards, their index. Nothing in it is executed."""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.boxes import Box, Source, fill, shard_boxes
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, TAGS, StoredTensor, read_as
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.families import LAYOUTS
from mindspeed_llm.families.weight_map import HfLayout, Mapped, Piece

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class HfDirectory:
    """`config` and `model` (ModelConfig) of the directory; the weights after `open_weights`.

    Raises UserError or FileNotFoundError naming file and remedy when config.json is missing, is no JSON, or belongs to
    another layout than `layout`. `flag` is how the caller's user gave the directory (for messages).
    """

    def __init__(self, path: str | Path, layout: HfLayout, flag: str) -> None:
        self.path = Path(path)
        config_path = self.path / "config.json"
        if not self.path.is_dir():
            raise FileNotFoundError(f"{flag} {self.path} is not a directory: give the Hugging Face model's directory")
        if not config_path.is_file():
            raise FileNotFoundError(f"{flag} {self.path} has no config.json: give a complete Hugging Face model "
                                    "directory")
        self.config = read_json_object(config_path)
        self._check_layout(layout, config_path)
        self.layout = layout
        self.model: ModelConfig = layout.read_config(self.config, str(config_path))
        self._files: dict[str, SafetensorsFile] = {}
        self._where: dict[str, SafetensorsFile] = {}

    def __enter__(self) -> "HfDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def weight_map(self) -> dict[str, str] | None:
        """Tensor name -> shard file name from the index; None when the directory has no index."""
        path = self.path / INDEX
        if not path.is_file():
            return None
        weight_map = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) and Path(file).name == file
                                                       for file in weight_map.values()):
            raise UserError(f"{path}: entry 'weight_map' (tensor name -> file name) is missing or malformed: download "
                            "it again")
        return weight_map

    def shard(self, name: str) -> SafetensorsFile:
        """Shard file `name`, open. Raises naming it when it is missing, empty or truncated."""
        if name not in self._files:
            if not (self.path / name).is_file():
                raise FileNotFoundError(f"{self.path / name} is missing ({INDEX} lists it): download it again")
            self._files[name] = SafetensorsFile(self.path / name)
        return self._files[name]

    def open_weights(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Open all shards and check that they hold exactly the tensors `shapes` (and ignorable buffers).

        Raises UserError or FileNotFoundError naming the first missing file, tensor, wrong shape or unsupported dtype.
        """
        weight_map = self.weight_map()
        if weight_map is not None:
            self.check_names(weight_map, shapes, str(self.path / INDEX))
            for name, file_name in weight_map.items():
                file = self.shard(file_name)
                if name not in file.tensors:
                    raise UserError(f"{file.path} does not hold tensor {name}, which {INDEX} places there: download "
                                    "both again")
                self._where[name] = file
        elif (self.path / SINGLE).is_file():
            file = self.shard(SINGLE)
            self.check_names(file.tensors, shapes, str(file.path))
            self._where = dict.fromkeys(file.tensors, file)
        else:
            pickled = any(self.path.glob("*.bin")) or any(self.path.glob("*.pt"))
            raise FileNotFoundError(f"{self.path} has neither {INDEX} nor {SINGLE}" + (
                ": it holds pickled weights, which are never loaded; download the safetensors version" if pickled
                else ": download the model's safetensors files"))
        for name, shape in shapes.items():
            found = self._where[name].tensors[name]
            if found.dtype not in TAGS:
                raise UserError(f"{self._where[name].path}: tensor {name} has dtype {found.dtype}, only "
                                f"{', '.join(TAGS)} can be converted: take the unquantised model")
            if found.shape != shape:
                raise UserError(f"{self._where[name].path}: tensor {name} has shape {list(found.shape)}, config.json "
                                f"gives {list(shape)}")

    def check_names(self, found: Iterable[str], wanted: Iterable[str], where: str) -> None:
        """Raise UserError when the names in `where` lack some of `wanted` or have some unknown to the layout."""
        found, wanted = set(found), set(wanted)
        if missing := sorted(wanted - found):
            raise UserError(f"{where} lacks {len(missing)} of {len(wanted)} tensors of {self.layout.description}: "
                            f"{_some(missing)}: download it again, or check --model-type-hf ({self.layout.flag})")
        if unknown := sorted(name for name in found - wanted if not self.layout.ignored.fullmatch(name)):
            raise UserError(f"{where} has {len(unknown)} tensors that config.json and --model-type-hf "
                            f"{self.layout.flag} do not account for: {_some(unknown)}: check that config.json belongs "
                            "to these weights")

    def dtype(self, name: str) -> str:
        """Tag of tensor `name`."""
        return TAGS[self._where[name].tensors[name].dtype]

    def fill(self, pieces: Sequence[Piece], targets: Sequence[Box], columns: int, dtype: str, out: np.ndarray) -> None:
        """Fill boxes of the mcore tensor that consists of `pieces` (rows of `columns` elements, tag `dtype`)."""
        sources, row = [], 0
        for piece in pieces:
            count = piece.stop - piece.start
            box = Box(row, 0, count, columns, piece.start * columns, columns)
            row += count
            if piece.name is None:
                sources.append(Source((box,), lambda n=count: np.zeros(n * columns, NUMPY_DTYPES[dtype])))
            else:
                file = self._where[piece.name]
                sources.append(Source((box,), functools.partial(file.flat, piece.name),
                                      functools.partial(file.read, piece.name)))
        left = fill(out, targets, sources)
        if left:
            raise ValueError(f"the map of {pieces[0].name} leaves {left} unfilled")
        for name in {piece.name for piece in pieces} - {None}:
            self._where[name].release(name)

    def forget(self, pieces: Sequence[Piece]) -> None:
        """Nobody will read `pieces` again soon: their pages leave the system's cache."""
        for name in {piece.name for piece in pieces} - {None}:
            self._where[name].forget(name)

    def read(self, mapped: Mapped, rank: int, size: int, dtype: str | None = None,
             out: np.ndarray | None = None) -> StoredTensor:
        """An mcore tensor, as `WeightSource.read` gives it.

        Raises UserError naming the tensor for values that do not fit the dtype.
        """
        spec, own = mapped.spec, self.dtype(mapped.pieces[0].name)
        boxes = shard_boxes(spec.shape, spec.partition_dim, spec.segments(rank, size))
        try:
            return read_as(own, dtype or own, spec.local_shape(rank, size), out, lambda flat: self.fill(
                mapped.pieces, boxes, math.prod(spec.shape[1:]), own, flat))
        except UserError as error:
            raise UserError(f"--params-dtype {dtype}: {spec.name}: {error}") from None

    def _check_layout(self, layout: HfLayout, config_path: Path) -> None:
        if layout.matches(self.config):
            return
        model_type = self.config.get("model_type")
        for other in LAYOUTS.values():
            if other.matches(self.config):
                raise UserError(f"{config_path} (model_type {model_type!r}) looks like {other.description}, not like "
                                f"--model-type-hf {layout.flag}: use --model-type-hf {other.flag}")
        raise UserError(f"{config_path}: model_type {model_type!r} is no model that can be converted: known are the "
                        f"layouts of --model-type-hf {', '.join(LAYOUTS)}")


def read_json_object(path: Path) -> dict:
    """The JSON object in `path`. Raises UserError naming the file when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}; {path.stat().st_size} bytes): download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: download it again")
    return value


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
