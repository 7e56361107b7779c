"""Reading a checkpoint under any parallel split: every tensor is put together from the files that hold parts of it."""

import functools
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint import layout
from mindspeed_llm.checkpoint.boxes import Box, Source, fill, shard_boxes
from mindspeed_llm.checkpoint.completeness import check_complete, entry_boxes, stored_adapters
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, SAFETENSORS_DTYPES, StoredTensor, cast
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import OPTIMIZER_STATES, TensorSpec


def open_checkpoint(load_dir: str | os.PathLike, iteration: int | None = None) -> "Checkpoint | None":
    """Open the checkpoint that the tracker in `load_dir` names, or that of `iteration`.

    Returns None when there is no tracker (nothing was ever saved there). Only metadata.json is read. Raises
    FileNotFoundError or UserError naming the file when the tracker, the directory or its metadata is damaged or
    missing.
    """
    root = Path(load_dir)
    if iteration is None:
        iteration = layout.latest_iteration(root)
        if iteration is None:
            return None
        asked = f"{root / layout.TRACKER} names iteration {iteration}"
    else:
        asked = f"iteration {iteration} was asked for"
    directory = root / layout.iteration_name(iteration)
    if not directory.is_dir():
        # A kill between the two renames of a replacing save leaves the earlier one under this name.
        replaced = directory.with_name(directory.name + layout.REPLACED)
        if not replaced.is_dir():
            found = ", ".join(layout.saved_iterations(root)) or "none"
            raise FileNotFoundError(f"{asked}, but {directory} does not exist (saved there: {found})")
        directory = replaced
    return Checkpoint(directory)


class Checkpoint:
    """One iteration of a checkpoint, open for reading (a context manager; `close` drops the memory maps).

    `model_config`, `iteration`, `consumed_samples`, `weights_only`, `rng`, `extra` are as saved; `parallel` is the
    dictionary of sizes, `layers` and `noop_layers` it was saved with; `has_optimizer` says whether optimizer state is
    there, `lora` which adapters, `adapters_only` whether nothing else is.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        self._metadata = _read_metadata(self.directory / layout.METADATA)
        try:
            self.model_config = ModelConfig.from_dict(self._metadata["model"])
            self.iteration: int = self._metadata["iteration"]
            self.consumed_samples: int = self._metadata["consumed_samples"]
            self.weights_only: bool = self._metadata["weights_only"]
            self.parallel: dict = self._metadata["parallel"]
            self.rng: dict = self._metadata["rng"]
            self.extra: dict = self._metadata["extra"]
            self.lora: LoraConfig | None = stored_adapters(self._metadata)
            self.adapters_only: bool = self._metadata.get("adapters_only", False)
            self._held: dict[tuple[str, str], list[tuple[str, str, dict]]] = defaultdict(list)
            for relative, entry in self._metadata["files"].items():
                for key, tensor in entry["tensors"].items():
                    self._held[tensor["name"], tensor.get("state", "weight")].append((relative, key, tensor))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.directory / layout.METADATA} is damaged (entry {error} is missing or malformed): "
                            "copy the checkpoint again, or load another iteration") from None
        self._files: dict[str, SafetensorsFile] = {}

    @property
    def has_optimizer(self) -> bool:
        """Whether optimizer state was saved."""
        return any(state == "exp_avg" for _, state in self._held)

    @property
    def noop_layers(self) -> tuple[int, ...]:
        """Layer numbers that hold no parameters."""
        return tuple(self.parallel["noop_layers"])

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hexadecimal digest of these weights by their checksums; another parallel layout has another one."""
        weights = sorted([name, relative, tensor["dtype"], tensor["global_shape"], tensor["crc32"]]
                         for name in names for relative, _, tensor in self._holders(name, "weight"))
        return hashlib.sha256(json.dumps(weights).encode()).hexdigest()

    def names(self) -> list[str]:
        """Global names of all weights."""
        return [name for name, state in self._held if state == "weight"]

    def dtype(self, name: str) -> str:
        """Tag (fp32, bf16, fp16) of a weight as saved."""
        return self._holders(name, "weight")[0][2]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Global shape of a weight."""
        return tuple(self._holders(name, "weight")[0][2]["global_shape"])

    def read(self, spec: TensorSpec, rank: int, size: int, dtype: str | None = None) -> StoredTensor:
        """The weight of `spec` as tensor-parallel `rank` of `size` holds it, cast to `dtype` if given.

        Reads only the bytes that it needs. Raises UserError when the tensor is absent or of another global shape,
        FileNotFoundError or UserError naming the file when one is missing or damaged.
        """
        self._check_shape(spec, "weight")
        boxes = shard_boxes(spec.shape, spec.partition_dim, spec.segments(rank, size))
        return self._read(spec.name, boxes, spec.local_shape(rank, size), dtype)

    def read_global(self, name: str, dtype: str | None = None) -> StoredTensor:
        """The whole tensor `name`."""
        shape = self.shape(name)
        return self._read(name, shard_boxes(shape, None, ((0, shape[0]),)), shape, dtype)

    def fill(self, name: str, boxes: tuple[Box, ...], out: np.ndarray) -> None:
        """Copy `boxes` of weight `name` into the flat buffer `out`, which has the saved dtype."""
        self._fill(name, "weight", boxes, out)

    def read_optimizer(self, spec: TensorSpec, rank: int, size: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Optimizer state of flat elements [start, stop) of the tensor of `spec` that `rank` of `size` holds.

        Returns fp32 1-D arrays "master", "exp_avg", "exp_avg_sq". A master that was not saved is the weight itself.
        Raises UserError when there is no optimizer state for the parameter.
        """
        boxes = shard_boxes(spec.shape, spec.partition_dim, spec.segments(rank, size), start, stop)
        states = {}
        for state in OPTIMIZER_STATES:
            source = state if state != "master" or (spec.name, "master") in self._held else "weight"
            self._check_shape(spec, source)
            tag = self._holders(spec.name, source)[0][2]["dtype"]
            out = np.empty(stop - start, NUMPY_DTYPES[tag])
            self._fill(spec.name, source, boxes, out)
            states[state] = cast(out, tag, "fp32")
        return states

    def verify(self) -> int:
        """Check every file's size and header, every tensor's checksum, and that no element of the model is missing.

        Returns the number of tensors checked. Raises UserError or FileNotFoundError naming the first bad file.
        """
        check_complete(self._metadata, str(self.directory))
        count = 0
        for relative, entry in self._metadata["files"].items():
            file = self._file(relative)
            for key, tensor in entry["tensors"].items():
                if file.crc32(key) != tensor["crc32"]:
                    raise UserError(f"{file.path}: checksum of tensor {key} is wrong, the file is damaged: copy it "
                                    "again, or load another iteration")
                count += 1
        return count

    def _read(self, name: str, boxes: tuple[Box, ...], shape: tuple[int, ...], dtype: str | None) -> StoredTensor:
        tag = self.dtype(name)
        out = np.empty(math.prod(shape), NUMPY_DTYPES[tag])
        self._fill(name, "weight", boxes, out)
        tensor = StoredTensor(out.reshape(shape), tag)
        return tensor if dtype is None else tensor.to(dtype)

    def _fill(self, name: str, state: str, boxes: tuple[Box, ...], out: np.ndarray) -> None:
        used: list[tuple[SafetensorsFile, str]] = []

        def flat(relative: str, key: str) -> np.ndarray:
            file = self._file(relative)
            used.append((file, key))
            return file.flat(key)

        sources = (Source(entry_boxes(tensor), functools.partial(flat, relative, key))
                   for relative, key, tensor in self._holders(name, state))
        missing = fill(out, boxes, sources)
        for file, key in used:
            file.release(key)
        if missing:
            count = sum(box.rows * box.cols for box in missing)
            raise UserError(f"checkpoint {self.directory} lacks {count} elements of {state} {name}: a rank's file was "
                            "not saved")

    def _holders(self, name: str, state: str) -> list[tuple[str, str, dict]]:
        holders = self._held.get((name, state))
        if not holders:
            what = "weight" if state == "weight" else f"optimizer state {state} of"
            raise UserError(f"checkpoint {self.directory} has no {what} {name}"
                            + (": add --no-load-optim, or load another checkpoint" if state != "weight" else ""))
        return holders

    def _check_shape(self, spec: TensorSpec, state: str) -> None:
        shape = tuple(self._holders(spec.name, state)[0][2]["global_shape"])
        if shape != spec.shape:
            raise UserError(f"{spec.name} has shape {list(shape)} in checkpoint {self.directory}, {list(spec.shape)} "
                            "expected: give the shape flags of the checkpoint's model")

    def _file(self, relative: str) -> SafetensorsFile:
        """The file, checked against its metadata on first use."""
        if relative in self._files:
            return self._files[relative]
        path, entry = self.directory / relative, self._metadata["files"][relative]
        remedy = "copy the checkpoint again, or load another iteration"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing ({entry['bytes']} bytes expected): {remedy}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            state = "is empty" if size == 0 else "is truncated" if size < entry["bytes"] else "is too long"
            raise UserError(f"{path} {state}: it has {size} bytes, {entry['bytes']} expected: {remedy}")
        file = SafetensorsFile(path)
        for key, tensor in entry["tensors"].items():
            found = file.tensors.get(key)
            shape = (tensor["range"][1] - tensor["range"][0],) if "range" in tensor else tuple(tensor["shape"])
            if found is None or found.shape != shape or found.dtype != SAFETENSORS_DTYPES[tensor["dtype"]]:
                file.close()
                raise UserError(f"{path}: tensor {key} is not as {layout.METADATA} describes it: {remedy}")
        self._files[relative] = file
        return file


def _read_metadata(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy the checkpoint again, or load another iteration")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}; {path.stat().st_size} bytes): copy the checkpoint again, or "
                        "load another iteration") from None
    if not isinstance(metadata, dict) or metadata.get("format") != layout.FORMAT:
        raise UserError(f"{path} is not the metadata of a mindspeed_llm checkpoint")
    if metadata.get("format_version") != layout.FORMAT_VERSION:
        raise UserError(f"{path} has format version {metadata.get('format_version')}, this program reads "
                        f"{layout.FORMAT_VERSION}: use the mindspeed_llm that wrote it")
    return metadata
