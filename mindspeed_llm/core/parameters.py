"""A rank's parameters: created from the sharding description, initialised alike under every parallel layout."""

import hashlib

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.runtime.memory import FlatBuffer, numpy_dtype

_BLOCK_ROWS = 4096  # a whole-model tensor is drawn in blocks of rows, so that a shard draws little more than its own


class ParameterSet:
    """Tensors of one rank by global name, in one flat buffer, each with its `main_grad` in a second one (fp32).

    `specs` gives their whole-model description; `trainable=False` leaves gradients out (inference).
    `multiple_of` pads the buffers so that they divide evenly among data-parallel ranks.
    """

    def __init__(self, specs: list[TensorSpec], tp_rank: int, tp_size: int, dtype: mstype.Type, *,
                 trainable: bool = True, multiple_of: int = 1) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.tp_rank, self.tp_size, self.dtype = tp_rank, tp_size, dtype
        shapes = [spec.local_shape(tp_rank, tp_size) for spec in specs]
        self.buffer = FlatBuffer(shapes, dtype, multiple_of)
        self.tensors: dict[str, Tensor] = dict(zip(self.specs, self.buffer.views, strict=True))
        self.ranges = dict(zip(self.specs, zip(self.buffer.offsets[:-1], self.buffer.offsets[1:], strict=True),
                               strict=True))
        self.grads = FlatBuffer(shapes, mstype.float32, multiple_of) if trainable else None
        if trainable:
            for tensor, main_grad in zip(self.buffer.views, self.grads.views, strict=True):
                tensor.requires_grad_(True)
                tensor.main_grad = main_grad

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor of that global name, or None if this rank has none."""
        return self.tensors.get(name)

    def numel(self) -> int:
        """Number of parameters of this rank."""
        return self.buffer.offsets[-1]

    def load(self, name: str, array: np.ndarray) -> None:
        """Set a parameter from a local shard of the parameter's dtype; bf16 may come as its 16 bits (uint16)."""
        start, stop = self.ranges[name]
        if array.dtype == np.uint16:
            array = array.view(numpy_dtype(self.dtype))
        if array.size != stop - start:
            raise ValueError(f"{name}: expected {stop - start} elements, got shape {array.shape}")
        self.buffer.store(start, Tensor.from_numpy(np.ascontiguousarray(array).reshape(-1)))

    def initialize(self, model: ModelConfig, seed: int) -> None:
        """Draw all parameters: normal(0, init_method_std), output projections scaled by 1/sqrt(2 * layers), norms 1.

        The draw depends on the seed, the global name and the global position only, so that any parallel layout starts from
        the same model.
        """
        dtype = numpy_dtype(self.dtype)
        for name, spec in self.specs.items():
            self.load(name, _initial_shard(spec, self.tp_rank, self.tp_size, model, seed).astype(dtype))
        self.buffer.push()


def _initial_shard(spec: TensorSpec, rank: int, size: int, model: ModelConfig, seed: int) -> np.ndarray:
    if spec.init in ("zeros", "ones"):
        return np.full(spec.local_shape(rank, size), float(spec.init == "ones"), np.float32)
    std = model.init_method_std / (np.sqrt(2 * model.num_layers) if spec.init == "scaled_normal" else 1.0)
    segments = spec.segments(rank, size)
    if spec.axis == 0:
        return np.concatenate([_rows(spec, seed, start, stop) for start, stop in segments]) * np.float32(std)
    whole = _rows(spec, seed, 0, spec.shape[0])
    return np.concatenate([whole[:, start:stop] for start, stop in segments], axis=1) * np.float32(std)


def _rows(spec: TensorSpec, seed: int, start: int, stop: int) -> np.ndarray:
    """Rows start to stop of the whole tensor's standard normal draw."""
    blocks = []
    for block in range(start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
        first = block * _BLOCK_ROWS
        count = min(_BLOCK_ROWS, spec.shape[0] - first)
        key = hashlib.sha256(f"{seed}/{spec.name}/{block}".encode()).digest()
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        rows = draw.standard_normal((count, *spec.shape[1:]), dtype=np.float32)
        blocks.append(rows[max(start - first, 0):stop - first])
    return np.concatenate(blocks)
