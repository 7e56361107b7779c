"""Which shard of an exported Hugging Face model holds which tensor, in which order: the original's if it is known."""

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, SAFETENSORS_DTYPES
from mindspeed_llm.families.hf_directory import INDEX, SINGLE, HfDirectory

MAX_SHARD_BYTES = 5_000_000_000
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_COPIED = {".json", ".model", ".txt", ".py", ".jinja", ".md"}


@dataclass(frozen=True)
class Tensor:
    """A tensor to export: tag and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Shard:
    """A shard file: its tensors in the order of their bytes, and the header's metadata."""

    file: str
    names: tuple[str, ...]
    metadata: dict[str, str] | None


def plan_shards(original: HfDirectory, tensors: dict[str, Tensor], max_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Distribute `tensors` (in forward order) over shard files.

    With an index, or a single weight file, the original's split; where the original shard itself is there, its order
    and metadata too, else the order in which the safetensors library writes. Without either, files of at most
    `max_bytes`.
    """
    weight_map = original.weight_map()
    if weight_map is None and (original.path / SINGLE).is_file():
        weight_map = dict.fromkeys(tensors, SINGLE)
    if weight_map is None:
        return _new_split(tensors, max_bytes)
    by_file = defaultdict(list)
    for name in tensors:
        by_file[weight_map[name]].append(name)
    shards = []
    for file_name, held in sorted(by_file.items()):
        order, metadata = library_order(held, tensors), {"format": "pt"}
        if (original.path / file_name).is_file():
            file = original.shard(file_name)
            place = {name: number for number, name in enumerate(file.tensors)}
            if set(held) <= set(place):
                order, metadata = tuple(sorted(held, key=place.__getitem__)), file.metadata
        shards.append(Shard(file_name, order, metadata))
    return shards


def index_text(original: HfDirectory, shards: list[Shard], tensors: dict[str, Tensor]) -> str:
    """Text of the index file: the original's when it says the same, else a new one in the form of transformers."""
    weight_map = {name: shard.file for shard in shards for name in shard.names}
    total = sum(tensors[name].nbytes for name in weight_map)
    path = original.path / INDEX
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        index = json.loads(text)
        if index["weight_map"] == weight_map and index.get("metadata", {}).get("total_size") == total:
            return text
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def files_to_copy(directory: Path) -> list[Path]:
    """Tokenizer, generation and other small files of a model directory; never weights. Code is copied, never run."""
    return [path for path in sorted(directory.iterdir())
            if path.is_file() and (path.suffix in _COPIED or path.name.startswith("LICENSE"))
            and path.name != "config.json" and not path.name.endswith(".index.json")]


def _new_split(tensors: dict[str, Tensor], max_bytes: int) -> list[Shard]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    files = [SINGLE] if len(groups) == 1 else [f"model-{number:05d}-of-{len(groups):05d}.safetensors"
                                               for number in range(1, len(groups) + 1)]
    return [Shard(file, library_order(group, tensors), {"format": "pt"}) for file, group in zip(files, groups)]


def library_order(names: list[str], tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Wider dtypes first, then by name; F32 before BF16 before F16."""
    rank = list(SAFETENSORS_DTYPES)
    return tuple(sorted(names, key=lambda name: (rank.index(tensors[name].dtype), name)))
