"""A rank's parameters: created from the sharding description, initialised alike under every parallel layout."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import BUCKET_ELEMENTS, TensorSpec, bucket_contents
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.memory import FlatBuffer, numpy_dtype

_BLOCK_ROWS = 4096  # a whole-model tensor is drawn in blocks of rows, so that a shard draws little more than its own


@dataclass(frozen=True)
class Bucket:
    """A range of the flat buffers that is reduced and gathered as one message, and the (trainable) parameters in it.

    `late`: their gradients are reduced when backward has ended.
    """

    start: int
    stop: int
    names: tuple[str, ...]
    late: bool


class ParameterSet:
    """Tensors of one rank by global name, in a flat buffer; trainable ones with their `main_grad` in a second one (fp32).

    `specs` gives their whole-model description. They lie in buckets as `bucket_contents` says; every bucket is padded to a
    multiple of `multiple_of` elements, so that it divides evenly among data-parallel ranks. Parameters that are not
    trainable come last, so that the others are at the same places of both buffers.
    """

    def __init__(self, specs: list[TensorSpec], tp_rank: int, tp_size: int, dtype: mstype.Type, *,
                 multiple_of: int = 1) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.tp_rank, self.tp_size, self.dtype = tp_rank, tp_size, dtype
        contents = bucket_contents(specs, tp_rank, tp_size, BUCKET_ELEMENTS)
        shapes, named = _padded_shapes(contents, tp_rank, tp_size, multiple_of)
        ends = np.cumsum([sum(int(np.prod(shape)) for shape in bucket) for bucket in shapes]).tolist()
        self.buffer = FlatBuffer(shapes, dtype)
        views = dict(zip(named, self.buffer.views, strict=True))
        ranges = dict(zip(named, zip(self.buffer.offsets[:-1], self.buffer.offsets[1:], strict=True), strict=True))
        self.tensors: dict[str, Tensor] = {name: views[name] for name in self.specs}
        self.ranges = {name: ranges[name] for name in self.specs}
        self.buckets = [Bucket(start, stop, tuple(spec.name for spec in content), content[0].late)
                        for start, stop, content in zip([0, *ends][:-1], ends, contents, strict=True)
                        if content[0].trainable]
        self.grads = FlatBuffer(shapes[:len(self.buckets)], mstype.float32)
        self._arriving: list[tuple[tuple[str, ...], Callable[[], None]]] = []
        main_grads = dict(zip(named, self.grads.views))  # the names of frozen parameters follow and have none
        self.trainable = {name: tensor for name, tensor in self.tensors.items() if self.specs[name].trainable}
        for name, tensor in self.trainable.items():
            tensor.requires_grad_(True)
            tensor.main_grad = main_grads[name]

    def arriving(self, names: tuple[str, ...], complete: Callable[[], None]) -> None:
        """Note that values of these parameters are on their way; `complete()` waits for them and puts them in place."""
        self._arriving.append((names, complete))

    def settle(self, prefix: str = "") -> None:
        """Wait until the values of parameters whose names start with `prefix` are in place.

        To be called before using tensors taken from here earlier; taking one waits for all.
        """
        while any(name.startswith(prefix) for names, _ in self._arriving for name in names):
            self._arriving.pop(0)[1]()

    def settle_all_but(self, count: int) -> None:
        """Wait for the oldest of what is on its way, until at most `count` are left."""
        while len(self._arriving) > count:
            self._arriving.pop(0)[1]()

    def place(self, bucket: Bucket, values: Tensor) -> None:
        """Put a bucket's values, flat and padded, into the parameters."""
        self.buffer.store(bucket.start, values)

    def __getitem__(self, name: str) -> Tensor:
        self.settle()
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor of that global name, or None if this rank has none."""
        self.settle()
        return self.tensors.get(name)

    def drop_grads(self) -> None:
        """Forget all gradients: the next one of each parameter replaces what its `main_grad` holds.

        `optimizer.gradients.settle` clears those that none came for.
        """
        for tensor in self.trainable.values():
            autograd.drop_grad(tensor)

    def shared_range(self, name: str) -> tuple[int, int]:
        """The part of a parameter's range that other ranks hold too (`TensorSpec.shared`), maybe empty."""
        (start, stop), shared = self.ranges[name], self.specs[name].shared
        rows = self.tensors[name].shape[0]
        count = 0 if shared is None else rows if shared.rows is None else shared.rows
        return stop - (stop - start) // rows * count, stop

    def numel(self) -> int:
        """Number of parameters of this rank."""
        return sum(stop - start for start, stop in self.ranges.values())

    def load(self, name: str, array: np.ndarray) -> None:
        """Set a parameter from a local shard of the parameter's dtype; bf16 may come as its 16 bits (uint16)."""
        start, stop = self.ranges[name]
        if array.dtype == np.uint16:
            array = array.view(numpy_dtype(self.dtype))
        if array.size != stop - start:
            raise ValueError(f"{name}: expected {stop - start} elements, got shape {array.shape}")
        self.buffer.store(start, Tensor.from_numpy(np.ascontiguousarray(array).reshape(-1)))

    def memory(self, name: str) -> np.ndarray | None:
        """The flat memory of a parameter, bf16 as its 16 bits (uint16); None where it is not the host's."""
        array = self.buffer.memory(*self.ranges[name])
        return array if array is None or self.dtype != mstype.bfloat16 else array.view(np.uint16)

    def initialize(self, model: ModelConfig, seed: int, *, adapters_only: bool = False) -> None:
        """Draw all parameters, or those of adapters: normal(0, init_method_std), output projections scaled by
        1/sqrt(2 * layers), norms 1; the first matrix of an adapter uniform up to 1/sqrt(inputs), the second 0.

        The draw depends on the seed, the global name and the global position only, so that any parallel layout starts
        from the same model.
        """
        dtype = numpy_dtype(self.dtype)
        for name, spec in self.specs.items():
            if adapters_only and not spec.adapter:
                continue
            self.load(name, _initial_shard(spec, self.tp_rank, self.tp_size, model, seed).astype(dtype))


def _padded_shapes(contents: list[list[TensorSpec]], rank: int, size: int,
                   multiple_of: int) -> tuple[list[list[tuple[int, ...]]], list[str]]:
    """Shapes of each bucket's entries, with one that pads each bucket that needs it, and the names of all entries."""
    shapes, names = [], []
    for number, content in enumerate(contents):
        local = [spec.local_shape(rank, size) for spec in content]
        padding = -sum(int(np.prod(shape)) for shape in local) % multiple_of
        shapes.append([*local, (padding,)] if padding else local)
        names += [*(spec.name for spec in content), *([f"padding of bucket {number}"] if padding else [])]
    return shapes, names


def _initial_shard(spec: TensorSpec, rank: int, size: int, model: ModelConfig, seed: int) -> np.ndarray:
    if spec.init in ("zeros", "ones"):
        return np.full(spec.local_shape(rank, size), float(spec.init == "ones"), np.float32)
    if spec.init == "fan_in":
        factor = 1 / np.sqrt(spec.shape[1])
    else:
        factor = model.init_method_std / (np.sqrt(2 * model.num_layers) if spec.init == "scaled_normal" else 1.0)
    segments = spec.segments(rank, size)
    if spec.partition_dim != 1:
        return np.concatenate([_rows(spec, seed, start, stop) for start, stop in segments]) * np.float32(factor)
    whole = _rows(spec, seed, 0, spec.shape[0])
    return np.concatenate([whole[:, start:stop] for start, stop in segments], axis=1) * np.float32(factor)


def _rows(spec: TensorSpec, seed: int, start: int, stop: int) -> np.ndarray:
    """Rows start to stop of the whole tensor's draw: standard normal, or uniform in -1..1 for "fan_in"."""
    blocks = []
    for block in range(start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
        first = block * _BLOCK_ROWS
        count = min(_BLOCK_ROWS, spec.shape[0] - first)
        key = hashlib.sha256(f"{seed}/{spec.name}/{block}".encode()).digest()
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        shape = (count, *spec.shape[1:])
        rows = (2 * draw.random(shape, dtype=np.float32) - 1 if spec.init == "fan_in"
                else draw.standard_normal(shape, dtype=np.float32))
        blocks.append(rows[max(start - first, 0):stop - first])
    return np.concatenate(blocks)
