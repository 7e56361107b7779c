"""Reading a checkpoint under any parallel split: every tensor is put together from the files that hold parts of it."""

import functools
import hashlib
import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint import layout
from mindspeed_llm.checkpoint.boxes import Box, Source, fill, shard_boxes
from mindspeed_llm.checkpoint.completeness import check_complete, entry_boxes, stored_adapters
from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES, SAFETENSORS_DTYPES, StoredTensor, cast, read_as
from mindspeed_llm.checkpoint.metadata import REMEDY, model_of, read_metadata
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.core.sharding import OPTIMIZER_STATES, TensorSpec


def open_checkpoint(load_dir: str | os.PathLike, iteration: int | None = None) -> "Checkpoint | None":
    """Open the checkpoint that the tracker in `load_dir` names, or that of `iteration`.

    Where the tracker's cannot be had (the tracker is damaged or names nothing, metadata.json is damaged, a file is
    missing or of a wrong size) it is the last complete one before it, or else the last complete one of all;
    `Checkpoint.warning` says so. Returns None when nothing was ever saved there. Only metadata.json is read.

    Raises FileNotFoundError or UserError naming what is damaged or missing when no complete one is there, or when
    `iteration` is given and cannot be had.
    """
    root = Path(load_dir)
    if iteration is not None:
        return _open(root, iteration, f"iteration {iteration} was asked for")
    named, trouble, opened = None, None, None
    try:
        named = layout.latest_iteration(root)
        if named is None and not layout.saved_iterations(root):
            return None
        if named is None:
            raise UserError(f"{root / layout.TRACKER} is missing")
        opened = _open(root, named, f"{root / layout.TRACKER} names iteration {named}")
        opened.check_files()
        return opened
    except (UserError, FileNotFoundError) as error:
        trouble = error
    for other in _others(root, named):
        try:
            found = _open(root, other, "")
            found.check_files()
        except (UserError, FileNotFoundError):
            continue
        if opened is not None:
            opened.close()
        found.warning = (f"WARNING: {trouble}. FALLING BACK TO ITERATION {found.iteration}, the last complete "
                         f"checkpoint in {root}")
        return found
    if opened is not None:  # nothing better is there: what it lacks may not be needed
        return opened
    raise trouble


def _open(root: Path, iteration: int, asked: str) -> "Checkpoint":
    directory = root / layout.iteration_name(iteration)
    if not directory.is_dir():
        # A kill between the two renames of a replacing save leaves the earlier one under this name.
        replaced = directory.with_name(directory.name + layout.REPLACED)
        if not replaced.is_dir():
            found = ", ".join(layout.saved_iterations(root)) or "none"
            raise FileNotFoundError(f"{asked}, but {directory} does not exist (saved there: {found})")
        directory = replaced
    return Checkpoint(directory)


def _others(root: Path, named: int | None) -> list[int]:
    """Saved iterations but `named`: those before it from the last one back, then those after it likewise."""
    saved = [number for number in map(layout.iteration_number, layout.saved_iterations(root)) if number is not None]
    limit = max(saved, default=0) if named is None else named
    return sorted((number for number in saved if number != named), key=lambda number: (number > limit, -number))


class Checkpoint:
    """One iteration of a checkpoint, open for reading (a context manager; `close` drops the memory maps).

    `model_config`, `iteration`, `consumed_samples`, `weights_only`, `rng`, `extra` are as saved; `parallel` is the
    dictionary of sizes, `layers` and `noop_layers` it was saved with; `has_optimizer` says whether optimizer state is
    there, `lora` which adapters, `adapters_only` whether nothing else is. `warning`: what to say aloud about its choice,
    or None.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        self.warning: str | None = None
        self._metadata = read_metadata(self.directory / layout.METADATA)
        self.model_config = model_of(self._metadata)
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
        self._files: dict[str, SafetensorsFile] = {}
        self._opening = threading.Lock()    # several threads may read

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

    def read(self, spec: TensorSpec, rank: int, size: int, dtype: str | None = None,
             out: np.ndarray | None = None) -> StoredTensor:
        """See `WeightSource.read`.

        Reads only the bytes that it needs. Raises UserError when the tensor is absent or of another global shape,
        FileNotFoundError or UserError naming the file when one is missing or damaged.
        """
        self._check_shape(spec, "weight")
        boxes = shard_boxes(spec.shape, spec.partition_dim, spec.segments(rank, size))
        return self._read(spec.name, boxes, spec.local_shape(rank, size), dtype, out)

    def read_global(self, name: str, dtype: str | None = None) -> StoredTensor:
        """The whole tensor `name`."""
        shape = self.shape(name)
        return self._read(name, shard_boxes(shape, None, ((0, shape[0]),)), shape, dtype)

    def fill(self, name: str, boxes: tuple[Box, ...], out: np.ndarray) -> None:
        """Copy `boxes` of weight `name` into the flat buffer `out`, which has the saved dtype."""
        self._fill(name, "weight", boxes, out)

    def forget(self, name: str) -> None:
        """Nobody will read weight `name` again soon: its pages leave the system's cache."""
        for relative, key, _ in self._holders(name, "weight"):
            self._file(relative).forget(key)

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

    def check_files(self) -> None:
        """Every file is there and has its size; of ranks that share no storage, every file that is there.

        Raises FileNotFoundError or UserError naming the first that is not so.
        """
        shared = self.parallel.get("shared_storage", True)
        for relative in self._metadata["files"]:
            if shared or (self.directory / relative).is_file():
                self._check_size(relative)

    @property
    def size(self) -> tuple[int, int]:
        """(number of files, their bytes together) beside metadata.json."""
        return len(self._metadata["files"]), sum(entry["bytes"] for entry in self._metadata["files"].values())

    def problems(self) -> Iterator[str]:
        """What is wrong with each file: its absence, size, header, the checksum of a tensor; and what no file holds."""
        try:
            check_complete(self._metadata, str(self.directory))
        except UserError as error:
            yield str(error)
        for relative, entry in self._metadata["files"].items():
            try:
                file = self._file(relative)
            except (UserError, FileNotFoundError) as error:
                yield str(error)
                continue
            for key, tensor in entry["tensors"].items():
                if file.crc32(key) != tensor["crc32"]:
                    yield f"{file.path}: checksum of tensor {key} is wrong, the file is damaged: {REMEDY}"

    def verify(self) -> int:
        """Check every file's size and header, every tensor's checksum, and that no element of the model is missing.

        Returns the number of tensors checked. Raises UserError naming the first bad file.
        """
        for problem in self.problems():
            raise UserError(problem)
        return sum(len(entry["tensors"]) for entry in self._metadata["files"].values())

    def _read(self, name: str, boxes: tuple[Box, ...], shape: tuple[int, ...], dtype: str | None,
              out: np.ndarray | None = None) -> StoredTensor:
        tag = self.dtype(name)
        return read_as(tag, dtype or tag, shape, out, lambda flat: self._fill(name, "weight", boxes, flat))

    def _fill(self, name: str, state: str, boxes: tuple[Box, ...], out: np.ndarray) -> None:
        used: list[tuple[SafetensorsFile, str]] = []

        def flat(relative: str, key: str) -> np.ndarray:
            file = self._file(relative)
            used.append((file, key))
            return file.flat(key)

        def read(relative: str, key: str, offset: int, part: np.ndarray) -> None:
            self._file(relative).read(key, offset, part)

        sources = (Source(entry_boxes(tensor), functools.partial(flat, relative, key),
                          functools.partial(read, relative, key))
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
        with self._opening:
            if relative not in self._files:
                self._files[relative] = self._open(relative)
        return self._files[relative]

    def _open(self, relative: str) -> SafetensorsFile:
        path, entry = self._check_size(relative), self._metadata["files"][relative]
        file = SafetensorsFile(path)
        for key, tensor in entry["tensors"].items():
            found = file.tensors.get(key)
            shape = (tensor["range"][1] - tensor["range"][0],) if "range" in tensor else tuple(tensor["shape"])
            if found is None or found.shape != shape or found.dtype != SAFETENSORS_DTYPES[tensor["dtype"]]:
                file.close()
                raise UserError(f"{path}: tensor {key} is not as {layout.METADATA} describes it: {REMEDY}")
        return file

    def _check_size(self, relative: str) -> Path:
        path, expected = self.directory / relative, self._metadata["files"][relative]["bytes"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing ({expected} bytes expected): {REMEDY}")
        size = path.stat().st_size
        if size != expected:
            state = "is empty" if size == 0 else "is truncated" if size < expected else "is too long"
            raise UserError(f"{path} {state}: it has {size} bytes, {expected} expected: {REMEDY}")
        return path
